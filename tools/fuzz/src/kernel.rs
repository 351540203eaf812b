//! What ring 0 reads of what others wrote: the state page that a vmm shares, its replies, and the bundle.

use core::mem::offset_of;

use arbitrary::{Arbitrary, Unstructured};
use caisson_core::boot::Quirks;
use caisson_core::bundle::Bundle;
use caisson_core::svm::exits;
use caisson_core::svm::reset::reset;
use caisson_core::svm::state::{self, Extra, Limits, SVME, StatePage};
use caisson_core::svm::vmcb::Vmcb;
use caisson_proto::addr::PAGE_SIZE;
use caisson_proto::bundle::{Header, MAGIC, MapRecord, ServiceRecord};
use caisson_proto::kernel::{Access, Caps};
use caisson_proto::vcpu::{Groups, Resume, VcpuState};
use zerocopy::{FromZeros, IntoBytes};

use crate::edit::{Edit, edit};
use crate::guest::act::number;

/// VINTR and IRET: what a reply may ask for.
const ASKED_FOR: u32 = 1 << 4 | 1 << 20;
/// V_IRQ with its priority and what makes that count for nothing, in the interrupt word.
const V_IRQ: u64 = 1 << 8 | 0x1f << 16;
/// There, too: its vector.
const VECTOR: u64 = 0xff << 32;

struct Page(Vec<u64>);

impl StatePage for Page {
    fn get(&self, offset: usize) -> u64 {
        self.0[offset / 8]
    }
    fn set(&mut self, offset: usize, word: u64) {
        self.0[offset / 8] = word;
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// The vmm writes a word.
    Write(u8, #[arbitrary(with = number)] u64),
    /// The vmm replies.
    Resume {
        groups: u32,
        flags: u8,
        #[arbitrary(with = event)]
        inject: u64,
        rip: u64,
        rax: u64,
    },
    /// The guest was entered and left.
    Exit {
        code: u16,
        #[arbitrary(with = event)]
        int_info: u64,
        moved: bool,
        rcx: u64,
        info: u64,
    },
    /// The vCPU left before it was entered.
    NotEntered,
    /// The kernel fills groups.
    Save(u32),
    /// The kernel executes an instruction in the guest's place.
    Advance(u8),
}

fn event(u: &mut Unstructured) -> arbitrary::Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => 0,
        1 => number(u)?,
        // Vector, type, error code; valid.
        _ => u64::from(u.arbitrary::<u16>()? & 0x0fff) | 1 << 31 | u64::from(u.arbitrary::<u8>()?) << 32,
    })
}

/// What of a VMCB isn't the vmm's, whatever it writes or replies.
fn fixed(vmcb: &Vmcb) -> impl PartialEq + std::fmt::Debug + use<> {
    let control = &vmcb.control;
    let intercepts = (control.cr, control.dr, control.exceptions, control.intercepts.map(|word| word & !ASKED_FOR));
    let places = (control.iopm, control.msrpm, control.asid, control.nested, control.n_cr3);
    // A vector without V_IRQ means nothing.
    (intercepts, places, control.interrupt & !(V_IRQ | VECTOR))
}

/// The state page and replies: the rest of the VMCB stays the kernel's, and what would fault in ring 0 isn't loaded.
pub fn state_page(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let few = input.arbitrary().unwrap_or(false);
    let limits =
        Limits { xcr0: 7, quirks: Quirks { assume_wbnoinvd: false, few_error_codes: few, interrupts_by_virq: few } };
    let (mut vmcb, mut extra) = (Vmcb::new_zeroed(), Extra::default());
    reset(&mut vmcb, &mut extra);
    (vmcb.control.iopm, vmcb.control.msrpm, vmcb.control.asid, vmcb.control.n_cr3) = (0x1000, 0x4000, 1, 0x7000);
    let kept = fixed(&vmcb);
    let mut page = Page(vec![0; 512]);
    state::save(&mut page, Groups::all(), &mut vmcb, &mut extra);
    // A vmm loads every group before the vCPU runs.
    state::load(&page, Groups::all(), &mut vmcb, &mut extra, &limits).expect("x87 alone");
    for _ in 0..200 {
        let Ok(step) = input.arbitrary::<Step>() else { return };
        let is_over = input.is_empty();
        one(step, &mut page, &mut vmcb, &mut extra, &limits);
        assert!(fixed(&vmcb) == kept, "{:?} is {:?}", kept, fixed(&vmcb));
        assert_eq!(vmcb.save.efer & SVME, SVME);
        assert!(vmcb.save.efer & 1 << 8 == 0 || vmcb.save.cr0 & 1 << 31 != 0, "LME without paging");
        assert!(vmcb.save.cpl <= 3 && vmcb.control.shadow <= 1 && vmcb.save.rflags & 2 == 2);
        assert!(extra.xcr0 & 1 == 1 && extra.xcr0 & 6 != 4 && extra.xcr0 & !limits.xcr0 == 0);
        assert_eq!(extra.tsc_aux >> 32, 0, "WRMSR would fault");
        if is_over {
            return;
        }
    }
}

