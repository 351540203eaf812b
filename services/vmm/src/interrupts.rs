//! The way of an interrupt: from a line or a message to a local APIC, and from there into the guest.

use caisson_proto::exits::code;
use caisson_proto::stats::VcpuStat;
use caisson_proto::supervisor::CrashKind;
use caisson_proto::vcpu::{Action, Exit, ExitFlags, Resume, VcpuState};

use crate::dev::ioapic::{Message, Pins};
use crate::dev::lapic::Effect;
use crate::dev::uart;
use crate::platform::{Event, Platform};
use crate::vcpu::{Life, Nmis};
use crate::vmm::Vmm;

/// Delivery mode: fixed.
pub const FIXED: u8 = 0;
/// Delivery mode: lowest priority.
pub const LOWEST: u8 = 1;
/// Delivery mode: NMI.
pub const NMI: u8 = 4;
/// Delivery mode: INIT.
pub const INIT: u8 = 5;
/// Delivery mode: start-up.
pub const STARTUP: u8 = 6;

/// EVENTINJ: valid; type 0 is an interrupt.
const VALID: u64 = 1 << 31;
/// EVENTINJ: type 2, NMI, vector 2.
const INJECT_NMI: u64 = VALID | 2 << 8 | 2;

/// Interrupt shadows that may pass in a millisecond: one takes long enough for an instruction.
const SHADOWS_A_MS: u64 = 50;

impl<P: Platform> Vmm<P> {
    /// What every exit begins with. The event that the last reply should have injected and didn't.
    pub(crate) fn begin(&mut self, at: usize, exit: &Exit) -> u64 {
        let place = self.place_of(exit);
        let Some(vcpu) = self.vcpus.get_mut(at) else { return 0 };
        vcpu.exits[usize::from(place)] += 1;
        vcpu.kicked = false;
        let injected = core::mem::take(&mut vcpu.injected);
        if vcpu.eoi_armed {
            self.sync_eoi(at);
        }
        // A deadline that passes elsewhere brings a TIMER exit of its own.
        if matches!(exit.code, code::TIMER | code::HLT) {
            self.tick(at);
        }
        if exit.flags.contains(ExitFlags::INJECTED) { 0 } else { injected }
    }

    /// Lets the timers of a vCPU fire that are due; vCPU 0 has the machine's.
    fn tick(&mut self, at: usize) {
        let now = self.platform.now();
        if let Some(vcpu) = self.vcpus.get_mut(at) {
            vcpu.apic.tick(now);
        }
        if at == 0 && self.pit.expire(now) {
            self.pulse_timer();
        }
        self.flush_console();
    }

    /// What every exit ends with: pending INIT, the next interrupt, the deadline.
    pub(crate) fn finish(
        &mut self, at: usize, exit: &Exit, state: &mut VcpuState, mut resume: Resume, lost: u64,
    ) -> Resume {
        if self.ended || resume.action == Action::Stop {
            return self.stop();
        }
        let pic = at == 0 && self.pics.asserts();
        let Some(vcpu) = self.vcpus.get_mut(at) else { return self.stop() };
        resume.iret = vcpu.nmis == Nmis::Masked;
        // Most exits end here: nothing to tell the guest, nothing that changes what it was told.
        if vcpu.life == Life::Running && vcpu.is_undisturbed() && !pic && resume.inject == 0 {
            if vcpu.eoi.at.is_some() && !vcpu.eoi_armed && vcpu.apic.may_skip_eoi() {
                self.arm_eoi(at);
            }
            resume.deadline = self.deadline(at);
            return resume;
        }
        self.unusual(at, exit, state, resume, lost)
    }

    #[inline(never)]
    fn unusual(&mut self, at: usize, exit: &Exit, state: &mut VcpuState, resume: Resume, lost: u64) -> Resume {
        let resume = self.disturb(at, exit, state, resume);
        self.count_reply(at, exit, &resume, lost);
        resume
    }

