//! The codec between typed messages and the eight words that travel in registers.
//!
//! Decoding is strict: an operation that isn't known, a value out of its field's range, or a word that should be
//! zero and isn't, is [`Malformed`]. So each message has exactly one encoding, and a field can't smuggle anything.

/// A message as it travels: eight words, 64 bytes, one cache line.
pub type Words = [u64; 8];

/// The words are no canonical encoding of the expected message. The sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// One field of a message: exactly one word.
pub trait Field: Sized + Copy {
    /// The word that stands for this value.
    fn to_word(self) -> u64;
    /// The value of a word, or `None` if no value encodes to it.
    fn from_word(word: u64) -> Option<Self>;
}

/// A request: its operation number, its fields and the type of the reply to it.
pub trait Request: Sized {
    /// The operation, in the low 16 bits of word 0; the other bits of word 0 are zero.
    const OP: u16;
    /// What answers it.
    type Reply: Reply;
    /// The words that carry this request.
    fn encode(&self) -> Words;
    /// The request in `words`, whose operation has been matched already.
    ///
    /// # Errors
    /// [`Malformed`] if a field is out of range or a spare word isn't zero.
    fn decode(words: &Words) -> Result<Self, Malformed>;
}

/// A reply: fields only, from word 0 on. The status travels beside it.
pub trait Reply: Sized {
    /// The words that carry this reply.
    fn encode(&self) -> Words;
    /// The reply in `words`.
    ///
    /// # Errors
    /// [`Malformed`] if a field is out of range or a spare word isn't zero.
    fn decode(words: &Words) -> Result<Self, Malformed>;
}

impl Field for u64 {
    fn to_word(self) -> u64 {
        self
    }
    fn from_word(word: u64) -> Option<Self> {
        Some(word)
    }
}

macro_rules! narrow_field {
    ($($t:ty),*) => { $(
        impl Field for $t {
            fn to_word(self) -> u64 { u64::from(self) }
            fn from_word(word: u64) -> Option<Self> { <$t>::try_from(word).ok() }
        }
    )* };
}
narrow_field!(u8, u16, u32);

impl Field for bool {
    fn to_word(self) -> u64 {
        u64::from(self)
    }
    fn from_word(word: u64) -> Option<Self> {
        match word {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

/// Makes a C-like enum a [`Field`]; its numbers are its wire form.
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(target_os = "none", derive(defmt::Format))]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $value),+ }

        impl $name {
            /// Every value, in the order of the wire numbers' declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        impl $crate::wire::Field for $name {
            fn to_word(self) -> u64 { self as u64 }
            fn from_word(word: u64) -> Option<Self> {
                match word { $($value => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

/// Makes a `bitflags` type a [`Field`]; unknown bits are malformed.
#[macro_export]
macro_rules! wire_flags {
    ($name:ty) => {
        impl $crate::wire::Field for $name {
            fn to_word(self) -> u64 {
                u64::from(self.bits())
            }
            fn from_word(word: u64) -> Option<Self> {
                <$name>::from_bits(word.try_into().ok()?)
            }
        }
    };
}

/// Declares reply structs: fields from word 0 on.
#[macro_export]
macro_rules! replies {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty),* $(,)? })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $crate::wire::Reply for $name {
            #[allow(unused_mut, unused_assignments)] // a reply may have no field
            fn encode(&self) -> $crate::wire::Words {
                let mut words = [0; 8];
                let mut _at = 0;
                $( words[_at] = $crate::wire::Field::to_word(self.$field); _at += 1; )*
                words
            }
            fn decode(words: &$crate::wire::Words) -> Result<Self, $crate::wire::Malformed> {
                let mut _rest = words.iter().copied();
                let reply = Self { $( $field: _rest
                    .next()
                    .and_then($crate::wire::Field::from_word)
                    .ok_or($crate::wire::Malformed)? ),* };
                if _rest.all(|word| word == 0) { Ok(reply) } else { Err($crate::wire::Malformed) }
            }
        }
    )* };
}

/// Declares an interface's requests and the enum that its server matches on.
#[macro_export]
macro_rules! requests {
    (
        $(#[$emeta:meta])* pub enum $all:ident;
        $($(#[$meta:meta])* $name:ident = $op:literal { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* $(,)? } -> $reply:ty;)*
    ) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

            impl $crate::wire::Request for $name {
                const OP: u16 = $op;
                type Reply = $reply;
                #[allow(unused_mut, unused_assignments)] // a request may have no field
                fn encode(&self) -> $crate::wire::Words {
                    let mut words = [0; 8];
                    words[0] = $op;
                    let mut _at = 1;
                    $( words[_at] = $crate::wire::Field::to_word(self.$field); _at += 1; )*
                    words
                }
                fn decode(words: &$crate::wire::Words) -> Result<Self, $crate::wire::Malformed> {
                    let mut _rest = words.iter().copied();
                    if _rest.next() != Some($op) { return Err($crate::wire::Malformed); }
                    let request = Self { $( $field: _rest
                        .next()
                        .and_then($crate::wire::Field::from_word)
                        .ok_or($crate::wire::Malformed)? ),* };
                    if _rest.all(|word| word == 0) { Ok(request) } else { Err($crate::wire::Malformed) }
                }
            }
        )*

        $(#[$emeta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $all { $(
            #[doc = concat!("See [`", stringify!($name), "`].")]
            $name($name)
        ),* }

        impl $all {
            /// How many operations the interface has.
            pub const COUNT: usize = [$($op),*].len();
            /// Number and name of every operation.
            pub const OPERATIONS: &'static [(u16, &'static str)] = &[$(($op, stringify!($name))),*];

            /// The request in `words`.
            ///
            /// # Errors
            /// [`Malformed`](crate::wire::Malformed) if the operation is unknown or its fields aren't canonical.
            #[inline]
            pub fn decode(words: &$crate::wire::Words) -> Result<Self, $crate::wire::Malformed> {
                match words[0] {
                    $( $op => <$name as $crate::wire::Request>::decode(words).map(Self::$name), )*
                    _ => Err($crate::wire::Malformed),
                }
            }
        }
    };
}

replies! {
    /// A reply without content: the status says it all.
    pub struct Done {}
}
