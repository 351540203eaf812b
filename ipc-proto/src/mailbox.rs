//! The secure processor's commands as the kernel sees them: how long their buffers are, and what in them is the
//! kernel's to fill in.
//!
//! Sources: 55766 (SEV API) chapters 5 and 6, 56860 (SNP firmware ABI) chapter 8. Whoever rings never writes an address or a
//! handle: where a command has one, the kernel puts it there, from its own tables or as the field's [`Kind`] says.

use Kind::{Asid, Context, Data, Firmware, Guest, Handle, Nothing, Reclaim};
use Length::{At, Bytes};

/// What a field of a command's buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The VM's handle, 4 bytes. Filled in; after LAUNCH_START taken out.
    Handle,
    /// The VM's ASID, 4 bytes. Filled in.
    Asid,
    /// The address of the VM's context page, 8 bytes. Filled in.
    Context,
    /// A private page of the VM: the ringer writes a guest-physical address, 8 bytes; so many bytes from there on lie
    /// in one mapping.
    Guest(Length),
    /// A part of the command's data: the ringer writes an offset in it, 8 bytes; a length of 0 leaves the field alone.
    Data(Length),
    /// Frames that were donated to the processor: the ringer writes their address, 8 bytes.
    Firmware(Length),
    /// A page of 4 KiB to be reclaimed: the ringer writes [`RECLAIM_CONTEXT`], [`RECLAIM_MAILBOX`], or the
    /// guest-physical address of a private page plus [`RECLAIM_GUEST`].
    Reclaim,
    /// An address, 8 bytes, that has to be 0: what it is for isn't offered.
    Nothing,
}

/// How long what an address names is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Bytes(u32),
    /// As the 4 bytes at this offset of the buffer say.
    At(u8),
}

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its number.
    pub number: u16,
    /// Bytes of its buffer; 0 for none.
    pub length: u8,
    /// Whether the processor writes to its buffer or its data: with SEV-SNP initialised those must be the processor's then.
    pub writes: bool,
    /// Where in it are the fields that the kernel looks at.
    pub fields: &'static [(u8, Kind)],
}

/// The VM's context page.
pub const RECLAIM_CONTEXT: u64 = 0;
/// The last page of the mailbox's that is the processor's.
pub const RECLAIM_MAILBOX: u64 = 1;
/// A page of the VM's.
pub const RECLAIM_GUEST: u64 = 2;

