//! The 8254, and kvmclock's numbers.

use arbitrary::{Arbitrary, Unstructured};
use caisson_vmm::dev::pit::{HERTZ, Pit};
use caisson_vmm::dev::pvclock::{Scale, time_record};

use super::each;
use crate::guest::act::number;

const KHZ: u64 = 1_000_000;

#[derive(Debug, Arbitrary)]
enum Access {
    Read(#[arbitrary(with = port)] u16),
    Write(#[arbitrary(with = port)] u16, u8),
    /// A command and a count for channel 0 in a row, as drivers do it.
    Start {
        mode: u8,
        count: u16,
    },
    Wait(u32),
    WaitLong(#[arbitrary(with = |u: &mut Unstructured| u.int_in_range(0..=1 << 45))] u64),
    UntilDue,
}

fn port(u: &mut Unstructured) -> arbitrary::Result<u16> {
    u.choose(&[0x40, 0x41, 0x42, 0x43, 0x61]).copied()
}

/// The 8254: what is due lies ahead, or never comes; a period is as long as its count says.
pub fn pit(data: &[u8]) {
    let mut pit = Pit::new(KHZ);
    let mut now = 1_u64;
    // How long a period is, as far as it is known, in ticks of the TSC.
    let mut period = None;
    each(data, |access| {
        match access {
            Access::Read(port) => _ = pit.read(port, now),
            Access::Write(port, value) => {
                pit.write(port, value, now);
                period = None;
            }
            Access::Start { mode, count } => {
                pit.write(0x43, 0x30 | (mode & 7) << 1, now);
                assert_eq!(pit.due(), 0, "a count is still to come");
                let [low, high] = count.to_le_bytes();
                pit.write(0x40, low, now);
                pit.write(0x40, high, now);
                // 65 536 ticks of the clock are the longest.
                assert!(pit.due() <= now + 55 * KHZ);
                let ticks = if count == 0 { 0x1_0000 } else { u64::from(count) };
                period = matches!(mode & 3, 2 | 3).then_some(ticks * KHZ * 1000 / HERTZ);
                assert!(pit.due() != 0 || matches!(mode & 7, 1 | 5), "mode {mode} doesn't run");
            }
            Access::Wait(ticks) => now += u64::from(ticks),
            Access::WaitLong(ticks) => now += ticks,
            Access::UntilDue => now = now.max(pit.due()),
        }
        let due = pit.due();
        let fired = pit.expire(now);
        if let Some(period) = period.filter(|_| fired && now == due) {
            assert!(pit.due().abs_diff(now + period) <= KHZ * 2000 / HERTZ, "due at {}, and it is {now}", pit.due());
        }
        assert_eq!(fired, due != 0 && due <= now);
        assert!(pit.due() == 0 || pit.due() > now, "due at {} and it is {now}", pit.due());
        assert!(!pit.expire(now), "twice at once");
    });
}

#[derive(Debug, Arbitrary)]
struct Clock {
    khz: u32,
    #[arbitrary(with = number)]
    ticks: u64,
    #[arbitrary(with = number)]
    more: u64,
    version: u32,
}

/// kvmclock: the time never goes back, and is right to a millionth.
pub fn clock(data: &[u8]) {
    each(data, |Clock { khz, ticks, more, version }| {
        let scale = Scale::new(khz.into());
        // The guest's arithmetic has 64 bits; ten years of ticks fit it.
        let (ticks, more) = (ticks >> 6, more >> 6);
        let (ticks, later) = (ticks.min(1 << 56), ticks.min(1 << 56).saturating_add(more.min(1 << 56)));
        let hz = u128::from(khz.max(1)) * 1000;
        let exact = u128::from(ticks) * 1_000_000_000 / hz;
        if exact < 1 << 62 && scale.shift <= 7 {
            let shown = u128::from(scale.nanoseconds(ticks));
            assert!(shown.abs_diff(exact) <= exact / 1_000_000 + 64, "{shown} for {exact}");
            assert!(
                scale.nanoseconds(later) >= scale.nanoseconds(ticks)
                    || u128::from(later) * 1_000_000_000 / hz >= 1 << 63
            );
        }
        let record = time_record(scale, ticks, version);
        assert_eq!(record[28] as i8, scale.shift);
    });
}