fn one(step: Step, page: &mut Page, vmcb: &mut Vmcb, extra: &mut Extra, limits: &Limits) {
    match step {
        Step::Write(word, value) => page.0[usize::from(word)] = value,
        Step::Resume { groups, flags, inject, rip, rax } => {
            let groups = Groups::from_bits_truncate(groups);
            let flag = |bit: u8| flags >> bit & 1 == 1;
            let reply = Resume {
                window: flag(0),
                iret: flag(1),
                clear_shadow: flag(2),
                replace: flag(3),
                groups,
                inject,
                ..Resume::at(rip, rax)
            };
            let before = (*vmcb, *extra);
            if state::resume(page, &reply, vmcb, extra, limits).is_err() {
                assert_eq!(vmcb.as_bytes(), before.0.as_bytes(), "refused, and changed all the same");
                assert_eq!(*extra, before.1, "refused, and changed all the same");
            }
        }
        Step::Exit { code, int_info, moved, rcx, info } => {
            exits::before(vmcb, extra);
            vmcb.control.int_info = int_info;
            vmcb.save.rip = vmcb.save.rip.wrapping_add(moved.into());
            exits::after(code, vmcb, extra, || limits.quirks.interrupts_by_virq);
            let by_virq = vmcb.control.event == 0 && vmcb.control.interrupt >> 32 == extra.event & 0xff;
            assert!(extra.event == vmcb.control.event || limits.quirks.interrupts_by_virq && by_virq);
            exits::flags(vmcb, extra, 0);
            state::save(page, exits::groups(code, info, rcx), vmcb, extra);
        }
        Step::NotEntered => exits::drop_fresh(vmcb, extra),
        Step::Save(groups) => {
            state::save(page, Groups::from_bits_truncate(groups), vmcb, extra);
            if Groups::from_bits_truncate(groups).contains(Groups::CONTROL) {
                assert_eq!(page.get(offset_of!(VcpuState, save.efer)) & SVME, 0, "the vmm is shown SVME");
            }
        }
        Step::Advance(length) => exits::advance(vmcb, length.into()),
    }
}

/// A bundle of three services and two pages that they share.
fn valid() -> Vec<u8> {
    let pages = 4;
    let header = Header { magic: MAGIC, services: 3, maps: 9, pages, shared: 2 };
    let mut bytes = header.as_bytes().to_vec();
    for slot in 0..3_u16 {
        let mut record = ServiceRecord::new_zeroed();
        (record.rank, record.interrupt) = (slot * 10, u16::MAX);
        record.caps = if slot == 0 { Caps::SUPERVISE.bits() } else { 0 };
        record.may_call = if slot < 2 { 1 << (slot + 1) } else { 0 };
        bytes.extend(record.as_bytes());
    }
    for service in 0..3 {
        let (read, write) = (u32::from(Access::READ.bits()), u32::from(Access::WRITE.bits()));
        let text = MapRecord {
            page: 0x400,
            first: 1,
            file_pages: 1,
            pages: 1,
            access: read,
            service,
            kind: MapRecord::BUNDLE,
        };
        let access = read | write;
        let own = MapRecord { page: 0x500, first: 2, file_pages: 2, pages: 8, access, service, kind: MapRecord::OWN };
        let shared =
            MapRecord { page: 0x900, first: 0, file_pages: 0, pages: 2, access, service, kind: MapRecord::SHARED };
        bytes.extend([text, own, shared].as_bytes());
    }
    bytes.resize((pages * PAGE_SIZE) as usize, 0);
    bytes
}

/// The bundle: what is accepted lies inside it, calls go uphill, one service supervises.
pub fn bundle(data: &[u8]) {
    let Ok(edits) = Unstructured::new(data).arbitrary::<Vec<Edit>>() else { return };
    let mut bytes = valid();
    edit(&mut bytes, &edits);
    // Aligned, as a boot loader leaves it.
    let mut words = vec![0_u64; bytes.len() / 8];
    words.as_mut_bytes().iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
    let Ok(bundle) = Bundle::parse(words.as_bytes()) else { return };
    let pages = bundle.bytes.len() as u64 / PAGE_SIZE;
    assert!(bundle.services[bundle.supervisor].caps & Caps::SUPERVISE.bits() != 0);
    for (slot, service) in bundle.services.iter().enumerate() {
        for target in (0..64).filter(|target| service.may_call >> target & 1 == 1) {
            assert!(bundle.services[target].rank > service.rank, "{slot} calls {target}");
        }
    }
    for map in bundle.maps {
        assert!(usize::from(map.service) < bundle.services.len());
        let end = |count: u32| map.first + u64::from(count);
        match map.kind {
            MapRecord::BUNDLE => {
                assert!(end(map.pages) <= pages && map.access & u32::from(Access::WRITE.bits()) == 0);
            }
            MapRecord::OWN => assert!(end(map.file_pages) <= pages && map.file_pages <= map.pages),
            MapRecord::SHARED => assert!(end(map.pages) <= bundle.header.shared),
            kind => panic!("kind {kind}"),
        }
    }
}
