use core::mem::offset_of;

use caisson_proto::abi::Status;
use caisson_proto::vcpu::{Groups, Resume, Save, Segment, VcpuState};
use proptest::prelude::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::boot::Quirks;
use crate::svm::events::VALID;
use crate::svm::reset::{MSR_MAP, fill_msr_map, reset};
use crate::svm::state::{ABSENT, CR0_WRITES, Extra, Limits, SVME, StatePage, load, resume, save};
use crate::svm::vmcb::Vmcb;

const LIMITS: Limits = Limits {
    xcr0: 0x207,
    quirks: Quirks { assume_wbnoinvd: false, interrupts_by_virq: false, few_error_codes: false },
};

impl StatePage for VcpuState {
    fn get(&self, offset: usize) -> u64 {
        u64::read_from_bytes(&self.as_bytes()[offset..offset + 8]).unwrap()
    }
    fn set(&mut self, offset: usize, word: u64) {
        self.as_mut_bytes()[offset..offset + 8].copy_from_slice(&word.to_ne_bytes());
    }
}

fn vcpu() -> (Vmcb, Extra, VcpuState) {
    let (mut vmcb, mut extra) = (Vmcb::new_zeroed(), Extra::default());
    reset(&mut vmcb, &mut extra);
    let registers = Save { rip: 0xfff0, cr0: 0x6000_0010, rflags: 2, ..Save::default() };
    let mut page = VcpuState { save: registers, xcr0: 1, ..VcpuState::default() };
    load(&page, Groups::all(), &mut vmcb, &mut extra, &LIMITS).unwrap();
    save(&mut page, Groups::all(), &mut vmcb, &mut extra);
    (vmcb, extra, page)
}

/// 64-bit mode.
fn long_mode(page: &mut VcpuState) {
    page.cr0 = 0x8000_0011;
    page.cr4 = 0x20;
    page.efer = 0xd00;
    page.segments[1] = Segment { selector: 8, attributes: 0xa9b, limit: u32::MAX, base: 0 };
}