    /// The end of an exit at which something is pending, or at which the vCPU doesn't run on.
    fn disturb(&mut self, at: usize, exit: &Exit, state: &mut VcpuState, mut resume: Resume) -> Resume {
        if self.vcpus.get(at).is_some_and(|vcpu| vcpu.init) {
            resume = self.take_init(at, state);
        }
        if exit.flags.contains(ExitFlags::EVENT_PENDING | ExitFlags::INJECTED) && !resume.replace {
            // Two events can't be injected; the one that was broken off comes first.
            resume.inject = 0;
        }
        let pic = at == 0 && self.pics.asserts();
        let aside = self.aside.has(at);
        let fresh = resume.groups.is_all();
        let Some(vcpu) = self.vcpus.get_mut(at) else { return self.stop() };
        if vcpu.life == Life::Waiting {
            return self.stop();
        }
        let extint = pic && vcpu.apic.passes_extint();
        let vector = vcpu.apic.deliverable();
        let interrupts_on = match vcpu.life {
            Life::Halted { interrupts_on } => interrupts_on,
            _ => exit.flags.contains(ExitFlags::INTERRUPTS_ON) && !fresh,
        };
        let shadow = exit.flags.contains(ExitFlags::SHADOW) && !resume.clear_shadow;
        // An event that is being delivered, or an exception of ours, goes first, and an instruction that is being stepped over.
        let returning = aside || matches!(vcpu.nmis, Nmis::Returning { .. });
        let free = resume.inject == 0 && !exit.flags.contains(ExitFlags::EVENT_PENDING) && !returning;
        let nmi = vcpu.nmi > 0 && vcpu.nmis == Nmis::Open;
        let wanted = vector.is_some() || extint;
        let mut pass = false;

        if nmi && free && !shadow {
            (vcpu.nmi, vcpu.nmis) = (vcpu.nmi - 1, Nmis::Masked);
            vcpu.life = Life::Running;
            resume.inject = INJECT_NMI;
            resume.window = wanted;
        } else if wanted && interrupts_on && free && !shadow {
            vcpu.life = Life::Running;
            let vector = match vector {
                Some(vector) => {
                    vcpu.apic.take(vector);
                    vector
                }
                None => self.pics.acknowledge(),
            };
            resume.inject = VALID | u64::from(vector);
            resume.window = vcpu.apic.deliverable().is_some();
        } else {
            // In a shadow that this processor forgets, a window would open at once for ever: let the one
            // instruction pass.
            pass = shadow && exit.code == code::VINTR;
            resume.window = (wanted || nmi) && !pass && !returning;
        }
        resume.iret = vcpu.nmis == Nmis::Masked;
        vcpu.injected = resume.inject;
        if let Life::Halted { interrupts_on } = vcpu.life {
            resume.action = Action::Park;
            resume.window = false;
            if !interrupts_on && self.vcpus.iter().all(crate::vcpu::Vcpu::is_dead) {
                self.note(Event::Hung);
                self.crash(CrashKind::Hung, at, exit.rip, 0);
                return self.stop();
            }
        }
        self.arm_eoi(at);
        resume.deadline = self.deadline(at);
        if pass {
            let soon = self.platform.now().saturating_add(self.facts.tsc_khz / SHADOWS_A_MS);
            resume.deadline = if resume.deadline == 0 { soon } else { soon.min(resume.deadline) };
        }
        resume
    }

    /// When this vCPU's next timer is due, in the machine's TSC; 0 for never.
    fn deadline(&self, at: usize) -> u64 {
        let own = self.vcpus.get(at).map_or(0, |vcpu| vcpu.apic.timer.due());
        match if at == 0 { self.pit.due() } else { 0 } {
            0 => own,
            shared if own == 0 => shared,
            shared => shared.min(own),
        }
    }

    /// Makes a vCPU look at its interrupts, if it isn't the one being served.
    pub(crate) fn wake(&mut self, at: usize) {
        if at == self.current {
            return;
        }
        let Some(vcpu) = self.vcpus.get_mut(at).filter(|vcpu| vcpu.life != Life::Waiting) else { return };
        if core::mem::replace(&mut vcpu.kicked, true) {
            return self.count(at, VcpuStat::KicksMerged);
        }
        self.count(at, VcpuStat::KicksSent);
        self.platform.kick(at as u8);
    }

    /// Sends a message to the local APICs that it addresses. `wide`: the destination has 32 bits.
    pub(crate) fn send(&mut self, message: Message, wide: bool) {
        let Message { logical, destination, .. } = message;
        let mut targets = 0_u32;
        for (at, vcpu) in self.vcpus.iter().enumerate() {
            targets |= u32::from(vcpu.apic.is_addressed(destination, logical, wide)) << at;
        }
        self.send_to(message, targets);
    }

