//! memory on the kernel.

use caisson_memory::{Kernel, Memory};
use caisson_proto::abi::{Lease, Status, doorbell};
use caisson_proto::addr::{ServiceId, Tsc, VmId};
use caisson_proto::info::RingUse;
use caisson_proto::kernel::{FrameCount, FrameCounts, TimerSet};
use caisson_proto::memory::{NEED, Reclaimed};
use caisson_proto::notifier::{NoticesOf, Settle, VmNotices, Want};
use caisson_proto::wire::{Request, Words};
use caisson_rt::rings::Outward;
use caisson_rt::{Server, info, ring_doorbell, slot_of, time};
use static_cell::ConstStaticCell;
use zerocopy::IntoBytes;

/// The bell that memory rings for itself.
const AGAIN: u64 = doorbell::TICKET;
/// Milliseconds that vCPUs of a dead VM have to stop before memory asks again.
const LATER_MS: u64 = 1;
/// Milliseconds from one round of a shortage to the next.
const ROUND_MS: u64 = 200;

struct OnKernel {
    reclaimed: Option<Outward>,
    supervisor: Option<u16>,
    notifier: Option<u16>,
    firmware: Option<u16>,
    own: u16,
    /// When the timer is to ring for the dying, and for the next round of a shortage. There is one timer for both.
    later_at: Option<u64>,
    round_at: Option<u64>,
    /// It rang for that round.
    round_due: bool,
    /// Frames that were never memory: holes in the machine's. A successor takes those that leaked before for such.
    no_memory: u64,
}

impl Kernel for OnKernel {
    fn ask<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        caisson_rt::kernel(request)
    }

    fn lend<R: Request>(&mut self, request: &R, lease: Lease) -> Result<R::Reply, Status> {
        caisson_rt::kernel_relend(request, lease)
    }

    fn post(&mut self, reclaimed: &Reclaimed) -> bool {
        self.reclaimed.as_mut().is_some_and(|ring| ring.send(reclaimed.as_bytes()).is_ok())
    }

    fn settle(&mut self) {
        // A notifier that died meanwhile looks at everything when it starts; the second call reaches a new one.
        if let Some(notifier) = self.notifier
            && caisson_rt::call(notifier, &Settle {}).is_err()
        {
            let _ = caisson_rt::call(notifier, &Settle {});
        }
    }

    fn want(&mut self, frames: u64) {
        // One that died looks at everything when it starts.
        if let Some(notifier) = self.notifier {
            let _ = caisson_rt::call(notifier, &Want { frames });
        }
    }

    fn notices(&mut self, vm: VmId) -> Result<VmNotices, Status> {
        let answer = caisson_rt::call(self.notifier.ok_or(Status::Unsupported)?, &NoticesOf { vm });
        answer.map_err(|_| Status::Unsupported)
    }

    fn firmware<R: Request>(&mut self, request: &R) -> Result<R::Reply, Status> {
        caisson_rt::call(self.firmware.ok_or(Status::Unsupported)?, request)
    }

    fn settled(&mut self) {
        if let Some(supervisor) = self.supervisor
            && let Err(status) = ring_doorbell(supervisor, doorbell::SETTLED)
        {
            defmt::error!("memory: can't ring the supervisor: status {=u8}", status as u8);
        }
        if let Ok(counts) = caisson_rt::kernel(&FrameCount {}) {
            let leaked = counts.leaked.saturating_sub(self.no_memory);
            defmt::info!("memory: settled, {=u64} frames free, {=u64} leaked", counts.free, leaked);
        }
    }

    fn again(&mut self) -> bool {
        ring_doorbell(self.own, AGAIN).is_ok()
    }

    fn later(&mut self) {
        self.later_at = Some(time::now().0 + time::ticks(LATER_MS));
        self.set_timer();
    }

    fn tell_need(&mut self, vmm: ServiceId) {
        defmt::debug!("memory: told of need: {=str}", caisson_rt::name_of(vmm.index()));
        // One that died has no balloon any more.
        let _ = ring_doorbell(vmm.index() as u16, NEED);
    }

    fn next_round(&mut self) {
        (self.round_at, self.round_due) = (Some(time::now().0 + time::ticks(ROUND_MS)), false);
        self.set_timer();
    }

    fn round_is_due(&mut self) -> bool {
        core::mem::take(&mut self.round_due)
    }
}

impl OnKernel {
    /// The timer rang: what it is still to ring for is set again.
    fn timer_rang(&mut self) {
        let now = time::now().0;
        self.round_due |= self.round_at.is_some_and(|at| at <= now);
        self.later_at = self.later_at.filter(|at| *at > now);
        self.round_at = self.round_at.filter(|at| *at > now);
        self.set_timer();
    }

    /// Has the timer ring for what comes first.
    fn set_timer(&self) {
        let Some(at) = [self.later_at, self.round_at].into_iter().flatten().min() else { return };
        if let Err(status) = caisson_rt::kernel(&TimerSet { at: Tsc(at) }) {
            defmt::error!("memory: no timer: status {=u8}", status as u8);
        }
    }
}

struct Image {
    memory: &'static mut Memory,
    kernel: OnKernel,
}

impl Server for Image {
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        self.memory.handle(sender, words, lease, &mut self.kernel)
    }

    fn doorbell(&mut self, bits: u64) {
        if bits & doorbell::TIMER != 0 {
            self.kernel.timer_rang();
        }
        self.memory.doorbell(bits, &mut self.kernel);
    }
}

static MEMORY: ConstStaticCell<Memory> = ConstStaticCell::new(Memory::new());

fn start() -> ! {
    let info = info();
    let kernel = OnKernel {
        reclaimed: Outward::find(RingUse::Reclaimed),
        supervisor: slot_of("supervisor"),
        notifier: slot_of("notifier"),
        firmware: slot_of("sev-firmware"),
        own: ServiceId::from_bits(info.head.id).index() as u16,
        later_at: None,
        round_at: None,
        round_due: false,
        no_memory: caisson_rt::kernel(&FrameCount {}).map_or(0, |counts| counts.leaked),
    };
    let mut image = Image { memory: MEMORY.take(), kernel };
    image.memory.start(info.head.cpus as u16, &mut image.kernel);
    if let Ok(counts) = caisson_rt::kernel(&FrameCount {}) {
        let FrameCounts { free, kernel, leaked, .. } = counts;
        defmt::info!("memory: {=u64} frames free, {=u64} the kernel's, {=u64} no memory", free, kernel, leaked);
    }
    caisson_rt::serve(&mut image)
}

caisson_rt::entry!(start);
