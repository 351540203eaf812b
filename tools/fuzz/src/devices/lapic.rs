//! The local APIC with its timer.

use arbitrary::{Arbitrary, Unstructured};
use caisson_vmm::dev::lapic::{Effect, Lapic, MMIO, reg};

use super::each;
use crate::guest::act::number;

#[derive(Debug, Arbitrary)]
enum Access {
    Read(#[arbitrary(with = register)] u16),
    Write(#[arbitrary(with = register)] u16, #[arbitrary(with = number)] u64),
    Base(#[arbitrary(with = base)] u64),
    Request(u8, bool),
    Take,
    End,
    Cr8(u8),
    Deadline(u32),
    Timer { mode: u8, count: u32, divide: u8 },
    Wait(u32),
    UntilDue,
    Init,
    Addressed { destination: u32, logical: bool, wide: bool },
}

fn register(u: &mut Unstructured) -> arbitrary::Result<u16> {
    u.int_in_range(0..=0x41)
}

fn base(u: &mut Unstructured) -> arbitrary::Result<u64> {
    Ok(if u.arbitrary()? { MMIO | u64::from(u.arbitrary::<u16>()? & 0xd00) } else { u.arbitrary()? })
}

fn run(data: &[u8], apic: &mut Lapic) {
    let mut now = 1_u64;
    each(data, |access| {
        match access {
            Access::Read(register) => _ = apic.read(register, now),
            Access::Write(register, value) => {
                let before = apic.base();
                match apic.write(register, value, now) {
                    Ok(Effect::Send(_)) => assert_eq!(register, reg::ICR),
                    Ok(Effect::Ended(vector)) => assert!(register == reg::EOI && vector >= 16),
                    Ok(Effect::None) | Err(_) => {}
                }
                assert_eq!(apic.base(), before);
            }
            Access::Base(value) => {
                let before = apic.base();
                if apic.set_base(value, 40).is_err() {
                    assert_eq!(apic.base(), before, "refused, and changed all the same");
                }
                assert!(apic.page() < 1 << 40);
                assert!(apic.is_on() || !apic.is_x2(), "x2APIC mode of an APIC that is off");
            }
            Access::Request(vector, level) => {
                let new = apic.request(vector, level);
                assert!(!new || (apic.is_on() && vector >= 16 && !apic.is_quiet()));
            }
            Access::Take => {
                if let Some(vector) = apic.deliverable() {
                    assert!(vector >> 4 > apic.ppr() >> 4, "{vector:#x} isn't above {:#x}", apic.ppr());
                    apic.take(vector);
                    assert!(apic.ppr() >> 4 >= vector >> 4);
                    assert!(apic.deliverable().is_none_or(|next| next >> 4 > vector >> 4));
                }
            }
            Access::End => {
                let before = apic.ppr();
                apic.end();
                assert!(apic.ppr() <= before, "an end raises the priority");
            }
            Access::Cr8(value) => {
                apic.set_cr8(value.into());
                assert_eq!(apic.cr8(), u64::from(value & 15));
            }
            Access::Deadline(ticks) => {
                let stood = apic.timer.due();
                apic.timer.set_deadline(now + u64::from(ticks));
                assert!(apic.timer.is_deadline() || apic.timer.due() == stood);
            }
            Access::Timer { mode, count, divide } => {
                // As drivers do it.
                let _ = apic.write(reg::LVT, u64::from(mode & 3) << 17 | 0x40, now);
                let _ = apic.write(reg::DIVIDE, u64::from(divide), now);
                let _ = apic.write(reg::INITIAL, u64::from(count), now);
                if mode & 3 < 2 {
                    assert_eq!(apic.read(reg::CURRENT, now), Ok(u64::from(count)));
                }
            }
            Access::Wait(ticks) => now += u64::from(ticks),
            Access::UntilDue => now = now.max(apic.timer.due()),
            Access::Init => apic.init(),
            Access::Addressed { destination, logical, wide } => {
                let everybody = if wide { u32::MAX } else { 0xff };
                let addressed = apic.is_addressed(destination, logical, wide);
                assert!(destination != everybody || addressed == apic.is_on());
            }
        }
        let due = apic.timer.due();
        assert!(apic.timer.current(now) <= apic.timer.initial(), "more is left than was there");
        apic.tick(now);
        assert!(apic.timer.due() == 0 || apic.timer.due() > now, "due at {due} and it is {now}");
        assert!(!apic.tick(now), "twice at once");
    });
}

/// The local APIC: only what is above its priority is delivered, only a change of mode that exists is made, and what
/// its timer has due lies ahead.
pub fn lapic(data: &[u8]) {
    for id in [0, 3] {
        let mut apic = Lapic::new(id);
        // In xAPIC mode, and in x2APIC mode.
        if id == 3 {
            let base = apic.base();
            assert_eq!(apic.set_base(base | 1 << 10, 40), Ok(()));
            assert!(apic.write(reg::SVR, 0x1ff, 0).is_ok());
        }
        run(data, &mut apic);
    }
}
