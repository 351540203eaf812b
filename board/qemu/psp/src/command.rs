//! The commands that are known, by number, and what lies at their buffer address.

macro_rules! commands {
    ($($(#[$meta:meta])* $name:ident = $id:literal, $length:literal $(, $back:ident)?;)*) => {
        /// Commands (55766 section 4.3 and 56860 chapter 8). Every other number is refused with INVALID_COMMAND.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Command { $($(#[$meta])* $name = $id,)* }

        impl Command {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The command with this number.
            pub const fn from_bits(bits: u16) -> Option<Self> {
                match bits { $($id => Some(Self::$name),)* _ => None }
            }

            /// Bytes of the command buffer; 0 if there is none and its address is ignored.
            pub const fn length(self) -> usize {
                match self { $(Self::$name => $length,)* }
            }

            /// Whether the processor writes into the command buffer.
            pub const fn writes_back(self) -> bool {
                match self { $(Self::$name => commands!(@ $($back)?),)* }
            }
        }
    };
    (@) => { false };
    (@ writes) => { true };
}

commands! {
    /// Initialises the platform.
    Init = 0x001, 20;
    /// Ends it; every guest is forgotten.
    Shutdown = 0x002, 0;
    /// Forgets the platform's identity.
    PlatformReset = 0x003, 0;
    /// Tells version, state, owner and number of guests.
    PlatformStatus = 0x004, 12, writes;
    /// Makes a new identity.
    PekGen = 0x005, 0;
    /// The endorsement key, for somebody else to sign.
    PekCsr = 0x006, 12, writes;
    /// Takes the signed endorsement key and its signer.
    PekCertImport = 0x007, 28;
    /// The Diffie-Hellman key and what vouches for it.
    PdhCertExport = 0x008, 28, writes;
    /// Makes a new Diffie-Hellman key.
    PdhGen = 0x009, 0;
    /// Flushes the data fabric, so that ASIDs can be bound again.
    DfFlush = 0x00a, 0;
    /// The chip's id.
    GetId = 0x00c, 12, writes;
    /// As INIT, with the identity kept in memory of the host.
    InitEx = 0x00d, 36;
    /// Forgets a guest.
    Decommission = 0x020, 4;
    /// Binds a guest to an ASID.
    Activate = 0x021, 8;
    /// Takes the ASID away.
    Deactivate = 0x022, 4;
    /// Tells a guest's policy, ASID and state.
    GuestStatus = 0x023, 13, writes;
    /// Begins a launch.
    LaunchStart = 0x030, 36, writes;
    /// Measures and encrypts memory.
    LaunchUpdateData = 0x031, 20;
    /// Measures and encrypts a save area.
    LaunchUpdateVmsa = 0x032, 20;
    /// Tells the measurement.
    LaunchMeasure = 0x033, 20, writes;
    /// Puts the owner's secret into memory.
    LaunchSecret = 0x034, 52;
    /// Ends a launch.
    LaunchFinish = 0x035, 4;
    /// A report signed by the endorsement key.
    Attestation = 0x036, 36, writes;
    /// Tells versions and state.
    SnpPlatformStatus = 0x083, 8;
    /// DF_FLUSH where SNP is initialised.
    SnpDfFlush = 0x084, 0;
    /// Initialises SNP.
    SnpInitEx = 0x085, 64;
    /// Ends SNP.
    SnpShutdownEx = 0x086, 8;
    /// Forgets a guest; its context becomes a firmware page.
    SnpDecommission = 0x090, 8;
    /// Binds a guest to an ASID.
    SnpActivate = 0x091, 12;
    /// Tells a guest's policy, ASID and state.
    SnpGuestStatus = 0x092, 16;
    /// Makes a firmware page a guest's context.
    SnpGctxCreate = 0x093, 8;
    /// Answers a guest's encrypted message.
    SnpGuestRequest = 0x094, 24;
    /// As SNP_ACTIVATE, for some CPUs.
    SnpActivateEx = 0x095, 32;
    /// Begins a launch.
    SnpLaunchStart = 0x0a0, 48;
    /// Measures and encrypts a page.
    SnpLaunchUpdate = 0x0a1, 32;
    /// Ends a launch.
    SnpLaunchFinish = 0x0a2, 64;
    /// Gives a page back to the host.
    SnpPageReclaim = 0x0c7, 8;
    /// Sets what reports show.
    SnpConfig = 0x0c9, 64;
    /// Makes the running version the least acceptable one.
    SnpCommit = 0x0cb, 4;
}
