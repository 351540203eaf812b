use caisson_proto::abi::Status;
use caisson_proto::exits::code;
use caisson_proto::vcpu::Groups;
use proptest::prelude::*;
use zerocopy::FromZeros;

use crate::svm::events::{ERROR_CODE, EXCEPTION, INTERRUPT, NMI, SOFTWARE, VALID, again, check};
use crate::svm::exits;
use crate::svm::state::Extra;
use crate::svm::vmcb::Vmcb;

#[test]
fn what_was_broken_off_comes_again() {
    let cases = [
        // (EXITINTINFO, injected before, quirk, again)
        (0x30, 0, false, 0),
        (VALID | INTERRUPT | 0x30, 0, false, VALID | INTERRUPT | 0x30),
        (VALID | NMI | 2, 0, false, VALID | NMI | 2),
        (VALID | EXCEPTION | ERROR_CODE | 14 | 2 << 32, 0, false, VALID | EXCEPTION | ERROR_CODE | 14 | 2 << 32),
        // An error code that isn't valid is stale.
        (VALID | EXCEPTION | 6 | 9 << 32, 0, false, VALID | EXCEPTION | 6),
        // Asked for by an instruction, which is executed again.
        (VALID | SOFTWARE | 0x80, 0, false, 0),
        (VALID | EXCEPTION | 3, 0, false, 0),
        // But not if the vmm injected it.
        (VALID | SOFTWARE | 0x80, VALID | SOFTWARE | 0x80, false, VALID | SOFTWARE | 0x80),
        (VALID | EXCEPTION | 3, VALID | EXCEPTION | 3, false, VALID | EXCEPTION | 3),
        (VALID | SOFTWARE | 0x80, VALID | SOFTWARE | 0x81, false, 0),
        // A virtual interrupt on QEMU.
        (VALID | EXCEPTION | 0x30, 0, true, VALID | INTERRUPT | 0x30),
        (VALID | EXCEPTION | 0x30, 0, false, 0),
    ];
    for (info, injected, quirk, expected) in cases {
        assert_eq!(again(info, injected, quirk), expected, "{info:#x}");
    }
}

#[test]
fn what_may_be_injected() {
    let page_fault = VALID | EXCEPTION | ERROR_CODE | 14 | 4 << 32;
    let vc = VALID | EXCEPTION | ERROR_CODE | 29 | 1 << 32;
    for (word, few, expected) in [
        (0, true, Ok(())),
        (VALID | 0x20, false, Ok(())),
        (VALID | NMI | 77, false, Ok(())),
        (VALID | SOFTWARE | 0x80, false, Ok(())),
        (page_fault, true, Ok(())),
        (vc, false, Ok(())),
        (vc, true, Err(Status::Unsupported)),
        (0x20, false, Err(Status::Malformed)),
        (VALID | 1 << 12, false, Err(Status::Malformed)),
    ] {
        assert_eq!(check(word, few), expected, "{word:#x}");
    }
}

proptest! {
    #![proptest_config(super::cases(256))]

    /// What comes again is accepted again: nothing is lost or changed by breaking off twice.
    #[test]
    fn again_is_stable(info in any::<u64>()) {
        let once = again(info, 0, true);
        prop_assert_eq!(again(once, once, true), once);
    }
}

#[test]
fn exits_are_routed() {
    assert_eq!(exits::narrow(u64::MAX), code::INVALID);
    assert_eq!(exits::narrow(0xffff_ffff), code::INVALID);
    assert_eq!(exits::narrow(0xf001), code::INVALID); // a code of the kernel's own can't come from the CPU
    assert_eq!(exits::narrow(0x400), code::NPF);
    assert!(exits::is_interrupt(code::INTR) && !exits::is_interrupt(code::IOIO));
    for quiet in [code::HLT, code::VMMCALL, code::WBINVD, code::CPUID, code::KICK, code::TIMER, code::VINTR] {
        assert!(exits::groups(quiet, 0, 0).is_empty());
    }
    let decode = Groups::CORE | Groups::SEGMENTS | Groups::CONTROL;
    assert!(exits::groups(code::IOIO, 0x10, 0).is_empty());
    assert_eq!(exits::groups(code::IOIO, 0x14, 0), decode);
    assert_eq!(exits::groups(code::NPF, 0, 0), decode);
    assert_eq!(exits::groups(code::WRITE_CR0 + 8, 0, 0), decode);
    assert_eq!(exits::groups(code::EXCEPTION + 6, 0, 0), decode | Groups::DEBUG | Groups::EVENTS);
    assert_eq!(exits::groups(code::MSR, 1, 0xc000_0080), Groups::CONTROL);
    assert!(exits::groups(code::MSR, 1, 0x1b).is_empty());
    assert_eq!(exits::groups(code::SHUTDOWN, 0, 0), Groups::all());
}

