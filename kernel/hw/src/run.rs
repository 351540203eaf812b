//! The kernel's life on a CPU: what enters it, and the loop that decides what runs next.

use crate::prelude::*;
use x86_64::instructions::interrupts;

/// Says who gets which interrupt, and what a service is made of at its start.
pub(crate) static BUNDLE: Once<Bundle<'static>> = Once::new();

/// Runs what there is to run until a service is to be entered.
#[inline(always)]
fn settle(next: Next, frame: &mut UserFrame) {
    if next != Next::User {
        go_on(here(), frame);
    }
}

#[inline(never)]
fn go_on(here: Here<'static, Silicon>, frame: &mut UserFrame) {
    loop {
        match here.pick(frame) {
            Choice::User => return,
            Choice::Guest(context) => {
                if run_guest(here, context, frame) == Next::User {
                    return;
                }
            }
            Choice::Idle => {
                here.flush_if_wanted();
                cpu::idle();
            }
        }
    }
}

/// Runs a guest until its vmm must be asked (then the frame enters the vmm, or the call waits), or an interrupt
/// came.
fn run_guest(here: Here<'static, Silicon>, context: Context, frame: &mut UserFrame) -> Next {
    vcpu::make_resident(context);
    if !here.entering(context) {
        return Next::Pick;
    }
    // It has frames as long as it is scheduled.
    let Some(vcpu) = vcpu(context) else { return Next::Pick };
    let left = vcpu.enter();
    here.context(context).leave();
    match left {
        None => {
            // Takes those that are pending.
            interrupts::enable();
            interrupts::disable();
            Next::Pick
        }
        Some(code) => here.vm_exit(frame, context, &vcpu::exit(context, vcpu, code)),
    }
}

/// Starts the supervisor of a bundle whose services have homes, and runs the boot CPU from now on.
pub fn start(bundle: Bundle<'static>) -> ! {
    BUNDLE.call_once(|| bundle);
    if here().restart(bundle.supervisor).is_err() {
        epitaph::cannot_boot("the supervisor can't be started", 0)
    }
    forever()
}

/// Runs this CPU from now on.
pub(crate) fn forever() -> ! {
    here().tick();
    // SAFETY: ring 3 never ran here, so nobody else uses the frame.
    go_on(here(), unsafe { &mut *this().frame.get() });
    syscall::leave()
}

/// A system call. This CPU's frame says what ring 3 goes on with, perhaps another service.
pub(crate) extern "C" fn syscall() -> ! {
    // SAFETY: ring 3 was left by SYSCALL, so nobody else uses the frame. Its address is a constant, which keeps a
    // register free.
    let frame = || unsafe { &mut *this().frame.get() };
    settle(here().syscall(frame()), frame());
    syscall::leave()
}

/// An interrupt that was acknowledged: from ring 3 (`user` is there), in [`cpu::idle`] or in [`run_guest`].
/// `true` if what ring 3 did is to be abandoned for `next`.
pub(crate) fn interrupt(number: u8, user: Option<&Trap>, next: &mut UserFrame) -> bool {
    let here = here();
    match number {
        vector::TIMER => {
            if here.tick()
                && let Some(trap) = user
            {
                // What the epitaph tells of the service.
                (next.rip, next.rsp, next.rax) = (trap.rip, trap.rsp, trap.rax);
                let then = here.overrun(next);
                settle(then, next);
                return true;
            }
        }
        vector::RESCHEDULE => {
            translations::answer();
            here.flush_if_wanted();
        }
        number => {
            let line = u16::from(number.wrapping_sub(vector::LINE_0));
            let services = BUNDLE.get().map_or(&[][..], |bundle| bundle.services);
            if let Some(slot) = services.iter().position(|service| service.interrupt == line) {
                here.ring(slot, doorbell::INTERRUPT);
            }
        }
    }
    false
}

/// An exception in ring 3. `next` says what ring 3 goes on with.
pub(crate) fn fault(trap: &Trap, next: &mut UserFrame) {
    let here = here();
    if here.local.service.get() == NO_SERVICE {
        epitaph::epitaph(trap);
    }
    (next.rip, next.rsp, next.rax) = (trap.rip, trap.rsp, trap.address());
    let then = here.exception(next, trap.vector as u8, trap.error);
    settle(then, next);
}
