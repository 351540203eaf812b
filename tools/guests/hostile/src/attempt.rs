//! One attempt: code and registers in a mode, and how it ended.

use crate::modes::{CODE32, CODE64, DATA, USER_DATA, USER_DATA32, USER32, USER64};
use crate::raw::{CODE, FRAME, REAL_STACK, STACK, fill, get, put, put_bytes};
use crate::stubs::{hostile_attempt16, hostile_attempt32, hostile_attempt64};

/// The breakpoint with which code ends.
pub const END: u8 = 0xcc;
/// #DB.
pub const DB: u64 = 1;
/// RFLAGS: a trap after each instruction.
pub const TRAP: u64 = 1 << 8;
/// RFLAGS: interrupts on.
pub const INTERRUPTS: u64 = 1 << 9;

/// Where code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// Protected mode, 32 bits, ring 0.
    Protected,
    /// Long mode, ring 0.
    Long,
    /// Protected mode, ring 3.
    User32,
    /// Long mode, ring 3.
    User64,
    /// Long mode, ring 3, 32-bit code.
    Compatible,
}

impl Mode {
    /// Every mode that can do everything.
    pub const RULING: [Self; 3] = [Self::Real, Self::Protected, Self::Long];
    /// Every mode. QEMU checks no limit of a segment: only paging keeps what 32-bit users do away from this guest.
    pub const ALL: [Self; 6] = [Self::Real, Self::Protected, Self::Long, Self::User32, Self::User64, Self::Compatible];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Protected => "protected",
            Self::Long => "long",
            Self::User32 => "protected-user",
            Self::User64 => "long-user",
            Self::Compatible => "compatible-user",
        }
    }

    /// What is added to an offset in its code to have the physical address, as far as segments do it.
    pub fn base(self) -> u64 {
        match self {
            Self::Real | Self::User32 | Self::Compatible => CODE,
            _ => 0,
        }
    }
}

/// Registers before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frame {
    /// rax rbx rcx rdx rsi rdi rbp, r8 to r15.
    pub gpr: [u64; 15],
    /// Where it is.
    pub rip: u64,
    /// In which segment.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    /// Stack.
    pub rsp: u64,
    /// Its segment.
    pub ss: u64,
    /// The exception.
    pub vector: u64,
    /// Its error code; 1 << 32 if it has none.
    pub error: u64,
    /// CR2, whether or not this exception set it.
    pub cr2: u64,
    /// ds and es.
    pub ds: u64,
}

/// rax in [`Frame::gpr`].
pub const RAX: usize = 0;
/// rcx.
pub const RCX: usize = 2;
/// rdx.
pub const RDX: usize = 3;

impl Frame {
    /// At the beginning of [`CODE`], registers zero.
    pub fn new(mode: Mode) -> Self {
        let (cs, ss) = match mode {
            Mode::Real => (CODE >> 4, 0),
            Mode::Protected => (CODE32, DATA),
            Mode::Long => (CODE64, DATA),
            Mode::User32 | Mode::Compatible => (USER32, USER_DATA32),
            Mode::User64 => (USER64, USER_DATA),
        };
        let rsp = match mode {
            Mode::Real => REAL_STACK,
            Mode::User32 | Mode::Compatible => STACK - CODE,
            _ => STACK,
        };
        let ds = if mode == Mode::Real { CODE >> 4 } else { ss };
        Self { rip: CODE - mode.base(), cs, rsp, ss, ds, rflags: 2, ..Self::default() }
    }

    /// Runs until an exception or interrupt comes.
    pub fn run(self, mode: Mode) -> Self {
        put(FRAME, self);
        // SAFETY: the handlers come back here with all that Rust relies on as it was, whatever was tried, unless it
        // wrote to this guest's own memory; what is tried is chosen so that it doesn't.
        unsafe {
            match mode {
                Mode::Real => hostile_attempt16(),
                Mode::Protected | Mode::User32 => hostile_attempt32(),
                Mode::Long | Mode::User64 | Mode::Compatible => hostile_attempt64(),
            }
        }
        let mut after: Self = get(FRAME);
        if mode != Mode::Long && mode != Mode::User64 {
            after.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
        }
        after
    }

    /// How far from the beginning of [`CODE`] it got.
    pub fn reached(&self, mode: Mode) -> u64 {
        (self.rip + mode.base()).wrapping_sub(CODE)
    }

    /// In short: the vector, the error code, and how far it got.
    pub fn outcome(&self, mode: Mode) -> Outcome {
        let error = if self.error >> 32 == 0 { Some(self.error as u32) } else { None };
        Outcome { vector: self.vector as u8, error, reached: self.reached(mode) }
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exception.
    pub vector: u8,
    /// Its error code.
    pub error: Option<u32>,
    /// How far it got.
    pub reached: u64,
}

impl core::fmt::Display for Outcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.vector, self.error) {
            // It ran to its end.
            (3, None) => write!(f, "+{:x}", self.reached.wrapping_sub(1)),
            (vector, None) => write!(f, "{vector}@{:x}", self.reached),
            (vector, Some(error)) => write!(f, "{vector}({error:x})@{:x}", self.reached),
        }
    }
}

/// Puts code at [`CODE`], and breakpoints behind it.
pub fn place(code: &[u8]) {
    fill(CODE, 0x60, END);
    put_bytes(CODE, code);
}

/// Runs this code with registers zero.
pub fn attempt(mode: Mode, code: &[u8]) -> Frame {
    place(code);
    Frame::new(mode).run(mode)
}