#[test]
fn where_interrupts_go_in_as_v_irq_they_are_delivered_once() {
    let (event, v_irq) = (VALID | 0x55, 1 << 8);
    let (mut vmcb, mut extra) = (Vmcb::new_zeroed(), Extra::default());
    let mut left = |vmcb: &mut Vmcb, info| {
        vmcb.control.int_info = info;
        exits::after(code::NPF, vmcb, &mut extra, || true);
        (vmcb.control.event, vmcb.control.interrupt & v_irq, vmcb.control.interrupt >> 32, extra.event)
    };
    // Its delivery was broken off; it isn't delivered, as an interrupt of the host's came first; it is.
    assert_eq!(left(&mut vmcb, VALID | EXCEPTION | 0x55), (0, v_irq, 0x55, event));
    assert_eq!(left(&mut vmcb, 0), (0, v_irq, 0x55, event));
    vmcb.control.interrupt &= !v_irq;
    assert_eq!(left(&mut vmcb, EXCEPTION | 0x55), (0, 0, 0x55, 0));
    // While V_IRQ waits for the moment at which an interrupt can be taken, the event goes in as one, and V_IRQ stays.
    vmcb.set_window(true, false);
    assert_eq!(left(&mut vmcb, VALID | EXCEPTION | 0x55), (event, v_irq, 0x55, event));
    assert_eq!(left(&mut vmcb, 0x55), (0, v_irq, 0x55, 0));
    vmcb.set_window(false, false);
    // It is lost while it is set: an interrupt of the host's comes at once, and nothing was delivered. Else what was
    // delivered last is in EXITINTINFO, no longer valid.
    let left = |vmcb: &mut Vmcb, extra: &mut Extra, delivered| {
        (vmcb.control.int_info, vmcb.control.event) = (delivered, 0);
        vmcb.control.interrupt &= !v_irq;
        exits::keep_event(code::INTR, vmcb, extra, true);
        (vmcb.control.event, vmcb.control.interrupt & v_irq, extra.event)
    };
    let mut extra = Extra { event, ..Extra::default() };
    vmcb.set_event(event, true);
    assert_eq!(left(&mut vmcb, &mut extra, 0), (0, v_irq, event));
    assert_eq!(left(&mut vmcb, &mut extra, EXCEPTION | 0x55), (0, 0, 0));
    vmcb.set_window(true, false);
    assert_eq!(left(&mut vmcb, &mut extra, 0), (0, v_irq, 0));
    vmcb.set_window(false, false);
    // Whatever else there is goes in as it is.
    for other in [VALID | 0x1f, VALID | NMI | 2, VALID | EXCEPTION | 14] {
        vmcb.set_event(other, true);
        assert_eq!((vmcb.control.event, vmcb.control.interrupt & v_irq), (other, 0));
    }
}

#[test]
fn an_exit_keeps_what_the_next_entry_needs() {
    let (mut vmcb, mut extra) = (Vmcb::new_zeroed(), Extra::default());
    vmcb.save.rip = 0x100;
    vmcb.control.shadow = 1;
    vmcb.control.tlb_control = 1;
    exits::before(&vmcb, &mut extra);
    vmcb.control.shadow = 0; // QEMU forgets it
    vmcb.control.int_info = VALID | 0x20;
    exits::after(code::NPF, &mut vmcb, &mut extra, || false);
    assert_eq!((vmcb.control.shadow, vmcb.control.tlb_control), (1, 0));
    assert_eq!((vmcb.control.event, extra.event), (VALID | 0x20, VALID | 0x20));
    // An event of the kernel's own isn't dropped by an exit without entry; one of the vmm's is.
    exits::drop_fresh(&mut vmcb, &mut extra);
    assert_eq!(vmcb.control.event, VALID | 0x20);
    extra.fresh = 1;
    exits::drop_fresh(&mut vmcb, &mut extra);
    assert_eq!((vmcb.control.event, extra.event), (0, 0));
    // The guest moved on: no shadow. After a refused entry nothing is delivered again.
    exits::before(&vmcb, &mut extra);
    vmcb.control.shadow = 0;
    vmcb.save.rip = 0x101;
    exits::after(code::INVALID, &mut vmcb, &mut extra, || false);
    assert_eq!((vmcb.control.shadow, vmcb.control.event), (0, 0));
}
