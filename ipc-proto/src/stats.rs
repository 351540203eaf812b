//! Statistics of a VM and of its vCPUs, as blocks in KVM's binary format (Linux's Documentation/virt/kvm/api.rst,
//! KVM_GET_STATS_FD), byte for byte: a [`Header`], an id, [`Desc`]riptors, then values of 64 bits. All little endian.
//!
//! Each block lies in a page of its own among those that a vmm shares with the console: page [`VM_PAGE`] for the VM, page
//! [`vcpu_page`] for a vCPU. The vmm writes all but the values once, at its start, and the values whenever they change, each by
//! one store. Nobody takes a lock, so one value may be newer than the next: nothing is promised across statistics.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::MAX_VCPUS;
use crate::addr::PAGE_SIZE;

/// Where the pages that this service shares begin in its address space, in bytes: between its rings and its lease window.
pub const SHARES: u64 = 0x3180_0000;
/// Pages that a service shares at the most, with everybody together.
pub const MAX_SHARED_PAGES: u64 = (crate::layout::LEASE - SHARES) / PAGE_SIZE;
/// Page of the VM's block.
pub const VM_PAGE: usize = 0;
/// Pages of a VM's blocks.
pub const PAGES: usize = 1 + MAX_VCPUS;
/// Doorbell bit (to a vmm): somebody reads its statistics, so what others have to be asked for should be new.
pub const READ: u64 = 1 << 31;

/// Bytes of the id, and of a descriptor's name, each with a zero at its end.
pub const NAME: usize = 48;
/// Values that a block has at the most.
const WORDS: usize = PAGE_SIZE as usize / 8;

/// Page of a vCPU's block, among those of its VM.
pub const fn vcpu_page(index: usize) -> usize {
    1 + index
}

/// What kind of value a statistic is: bits 3:0 of [`Desc::flags`].
pub mod kind {
    /// The bits.
    pub const MASK: u32 = 0xf;
    /// Only grows.
    pub const CUMULATIVE: u32 = 0;
    /// Grows and shrinks.
    pub const INSTANT: u32 = 1;
    /// The greatest that was seen.
    pub const PEAK: u32 = 2;
    /// Buckets of the same size, the last one open.
    pub const LINEAR: u32 = 3;
    /// Buckets: 0, then from each power of two to the next, the last one open.
    pub const LOG: u32 = 4;
}

/// Its unit: bits 7:4 of [`Desc::flags`].
pub mod unit {
    /// The bits.
    pub const MASK: u32 = 0xf << 4;
    /// None: it is counted.
    pub const NONE: u32 = 0 << 4;
    /// Bytes.
    pub const BYTES: u32 = 1 << 4;
    /// Seconds.
    pub const SECONDS: u32 = 2 << 4;
    /// Ticks of the time-stamp counter.
    pub const CYCLES: u32 = 3 << 4;
    /// 0 or 1.
    pub const BOOLEAN: u32 = 4 << 4;
}

/// What [`Desc::exponent`] is the exponent of: bits 11:8 of [`Desc::flags`].
pub mod base {
    /// The bits.
    pub const MASK: u32 = 0xf << 8;
    /// Ten.
    pub const TEN: u32 = 0 << 8;
    /// Two.
    pub const TWO: u32 = 1 << 8;
}

/// The beginning of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Zero.
    pub flags: u32,
    /// Bytes of the id, and of each name: [`NAME`].
    pub name_size: u32,
    /// Descriptors.
    pub num_desc: u32,
    /// Where the id begins, in bytes from the header.
    pub id_offset: u32,
    /// Where the descriptors begin.
    pub desc_offset: u32,
    /// Where the values begin.
    pub data_offset: u32,
}
const _: () = assert!(size_of::<Header>() == 24);

/// What a statistic is and where its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Desc {
    /// One of [`kind`], one of [`mod@unit`], one of [`base`].
    pub flags: u32,
    /// A value is in units of the base to the power of this.
    pub exponent: i16,
    /// How many values: more than one are the buckets of a histogram.
    pub size: u16,
    /// Where the first value is, in bytes from the first of the block.
    pub offset: u32,
    /// How large a bucket of a linear histogram is; else zero.
    pub bucket_size: u32,
    /// Name, and zeros.
    pub name: [u8; NAME],
}
const _: () = assert!(size_of::<Desc>() == 64);