#[test]
fn what_the_vmm_loads_is_accepted_and_hides_svme() {
    let (mut vmcb, mut extra, page) = vcpu();
    assert_eq!((page.efer, extra.reload), (0, ABSENT));
    load(&page, Groups::all(), &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!(vmcb.save.efer, SVME);
    assert_eq!(extra.reload, ABSENT, "nothing is in a CPU, so everything is due");
}

/// Values whose load would fault in the kernel.
#[test]
fn what_would_fault_in_the_kernel_is_refused() {
    type Change = (&'static str, fn(&mut VcpuState));
    let changes: &[Change] = &[
        ("XCR0 without x87", |page| page.xcr0 = 2),
        ("AVX without SSE", |page| page.xcr0 = 5),
        ("XCR0 not of this machine", |page| page.xcr0 = 0xe7),
    ];
    for (what, change) in changes {
        let (mut vmcb, mut extra, mut page) = vcpu();
        long_mode(&mut page);
        load(&page, Groups::all(), &mut vmcb, &mut extra, &LIMITS).unwrap();
        let before = (vmcb, extra);
        change(&mut page);
        page.rip = 0x1234;
        let result = load(&page, Groups::all(), &mut vmcb, &mut extra, &LIMITS);
        assert_eq!(result, Err(Status::Range), "{what}");
        assert_eq!(vmcb.as_bytes(), before.0.as_bytes(), "{what}: something was loaded");
        assert_eq!(extra, before.1, "{what}: something was loaded");
    }
}

#[test]
fn what_does_not_fit_is_cut_off() {
    let (mut vmcb, mut extra, mut page) = vcpu();
    (page.cpl, page.tsc_aux, page.shadow, page.rflags) = (7, 5 << 32 | 9, 3, u64::MAX);
    page.efer = SVME;
    load(&page, Groups::all(), &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.save.cpl, extra.tsc_aux, vmcb.control.shadow, vmcb.save.efer), (3, 9, 1, SVME));
    assert_eq!(vmcb.save.rflags, 0x003f_7fd7);
    save(&mut page, Groups::all(), &mut vmcb, &mut extra);
    assert_eq!(page.efer, 0);
}

#[test]
fn long_mode_is_enabled_for_the_cpu_while_paging_is_on_and_for_the_vmm_always() {
    const LME: u64 = 1 << 8;
    let (mut vmcb, mut extra, mut page) = vcpu();
    for (cr0, cpus) in [(0x11, 0), (0x8000_0011, LME), (0x11, 0)] {
        (page.cr0, page.efer) = (cr0, LME);
        load(&page, Groups::CONTROL, &mut vmcb, &mut extra, &LIMITS).unwrap();
        assert_eq!(vmcb.save.efer, SVME | cpus);
        load(&page, Groups::CORE, &mut vmcb, &mut extra, &LIMITS).unwrap();
        assert_eq!(vmcb.save.efer, SVME | cpus, "other groups don't count");
        page.efer = 0;
        save(&mut page, Groups::CONTROL, &mut vmcb, &mut extra);
        assert_eq!(page.efer, LME);
    }
    page.efer = 0;
    load(&page, Groups::CONTROL, &mut vmcb, &mut extra, &LIMITS).unwrap();
    save(&mut page, Groups::CONTROL, &mut vmcb, &mut extra);
    assert_eq!((vmcb.save.efer, page.efer), (SVME, 0), "it is gone when the vmm says so");
    // Where nobody would see paging come, the CPU has it always.
    vmcb.control.intercepts[0] &= !CR0_WRITES;
    page.efer = LME;
    load(&page, Groups::CONTROL, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!(vmcb.save.efer, SVME | LME);
    page.efer = 0;
    save(&mut page, Groups::CONTROL, &mut vmcb, &mut extra);
    assert_eq!(page.efer, LME);
}

#[test]
fn an_event_waits_for_the_one_before() {
    let (mut vmcb, mut extra, mut page) = vcpu();
    let overflow = VALID | 3 << 8 | 4;
    let mut reply = Resume { inject: overflow, groups: Groups::all(), ..Resume::at(0, 0) };
    long_mode(&mut page);
    page.xcr0 = 0;
    assert_eq!(resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS), Err(Status::Range));
    assert_eq!((vmcb.save.cr0, vmcb.control.event), (0x6000_0010, 0));
    reply.groups = Groups::empty();
    resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.control.event, extra.event, extra.fresh), (overflow, overflow, 1));
    assert_eq!(resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS), Err(Status::Busy));
}

#[test]
fn an_event_takes_the_place_of_one_that_waits() {
    let (mut vmcb, mut extra, mut page) = vcpu();
    (extra.event, vmcb.control.event) = (VALID | 0x20, VALID | 0x20);
    save(&mut page, Groups::EVENTS, &mut vmcb, &mut extra);
    assert_eq!(page.event, VALID | 0x20);
    // What the page says of it counts for nothing.
    page.event = VALID | 0x30;
    load(&page, Groups::all() & !Groups::XCR0, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.control.event, extra.event), (VALID | 0x20, VALID | 0x20));
    // Nothing takes no place, and what is no event doesn't either.
    let mut reply = Resume { replace: true, ..Resume::at(0, 0) };
    resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.control.event, extra.event, extra.fresh), (VALID | 0x20, VALID | 0x20, 0));
    reply.inject = VALID | 1 << 12;
    assert_eq!(resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS), Err(Status::Malformed));
    assert_eq!(extra.event, VALID | 0x20);
    reply.inject = VALID | 3 << 8 | 6;
    resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.control.event, extra.event, extra.fresh), (reply.inject, reply.inject, 1));
}

