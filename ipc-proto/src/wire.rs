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

/// Fields in a row, a word each.
pub trait Fields: Sized {
    /// Writes them to the beginning of `words`.
    fn put(&self, words: &mut [u64]);
    /// Reads them.
    ///
    /// # Errors
    /// [`Malformed`] if a field is out of range or a spare word isn't zero.
    fn take(words: &[u64]) -> Result<Self, Malformed>;
}

/// A request: its operation number, its fields and the type of the reply to it.
pub trait Request: Fields {
    /// The operation, in the low 16 bits of word 0; the other bits of word 0 are zero.
    const OP: u16;
    /// What answers it.
    type Reply: Reply;
    /// The words that carry this request.
    fn encode(&self) -> Words {
        let mut words = [u64::from(Self::OP), 0, 0, 0, 0, 0, 0, 0];
        self.put(&mut words[1..]);
        words
    }
}

/// A reply: fields only, from word 0 on. The status travels beside it.
pub trait Reply: Fields {
    /// The words that carry this reply.
    fn encode(&self) -> Words {
        let mut words = [0; 8];
        self.put(&mut words);
        words
    }
    /// The reply in `words`.
    ///
    /// # Errors
    /// [`Malformed`] if a field is out of range or a spare word isn't zero.
    fn decode(words: &Words) -> Result<Self, Malformed> {
        Self::take(words)
    }
}

macro_rules! number_field {
    ($($t:ty),*) => { $(
        impl Field for $t {
            fn to_word(self) -> u64 { u64::from(self) }
            fn from_word(word: u64) -> Option<Self> { <$t>::try_from(word).ok() }
        }
    )* };
}
number_field!(u8, u16, u32, u64);

impl Field for bool {
    fn to_word(self) -> u64 {
        u64::from(self)
    }
    fn from_word(word: u64) -> Option<Self> {
        if word < 2 { Some(word == 1) } else { None }
    }
}

/// Makes a C-like enum a [`Field`]; its numbers are its wire form. What isn't said of a variant, its enum's text says.
#[macro_export]
macro_rules! wire_enum {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(target_os = "none", derive(defmt::Format))]
        #[allow(missing_docs)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $value),+ }

        impl $name {
            /// Every value, in the order of the wire numbers' declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        /// The first one.
        impl Default for $name {
            fn default() -> Self { Self::ALL[0] }
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

/// Declares a struct of `Fields`. What isn't said of a field, its struct's text says.
#[macro_export]
macro_rules! fields {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty),* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }

        impl $crate::wire::Fields for $name {
            fn put(&self, words: &mut [u64]) {
                let fields: &[u64] = &[$($crate::wire::Field::to_word(self.$field)),*];
                words.iter_mut().zip(fields).for_each(|(word, field)| *word = *field);
            }
            fn take(words: &[u64]) -> Result<Self, $crate::wire::Malformed> {
                let mut rest = words.iter().copied();
                let fields = Self {
                    $($field: rest.next().and_then($crate::wire::Field::from_word).ok_or($crate::wire::Malformed)?),*
                };
                if rest.all(|word| word == 0) { Ok(fields) } else { Err($crate::wire::Malformed) }
            }
        }
    };
}

/// Declares a struct of words whose first one packs several fields, each with its lowest bit and its width.
#[macro_export]
macro_rules! packed {
    ($(#[$meta:meta])* pub struct $name:ident {
        head { $($(#[$hmeta:meta])* $head:ident : $ty:ty = $low:literal, $bits:literal;)* }
        words { $($word:ident),* }
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$hmeta])* pub $head: $ty,)* $(#[doc = "See above."] pub $word: u64,)* }

        impl $name {
            /// The words that stand for it.
            #[inline(always)]
            pub fn to_words(&self) -> $crate::wire::Words {
                let head = 0 $(| $crate::wire::Field::to_word(self.$head) << $low)*;
                let mut words = [head, 0, 0, 0, 0, 0, 0, 0];
                words[1..].iter_mut().zip([$(self.$word),*]).for_each(|(word, field)| *word = field);
                words
            }

            /// What the words stand for.
            ///
            /// # Errors
            /// [`Malformed`](crate::wire::Malformed) if they aren't canonical.
            #[inline(always)]
            pub fn from_words(words: &$crate::wire::Words) -> Result<Self, $crate::wire::Malformed> {
                use $crate::wire::{Field, Malformed};
                const USED: u64 = 0 $(| ((1 << $bits) - 1) << $low)*;
                let mut rest = words.iter().copied();
                let head = rest.next().filter(|head| head & !USED == 0).ok_or(Malformed)?;
                let value = Self {
                    $($head: Field::from_word(head >> $low & ((1 << $bits) - 1)).ok_or(Malformed)?,)*
                    $($word: rest.next().ok_or(Malformed)?,)*
                };
                if rest.all(|word| word == 0) { Ok(value) } else { Err(Malformed) }
            }
        }
    };
}

/// Declares what lies in memory as it is written here.
#[macro_export]
macro_rules! records {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
    )* };
}

/// Declares reply structs: fields from word 0 on.
#[macro_export]
macro_rules! replies {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* $fvis:vis $field:ident : $ty:ty),* $(,)? })*) => { $(
        $crate::fields! { $(#[$meta])* $name { $($(#[$fmeta])* $field: $ty),* } }

        impl $crate::wire::Reply for $name {}
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
            $crate::fields! { $(#[$meta])* $name { $($(#[$fmeta])* $field: $ty),* } }

            impl $crate::wire::Request for $name {
                const OP: u16 = $op;
                type Reply = $reply;
            }
        )*

        $(#[$emeta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $all { $(
            #[doc = concat!("See [`", stringify!($name), "`].")]
            $name($name)
        ),* }

        impl $all {
            /// Number and name of every operation.
            pub const OPERATIONS: &'static [(u16, &'static str)] = &[$(($op, stringify!($name))),*];

            /// The request in `words`.
            ///
            /// # Errors
            /// [`Malformed`](crate::wire::Malformed) if the operation is unknown or its fields aren't canonical.
            pub fn decode(words: &$crate::wire::Words) -> Result<Self, $crate::wire::Malformed> {
                match words[0] {
                    $( $op => $crate::wire::Fields::take(&words[1..]).map(Self::$name), )*
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
