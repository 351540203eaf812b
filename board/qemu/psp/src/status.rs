//! What a command ends with.

macro_rules! statuses {
    ($($(#[$meta:meta])* $name:ident = $value:literal,)*) => {
        /// Status codes (55766 section 4.4; from 0x19 on 56860). They stand in the low half of the command register.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Status { $($(#[$meta])* $name = $value,)* }

        impl Status {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The status with this number.
            pub const fn from_bits(bits: u16) -> Option<Self> {
                match bits { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

statuses! {
    /// Done.
    Success = 0x00,
    /// The platform is in the wrong state for this command.
    InvalidPlatformState = 0x01,
    /// The guest is in the wrong state for this command.
    InvalidGuestState = 0x02,
    /// The platform isn't configured for this.
    InvalidConfig = 0x03,
    /// A length is wrong or too short; where the command tells lengths, the right one was written.
    InvalidLength = 0x04,
    /// The platform has an owner already.
    AlreadyOwned = 0x05,
    /// A certificate is malformed or not the one it must be.
    InvalidCertificate = 0x06,
    /// The guest's policy forbids it.
    PolicyFailure = 0x07,
    /// The guest has no ASID.
    Inactive = 0x08,
    /// An address is unaligned, or not memory that the processor may use for this.
    InvalidAddress = 0x09,
    /// A signature is wrong.
    BadSignature = 0x0a,
    /// A measurement or an authentication tag is wrong.
    BadMeasurement = 0x0b,
    /// The ASID is another guest's.
    AsidOwned = 0x0c,
    /// The ASID isn't one that this kind of guest can have.
    InvalidAsid = 0x0d,
    /// A CPU hasn't executed WBINVD since an ASID was given up.
    WbinvdRequired = 0x0e,
    /// DF_FLUSH is missing since an ASID was given up.
    DfFlushRequired = 0x0f,
    /// No such guest.
    InvalidGuest = 0x10,
    /// No such command.
    InvalidCommand = 0x11,
    /// The guest still has its ASID.
    Active = 0x12,
    /// The machine failed; memory is as it was.
    HardwareErrorPlatform = 0x13,
    /// The machine failed; memory may be lost.
    HardwareErrorUnsafe = 0x14,
    /// Not offered here.
    Unsupported = 0x15,
    /// A parameter has a value that it can't have.
    InvalidParam = 0x16,
    /// No room for another.
    ResourceLimit = 0x17,
    /// What was stored is damaged, or isn't this processor's.
    SecureDataInvalid = 0x18,
    /// The RMP says that the page has another size.
    InvalidPageSize = 0x19,
    /// The RMP says that the page is in another state.
    InvalidPageState = 0x1a,
    /// A metadata entry is wrong.
    InvalidMetadataEntry = 0x1b,
    /// The page belongs to another guest.
    InvalidPageOwner = 0x1c,
    /// No sequence number is left.
    SequenceOverflow = 0x1d,
    /// The RMP was never initialised.
    RmpInitRequired = 0x20,
    /// A security version is older than what is committed.
    BadSvn = 0x21,
    /// A version is older than what is committed.
    BadVersion = 0x22,
    /// SHUTDOWN must come first.
    ShutdownRequired = 0x23,
    /// An update failed.
    UpdateFailed = 0x24,
    /// A restore must come first.
    RestoreRequired = 0x25,
    /// The RMP couldn't be initialised.
    RmpInitFailed = 0x26,
    /// The key that was chosen isn't there.
    InvalidKey = 0x27,
}