    /// Sends a message to vCPUs by index.
    pub(crate) fn send_to(&mut self, message: Message, targets: u32) {
        let mut targets = targets;
        if message.mode == LOWEST {
            let is_target = |&(at, _): &(usize, &crate::vcpu::Vcpu)| targets >> at & 1 == 1;
            let lowest = self.vcpus.iter().enumerate().filter(is_target).min_by_key(|(_, vcpu)| vcpu.apic.ppr());
            targets = lowest.map_or(0, |(at, _)| 1 << at);
        }
        for at in 0..self.vcpus.len() {
            if targets >> at & 1 == 1 {
                self.send_one(message, at);
            }
        }
    }

    fn send_one(&mut self, message: Message, at: usize) {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return };
        match message.mode {
            FIXED | LOWEST if vcpu.apic.request(message.vector, message.level) => self.wake(at),
            FIXED | LOWEST => {}
            NMI => {
                vcpu.receive_nmi();
                self.wake(at);
            }
            INIT => self.receive_init(at),
            STARTUP => self.receive_startup(at, message.vector),
            _ => {}
        }
    }

    /// Carries out what a write to a local APIC asked for.
    pub(crate) fn apply(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Ended(vector) => {
                let pins = self.ioapic.end(vector);
                self.resend(pins);
            }
            Effect::Send(command) => {
                let message = Message {
                    vector: command as u8,
                    mode: (command >> 8 & 7) as u8,
                    logical: command >> 11 & 1 == 1,
                    destination: (command >> 32) as u32,
                    level: false,
                };
                // INIT with the level deasserted synchronizes arbitration ids on old machines: nothing.
                if message.mode == INIT && command >> 14 & 1 == 0 && command >> 15 & 1 == 1 {
                    return;
                }
                let all = (1_u32 << self.vcpus.len()) - 1;
                match command >> 18 & 3 {
                    0 => {
                        let wide = self.vcpus.get(at).is_some_and(|vcpu| vcpu.apic.is_x2());
                        self.send(message, wide);
                    }
                    1 => self.send_to(message, 1 << at),
                    2 => self.send_to(message, all),
                    _ => self.send_to(message, all & !(1 << at)),
                }
            }
        }
    }

    /// Sends the messages of level-triggered pins that still want to be served.
    pub(crate) fn resend(&mut self, pins: Pins) {
        let mut rest = pins.0;
        while rest != 0 {
            let pin = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            if let Some(message) = self.ioapic.resend(pin) {
                self.send(message, false);
            }
        }
    }

    /// Drives an interrupt line of the PC: the 8259 pair and the I/O APIC see it.
    pub(crate) fn set_line(&mut self, irq: u8, high: bool) {
        self.pics.set_line(irq, high);
        self.update_pic();
        // The timer is at pin 2, as on every PC.
        let pin = if irq == 0 { 2 } else { irq };
        if let Some(message) = self.ioapic.set_line(pin, high) {
            self.send(message, false);
        }
    }

    /// Has vCPU 0 look at the 8259 pair.
    pub(crate) fn update_pic(&mut self) {
        if self.pics.asserts() && self.vcpus.first().is_some_and(|vcpu| vcpu.apic.passes_extint()) {
            self.wake(0);
        }
    }

    /// Channel 0 of the PIT: low for one tick of its clock, then high.
    pub(crate) fn pulse_timer(&mut self) {
        self.set_line(0, false);
        self.set_line(0, true);
    }

    /// Brings the serial port's interrupt up to date.
    #[inline]
    pub(crate) fn update_uart(&mut self) {
        self.uart.set_blocked(self.output.is_blocked());
        let line = self.uart.line();
        if line != self.uart_line {
            self.uart_line = line;
            self.set_line(uart::IRQ, line);
        }
    }

    /// The guest may have ended its interrupt by the shared word.
    fn sync_eoi(&mut self, at: usize) {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return };
        let Some(word) = vcpu.eoi.at else { return };
        let mut flag = [0];
        if self.ram.read(&mut self.platform, word, &mut flag).is_ok() && flag[0] & 1 == 0 {
            vcpu.eoi_armed = false;
            let effect = vcpu.apic.end();
            self.apply(at, effect);
        }
    }

    /// Lets the guest end its interrupt by the shared word, or takes that back.
    fn arm_eoi(&mut self, at: usize) {
        let Some(vcpu) = self.vcpus.get_mut(at) else { return };
        let Some(word) = vcpu.eoi.at else { return };
        let may = vcpu.apic.may_skip_eoi();
        if may != vcpu.eoi_armed && self.ram.write(&mut self.platform, word, &[u8::from(may)]).is_ok() {
            vcpu.eoi_armed = may;
        }
    }
}
