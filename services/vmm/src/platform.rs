//! What the device models need of the world: memory, time, other vCPUs, a console.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa};
use caisson_proto::supervisor::ExitKind;
use caisson_proto::switch::Area;
use caisson_proto::vcpu::{CpuidEntry, Groups, VcpuState, code};

use crate::virtio::Trouble;

/// The vmm's surroundings: system calls in the image, a fake in tests.
pub trait Platform {
    /// Back guest memory with zeroed frames, as far as it isn't yet. At most 512 pages.
    ///
    /// # Errors
    /// What memory answered.
    fn populate(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status>;

    /// Give guest memory back: what is in it is lost. At most 512 pages, of one chunk.
    ///
    /// # Errors
    /// What memory answered.
    fn give_back(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status>;

    /// From now on, have what isn't there yet answered at once, and don't wait for it; or wait again.
    fn hurry(&mut self, _hurry: bool) {}

    /// Let a little time pass, 10 ms, in which others may give memory back.
    fn pause(&mut self) {}

    /// Have so many pages more of guest memory promised, or fewer.
    ///
    /// # Errors
    /// What memory answered: `Exhausted` if others were promised what there is.
    fn promise(&mut self, _pages: u64, _more: bool) -> Result<(), Status> {
        Ok(())
    }

    /// Back pages that the guest wants private. At most 512 pages.
    ///
    /// # Errors
    /// What memory answered: `State` if it doesn't know that they are to be private.
    fn populate_private(&mut self, _gfn: Gfn, _pages: u64) -> Result<(), Status> {
        Err(Status::Unsupported)
    }

    /// Make pages private, or shared again, where they lie. At most 512 pages. While they are private they can be neither read nor
    /// written here.
    ///
    /// # Errors
    /// What memory answered.
    fn convert(&mut self, _gfn: Gfn, _pages: u64, _private: bool) -> Result<(), Status> {
        Err(Status::Unsupported)
    }

    /// Copy guest memory out. Called for populated ranges only; `false` if it can't be read all the same.
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> bool;

    /// Copy into guest memory. Called for populated ranges only; `false` if it can't be written all the same.
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> bool;

    /// The machine's TSC.
    fn now(&self) -> u64;

    /// Make another vCPU exit with KICK.
    fn kick(&mut self, vcpu: u8);

    /// Load a stopped vCPU's whole state page and let it run.
    fn run(&mut self, vcpu: u8);

    /// Copy `groups` of a vCPU's registers into `state`; with [`Groups::CORE`], all general-purpose registers. The
    /// vCPU is the one whose exit is being handled; `current` of its groups were filled at the exit.
    fn fill(&mut self, vcpu: u8, groups: Groups, current: Groups, state: &mut VcpuState);

    /// Copy `groups` from `state` to a vCPU's state page; with [`Groups::CORE`], all general-purpose registers. The
    /// vCPU is stopped or the one whose exit is being handled.
    fn store(&mut self, vcpu: u8, groups: Groups, state: &VcpuState);

    /// A general-purpose register, by its encoding, of the vCPU whose exit is being handled. Not rax nor rsp.
    fn gpr(&self, vcpu: u8, number: usize) -> u64;

    /// Sets such a register.
    fn set_gpr(&mut self, vcpu: u8, number: usize, value: u64);

    /// Give a vCPU its CPUID table.
    ///
    /// # Errors
    /// What the kernel answered.
    fn load_cpuid(&mut self, vcpu: u8, entries: &[CpuidEntry]) -> Result<(), Status>;

    /// CPUID of the machine: eax, ebx, ecx, edx.
    fn host_cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// Put bytes on the VM's console; how many were taken.
    fn console_out(&mut self, bytes: &[u8]) -> usize;

    /// Pass the frames of a batch on, which has so many bytes; how many were dropped. `None` if nobody took it.
    fn send_frames(&mut self, _batch: &Area, _bytes: usize) -> Option<u64> {
        None
    }

    /// Fetch frames that wait for the guest as a batch: its bytes, and whether more wait. `None` if nobody gives any.
    fn fetch_frames(&mut self, _batch: &mut Area) -> Option<(usize, bool)> {
        None
    }

    /// Call whoever passes frames, who may have been restarted and forgotten the guest's card.
    fn call_switch(&mut self) {}

    /// Set a word of a page of the VM's [statistics](caisson_proto::stats), by one store.
    fn publish(&mut self, _page: usize, _word: usize, _value: u64) {}

    /// Add to such a word. Nobody else writes it.
    fn count(&mut self, _page: usize, _word: usize, _more: u64) {}

    /// How often a vCPU executed WBINVD, as the kernel has counted.
    fn wbinvds(&self, _vcpu: u8) -> u64 {
        0
    }

    /// The VM is over, for the reason and with the words of [`ExitKind`]. Doesn't return in the image; where it
    /// does, no vCPU runs any more.
    fn end(&mut self, kind: ExitKind, words: [u64; 4]);

    /// Something worth a line in the log happened.
    fn log(&mut self, event: Event);
}

/// What the kernel fills of a state page at an exit at least, so that nobody need ask for it: what decoding takes.
pub const fn filled(code: u16, info1: u64) -> Groups {
    const STRING: u64 = 1 << 2;
    const LAST_EXCEPTION: u16 = code::EXCEPTION + 31;
    match code {
        code::NPF | 0x00..=0x3f | code::CR0_SEL_WRITE => DECODE,
        code::EXCEPTION..=LAST_EXCEPTION => DECODE.union(Groups::DEBUG).union(Groups::EVENTS),
        code::IRET => Groups::CORE,
        code::IOIO if info1 & STRING != 0 => DECODE,
        _ => Groups::empty(),
    }
}

/// What decoding an instruction takes.
pub const DECODE: Groups = Groups::CORE.union(Groups::SEGMENTS).union(Groups::CONTROL);

/// What is worth a line in the log. Each kind is reported a bounded number of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest was placed in its memory: entry point, first byte after the kernel, start of the initrd.
    Loaded {
        /// Where vCPU 0 begins.
        entry: u64,
        /// One past the kernel's memory.
        kernel_end: u64,
        /// First byte of the initrd, 0 without one.
        initrd: u64,
    },
    /// A vCPU left wait-for-SIPI.
    Started {
        /// Which one.
        vcpu: u8,
        /// The SIPI's vector: it begins at vector × 4096.
        vector: u8,
    },
    /// RDMSR of an unknown register; the guest got #GP.
    UnknownMsrRead(u32),
    /// WRMSR of an unknown register or a wrong value; the guest got #GP.
    UnknownMsrWrite(u32, u64),
    /// An access to an address without memory or device.
    NoDevice(u64),
    /// An instruction that can't be emulated: exit code, rip, its first eight bytes.
    Unemulated {
        /// Exit code.
        code: u16,
        /// The guest's rip.
        rip: u64,
        /// The first eight bytes of it, little endian.
        bytes: u64,
    },
    /// memory refused to back a guest page.
    NoMemory(u64, Status),
    /// The guest asked to be switched off.
    PoweredOff,
    /// The guest ended itself by the debug exit, with this value.
    TestEnded(u32),
    /// The guest asked for a reset.
    Reset,
    /// Nothing can wake any vCPU.
    Hung,
    /// A vCPU shut down: triple fault.
    Shutdown {
        /// Which one.
        vcpu: u8,
        /// The guest's rip.
        rip: u64,
    },
    /// The guest says that its kernel panicked.
    Panicked,
    /// Something of a virtio device, by its number.
    Virtio(u8, Trouble),
    /// What a vCPU looked like when its VM crashed. Of a segment: selector, attributes, limit, base.
    Epitaph {
        /// What the values are.
        name: &'static str,
        /// Registers, or memory.
        values: [u64; 4],
    },
}