macro_rules! commands {
    ($($name:ident = $number:literal, $length:literal, $writes:ident, $fields:expr;)*) => {
        $(#[doc = "See [`COMMANDS`]."] pub const $name: u16 = $number;)*

        /// Every command that can be rung: first those of the platform, then those of SEV guests, then SNP's.
        pub const COMMANDS: &[Command] =
            &[$(Command { number: $number, length: $length, writes: $writes, fields: &$fields }),*];
    };
}

commands! {
    INIT = 0x01, 20, false, [(8, Firmware(At(16)))]; SHUTDOWN = 0x02, 0, false, []; PLATFORM_RESET = 0x03, 0, false, [];
    INIT_EX = 0x0d, 36, true, [(8, Firmware(At(16))), (24, Data(At(32)))];
    PLATFORM_STATUS = 0x04, 12, true, []; DF_FLUSH = 0x0a, 0, false, []; PEK_GEN = 0x05, 0, false, [];
    PDH_GEN = 0x09, 0, false, []; PEK_CSR = 0x06, 12, true, [(0, Data(At(8)))]; GET_ID = 0x0c, 12, true, [(0, Data(At(8)))];
    PEK_CERT_IMPORT = 0x07, 28, false, [(0, Data(At(8))), (16, Data(At(24)))];
    PDH_CERT_EXPORT = 0x08, 28, true, [(0, Data(At(8))), (16, Data(At(24)))];

    LAUNCH_START = 0x30, 36, true, [(0, Handle), (8, Data(At(16))), (24, Data(At(32)))];
    ACTIVATE = 0x21, 8, false, [(0, Handle), (4, Asid)]; DEACTIVATE = 0x22, 4, false, [(0, Handle)];
    DECOMMISSION = 0x20, 4, false, [(0, Handle)]; GUEST_STATUS = 0x23, 13, true, [(0, Handle)];
    LAUNCH_UPDATE_DATA = 0x31, 20, false, [(0, Handle), (8, Guest(At(16)))];
    LAUNCH_UPDATE_VMSA = 0x32, 20, false, [(0, Handle), (8, Guest(At(16)))];
    LAUNCH_MEASURE = 0x33, 20, true, [(0, Handle), (8, Data(At(16)))];
    ATTESTATION = 0x36, 36, true, [(0, Handle), (8, Data(At(32)))]; LAUNCH_FINISH = 0x35, 4, false, [(0, Handle)];
    LAUNCH_SECRET = 0x34, 52, false, [(0, Handle), (8, Data(At(16))), (24, Guest(At(32))), (40, Data(At(48)))];

    SNP_INIT_EX = 0x85, 64, false, [(8, Nothing)]; SNP_SHUTDOWN_EX = 0x86, 8, false, []; SNP_DF_FLUSH = 0x84, 0, false, [];
    SNP_PLATFORM_STATUS = 0x83, 8, true, [(0, Data(Bytes(32)))]; SNP_CONFIG = 0xc9, 64, false, []; SNP_COMMIT = 0xcb, 4, false, [];
    SNP_GCTX_CREATE = 0x93, 8, false, [(0, Context)]; SNP_ACTIVATE = 0x91, 12, false, [(0, Context), (8, Asid)];
    SNP_DECOMMISSION = 0x90, 8, false, [(0, Context)]; SNP_PAGE_RECLAIM = 0xc7, 8, false, [(0, Reclaim)];
    SNP_GUEST_STATUS = 0x92, 16, true, [(0, Context), (8, Data(Bytes(32)))];
    SNP_GUEST_REQUEST = 0x94, 24, true, [(0, Context), (8, Data(Bytes(4096))), (16, Data(Bytes(4096)))];
    SNP_LAUNCH_START = 0xa0, 48, false, [(0, Context), (16, Nothing)];
    SNP_LAUNCH_UPDATE = 0xa1, 32, false, [(0, Context), (16, Guest(Bytes(4096)))];
    SNP_LAUNCH_FINISH = 0xa2, 64, false, [(0, Context), (8, Data(Bytes(96))), (16, Data(Bytes(4096)))];
}

/// Whether a command is about one guest.
pub fn names_guest(command: u16) -> bool {
    let names = |(_, kind): &(u8, Kind)| matches!(kind, Kind::Handle | Kind::Context | Kind::Reclaim);
    COMMANDS.iter().any(|known| known.number == command && known.fields.iter().any(names))
}

/// Whether a command ends guests.
pub const fn ends(command: u16) -> bool {
    matches!(command, DEACTIVATE | SNP_DECOMMISSION) || ends_all(command)
}

/// Whether a command forgets all guests.
pub const fn ends_all(command: u16) -> bool {
    matches!(command, SHUTDOWN | SNP_SHUTDOWN_EX)
}

/// Bytes of data that a command can have.
pub const DATA_BYTES: u64 = 8 * crate::addr::PAGE_SIZE;
/// Pages of the service that stands in for the processor: registers, two buffers, data.
pub const PAGES: u32 = 3 + (DATA_BYTES / crate::addr::PAGE_SIZE) as u32;
/// Bytes of the longest buffer.
pub const BUFFER_BYTES: usize = 64;
/// Where the registers lie in the page that a board shares with the service standing in for the processor: command and
/// response, low and high half of the buffer's address. 32 bits each. 55766 chapter 4.
pub const REGISTERS: [usize; 3] = [0, 4, 8];