#[test]
fn a_reply_moves_the_guest() {
    let (mut vmcb, mut extra, page) = vcpu();
    vmcb.control.shadow = 1;
    let reply = Resume { window: true, clear_shadow: true, ..Resume::at(0x55, 0x66) };
    resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.save.rip, vmcb.save.rax, vmcb.control.shadow), (0x55, 0x66, 0));
    assert_eq!((vmcb.control.interrupt >> 8 & 1, vmcb.control.intercepts[0] >> 4 & 1), (1, 1));
    resume(&page, &Resume::at(0x57, 0), &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!((vmcb.control.interrupt, vmcb.control.intercepts[0] >> 4 & 1), (1 << 24, 0));
    // With the group, the page counts.
    let reply = Resume { groups: Groups::CORE, ..Resume::at(0x55, 0x66) };
    resume(&page, &reply, &mut vmcb, &mut extra, &LIMITS).unwrap();
    assert_eq!(vmcb.save.rip, 0xfff0);
}

#[test]
fn the_guest_has_its_own_msrs_only() {
    let mut map = [0; MSR_MAP];
    fill_msr_map(&mut map);
    let bits = |byte: usize, shift: u32| map[byte] >> shift & 3;
    assert_eq!(bits(0x174 / 4, 0), 0); // SYSENTER_CS
    assert_eq!(bits(0x277 / 4, 6), 3); // PAT
    assert_eq!(bits(0x800 + 0x80 / 4, 0), 3); // EFER
    assert_eq!(bits(0x800 + 0x81 / 4, 2), 0); // STAR
    assert_eq!(bits(0x800 + 0x103 / 4, 6), 2); // TSC_AUX: writes leave the guest
    assert_eq!(map.iter().map(|byte| byte.count_zeros()).sum::<u32>(), 21);
}

proptest! {
    #![proptest_config(super::cases(256))]

    /// Whatever can be loaded is what is saved, and groups that aren't named change nothing.
    #[test]
    fn load_and_save_agree(words in prop::collection::vec(any::<u64>(), size_of::<VcpuState>() / 8), mask in any::<u32>()) {
        let (mut vmcb, mut extra, reset_page) = vcpu();
        let mut page = reset_page;
        for (at, word) in words.iter().enumerate() {
            let offset = at * 8;
            let reserved = [
                offset_of!(VcpuState, save.reserved_0a0)..offset_of!(VcpuState, save.cr4),
                offset_of!(VcpuState, save.reserved_180)..offset_of!(VcpuState, save.star),
                offset_of!(VcpuState, save.reserved_248)..offset_of!(VcpuState, save.pat),
            ];
            let judged = reserved.iter().any(|range| range.contains(&offset))
                || (offset_of!(VcpuState, save.cr4)..offset_of!(VcpuState, save.rflags)).contains(&offset)
                || [offset_of!(VcpuState, save.cr2), offset_of!(VcpuState, save.pat)].contains(&offset)
                || offset >= offset_of!(VcpuState, tsc_aux);
            if !judged {
                page.set(offset, *word);
            }
        }
        page.shadow &= 1;
        page.rflags = page.rflags & 0x003f_7fd5 | 2;
        let groups = Groups::from_bits_truncate(mask);
        load(&page, groups, &mut vmcb, &mut extra, &LIMITS).unwrap();
        let mut all = VcpuState::default();
        save(&mut all, Groups::all(), &mut vmcb, &mut extra);
        let mut named = reset_page;
        save(&mut named, groups, &mut vmcb, &mut extra);
        let mut expected = reset_page;
        // The other general-purpose registers are the world switch's.
        for number in [0, 4] {
            expected.gpr[number] = if groups.contains(Groups::CORE) { page.gpr[number] } else { 0 };
        }
        prop_assert_eq!(all.gpr, expected.gpr);
        prop_assert_eq!(named, all);
        let mut once_more = (vmcb, extra);
        load(&all, Groups::all(), &mut once_more.0, &mut once_more.1, &LIMITS).unwrap();
        prop_assert_eq!(once_more.0.as_bytes(), vmcb.as_bytes());
    }
}