/// A statistic.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Its name.
    pub name: &'static str,
    /// As in [`Desc::flags`]; the exponent is 0.
    pub flags: u32,
    /// As in [`Desc::size`].
    pub size: u16,
}

/// Buckets of a histogram of latency. The last begins at 2 to the power of 30 ticks.
pub const BUCKETS: u16 = 32;

/// The bucket of a logarithmic histogram with `buckets` that a value is counted in.
#[inline]
pub const fn bucket(value: u64, buckets: u16) -> usize {
    let bits = (u64::BITS - value.leading_zeros()) as usize;
    let last = buckets.saturating_sub(1) as usize;
    if bits < last { bits } else { last }
}

/// Declares a block's statistics.
macro_rules! statistics {
    ($(#[$meta:meta])* $name:ident, $all:ident {
        $($(#[$smeta:meta])* $stat:ident $text:literal $kind:ident $unit:ident $size:expr;)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$smeta])* $stat),* }

        /// Its statistics, in the order of their values.
        pub const $all: &[Stat] =
            &[$(Stat { name: $text, flags: kind::$kind | unit::$unit, size: $size }),*];
        const _: () = assert!(fits($all), "a name is too long, or the block for a page");

        impl $name {
            /// Its first value's place among the block's.
            #[inline]
            pub const fn word(self) -> usize {
                const PLACES: [usize; $all.len()] = places($all);
                PLACES[self as usize]
            }

            /// How many values the block has.
            pub const WORDS: usize = words($all);
        }
    };
}

statistics! {
    /// What is counted of a vCPU. Names that KVM has, too, mean what they mean there.
    VcpuStat, VCPU {
        /// Exits that the vmm handled: the sum of their reasons when they were last asked for.
        Exits "exits" CUMULATIVE NONE 1;
        /// Of these: IN, OUT and their string forms.
        Ports "io_exits" CUMULATIVE NONE 1;
        /// Nested faults where there is no memory: devices.
        Mmio "mmio_exits" CUMULATIVE NONE 1;
        /// Nested faults on memory.
        Faults "pf_taken" CUMULATIVE NONE 1;
        /// Of the latter, those after which memory was there.
        FaultsFixed "pf_fixed" CUMULATIVE NONE 1;
        /// RDMSR and WRMSR.
        Msrs "msr_exits" CUMULATIVE NONE 1;
        /// HLT.
        Halts "halt_exits" CUMULATIVE NONE 1;
        /// The guest became able to take an interrupt.
        Windows "irq_window_exits" CUMULATIVE NONE 1;
        /// The guest executed the IRET that ends an NMI's handler.
        NmiWindows "nmi_window_exits" CUMULATIVE NONE 1;
        /// VMMCALL.
        Hypercalls "hypercalls" CUMULATIVE NONE 1;
        /// CPUID, where the kernel hasn't the answer.
        Cpuid "cpuid_exits" CUMULATIVE NONE 1;
        /// Control and debug registers, XSETBV.
        Controls "cr_exits" CUMULATIVE NONE 1;
        /// Exceptions of the guest that are intercepted.
        Exceptions "exception_exits" CUMULATIVE NONE 1;
        /// A deadline came.
        Timers "timer_exits" CUMULATIVE NONE 1;
        /// A kick arrived.
        Kicks "kick_exits" CUMULATIVE NONE 1;
        /// Of these, those that found nothing to be done.
        SpuriousKicks "kick_exits_spurious" CUMULATIVE NONE 1;
        /// Everything else.
        Others "other_exits" CUMULATIVE NONE 1;
        /// WBINVD and WBNOINVD: what the kernel counted, and what the vmm skipped.
        WriteBacks "wbinvd_exits" CUMULATIVE NONE 1;
        /// Kicks sent to this vCPU.
        KicksSent "kicks_sent" CUMULATIVE NONE 1;
        /// Kicks that weren't needed, for one was on its way.
        KicksMerged "kicks_merged" CUMULATIVE NONE 1;
        /// Interrupts injected.
        Interrupts "irq_injections" CUMULATIVE NONE 1;
        /// NMIs injected.
        Nmis "nmi_injections" CUMULATIVE NONE 1;
        /// Exceptions injected.
        Injected "exception_injections" CUMULATIVE NONE 1;
        /// How long it was halted, from the exit until it ran again.
        HaltWait "halt_wait_hist" LOG CYCLES BUCKETS;
    }
}

statistics! {
    /// What is counted of a VM.
    VmStat, VM {
        /// vCPUs that it has.
        Vcpus "vcpus" INSTANT NONE 1;
        /// Memory that it was configured with.
        Memory "memory" INSTANT BYTES 1;
        /// Frames mapped in it: its memory, as far as that is backed.
        Mapped "frames_mapped" INSTANT NONE 1;
        /// Of these, those that the guest has for itself.
        Private "frames_private" INSTANT NONE 1;
        /// Frames that the kernel has for it: nested tables, VMCBs, state pages.
        Kernel "frames_kernel" INSTANT NONE 1;
        /// Frames taken from it that wait for their write-back.
        Quarantined "frames_quarantined" INSTANT NONE 1;
        /// Frames that it was promised and hasn't yet.
        Promised "frames_promised" INSTANT NONE 1;
        /// Frames that memory took from it.
        Reclaimed "frames_reclaimed" CUMULATIVE NONE 1;
        /// How often memory asked the kernel to take pages from it, each with a shootdown if any page was mapped.
        FlushRequests "remote_tlb_flush_requests" CUMULATIVE NONE 1;
        /// How often there was one.
        Flushes "remote_tlb_flush" CUMULATIVE NONE 1;
        /// Notices of frames that left it, which notifier read.
        Notices "notifications" CUMULATIVE NONE 1;
        /// Of these, those whose batch was settled already.
        Spurious "notifications_spurious" CUMULATIVE NONE 1;
        /// Write-backs that notifier asked the kernel for.
        WriteBacks "writebacks_asked" CUMULATIVE NONE 1;
        /// Of these, those that every CPU has done.
        WriteBacksDone "writebacks_done" CUMULATIVE NONE 1;
        /// Batches that owed no write-back.
        OwedNothing "batches_owed_nothing" CUMULATIVE NONE 1;
        /// Frames that its network card sent.
        NetSent "net_frames_sent" CUMULATIVE NONE 1;
        /// Bytes of those that were frames.
        NetSentBytes "net_bytes_sent" CUMULATIVE BYTES 1;
        /// Of those sent, how many nobody took.
        NetLost "net_frames_lost" CUMULATIVE NONE 1;
        /// Frames that its card received.
        NetReceived "net_frames_received" CUMULATIVE NONE 1;
        /// Bytes of these.
        NetReceivedBytes "net_bytes_received" CUMULATIVE BYTES 1;
        /// Frames for it that its driver's buffers were too short for.
        NetCut "net_frames_cut" CUMULATIVE NONE 1;
        /// Frames for it that its port of the switch had no room for.
        NetMissed "net_frames_missed" CUMULATIVE NONE 1;
        /// What people want the guest's balloon to hold.
        BalloonAsked "balloon_asked" INSTANT BYTES 1;
        /// What it is to hold, with what others need.
        BalloonTarget "balloon_target" INSTANT BYTES 1;
        /// What its driver says that it holds.
        BalloonActual "balloon_actual" INSTANT BYTES 1;
        /// What it can be asked for at the most; 0 without a balloon.
        BalloonMost "balloon_most" INSTANT BYTES 1;
        /// Memory that is plugged.
        Plugged "memory_plugged" INSTANT BYTES 1;
        /// How much of it is wanted.
        PlugWanted "memory_plug_wanted" INSTANT BYTES 1;
        /// How much of it there can be; 0 where none can be plugged.
        PlugMost "memory_plug_most" INSTANT BYTES 1;
        /// How long the vmm took to ask memory for a page that the guest lacked.
        Populate "populate_cycles_hist" LOG CYCLES BUCKETS;
    }
}

const fn words(stats: &[Stat]) -> usize {
    let (mut at, mut sum) = (0, 0);
    while at < stats.len() {
        sum += stats[at].size as usize;
        at += 1;
    }
    sum
}

const fn places<const N: usize>(stats: &[Stat]) -> [usize; N] {
    let (mut places, mut at, mut sum) = ([0; N], 0, 0);
    while at < N {
        places[at] = sum;
        sum += stats[at].size as usize;
        at += 1;
    }
    places
}

const fn fits(stats: &[Stat]) -> bool {
    let mut at = 0;
    while at < stats.len() {
        if stats[at].name.len() >= NAME || stats[at].size == 0 {
            return false;
        }
        at += 1;
    }
    data_word(stats) + words(stats) <= WORDS
}

/// Where the values of a block with these statistics begin, in words from its header.
pub const fn data_word(stats: &[Stat]) -> usize {
    (size_of::<Header>() + NAME + stats.len() * size_of::<Desc>()) / 8
}

/// A block's id: "kvm-" and the VM's name, for a vCPU with "/vcpu-" and its index. A name is cut where it doesn't fit.
pub fn id(vm: &str, vcpu: Option<u8>) -> [u8; NAME] {
    let mut id = [0; NAME];
    let digits = vcpu.map(|index| [b'0' + index / 100, b'0' + index / 10 % 10, b'0' + index % 10]);
    let digits = digits.as_ref().map_or(&[][..], |all| {
        let zeros = all.iter().take(2).take_while(|digit| **digit == b'0').count();
        all.get(zeros..).unwrap_or_default()
    });
    let middle = if vcpu.is_some() { "/vcpu-" } else { "" };
    let room = NAME - 1 - "kvm-".len() - middle.len() - digits.len();
    let parts = b"kvm-".iter().chain(vm.as_bytes().iter().take(room)).chain(middle.as_bytes()).chain(digits);
    id.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
    id
}

/// A page with a block of these statistics, all values 0.
pub fn block(stats: &[Stat], id: &[u8; NAME]) -> [u64; WORDS] {
    let mut page = [0; WORDS];
    let data = data_word(stats) * 8;
    let header = Header {
        flags: 0,
        name_size: NAME as u32,
        num_desc: stats.len() as u32,
        id_offset: size_of::<Header>() as u32,
        desc_offset: (size_of::<Header>() + NAME) as u32,
        data_offset: data as u32,
    };
    let mut offset = 0;
    let bytes: &mut [u8] = page.as_mut_bytes();
    let (head, descs) = bytes.split_at_mut(size_of::<Header>() + NAME);
    header.as_bytes().iter().chain(id).zip(head).for_each(|(from, to)| *to = *from);
    for (stat, place) in stats.iter().zip(descs.chunks_exact_mut(size_of::<Desc>())) {
        let mut name = [0; NAME];
        name.iter_mut().zip(stat.name.bytes()).for_each(|(to, from)| *to = from);
        let Stat { flags, size, .. } = *stat;
        place.copy_from_slice(Desc { flags, exponent: 0, size, offset, bucket_size: 0, name }.as_bytes());
        offset += u32::from(size) * 8;
    }
    page
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn values_follow_each_other_in_the_order_of_their_descriptors() {
        assert_eq!(VcpuStat::Exits.word(), 0);
        assert_eq!(VcpuStat::HaltWait.word() + usize::from(BUCKETS), VcpuStat::WORDS);
        assert_eq!(VCPU[VcpuStat::HaltWait as usize].name, "halt_wait_hist");
        let page = block(VCPU, &id("a", Some(7)));
        let (header, rest) = Header::ref_from_prefix(page.as_bytes()).unwrap();
        assert_eq!(header.num_desc as usize, VCPU.len());
        let (_, descs) = rest.split_at(NAME);
        let (descs, _) = <[Desc]>::ref_from_prefix_with_elems(descs, VCPU.len()).unwrap();
        assert_eq!(descs[VcpuStat::Nmis as usize].offset as usize, VcpuStat::Nmis.word() * 8);
        assert!(descs[1].name.starts_with(b"io_exits\0"));
    }

    #[test]
    fn an_id_ends_with_a_zero_whatever_the_name() {
        let text = |vm: &str, vcpu| std::string::String::from_utf8(id(vm, vcpu).to_vec()).unwrap();
        assert_eq!(text("guest", None).trim_end_matches('\0'), "kvm-guest");
        assert_eq!(text("guest", Some(0)).trim_end_matches('\0'), "kvm-guest/vcpu-0");
        assert_eq!(text("g", Some(117)).trim_end_matches('\0'), "kvm-g/vcpu-117");
        let long = text(&"n".repeat(99), Some(12));
        assert!(long.ends_with("nn/vcpu-12\0") && long.len() == NAME);
    }

    #[test]
    fn a_value_is_in_the_bucket_of_its_power_of_two() {
        for (value, place) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1 << 29, 30), (1 << 30, 31), (u64::MAX, 31)] {
            assert_eq!(bucket(value, BUCKETS), place, "{value}");
        }
        assert_eq!(bucket(5, 0), 0);
    }
}
