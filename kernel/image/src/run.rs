//! The kernel's life on a CPU: what enters it, and the loop that decides what runs next.

use caisson_core::cpu::{NO_SERVICE, UserFrame};
use caisson_core::here::Here;
use caisson_core::ipc::Next;
use caisson_core::schedule::Choice;
use caisson_hw::{Kernel, Trap, vector};
use caisson_proto::abi::doorbell;

use crate::guests;
use crate::silicon::Silicon;
use crate::statics::{KERNEL, interrupt_owner, log_reader};

/// The handlers.
pub struct Caisson;

/// The kernel here.
#[inline]
pub fn here() -> Here<'static, Silicon> {
    Here { kernel: &KERNEL, local: caisson_hw::local(), machine: &Silicon }
}

/// Runs what there is to run until a service is to be entered.
fn settle(here: &Here<'static, Silicon>, next: Next, frame: &mut UserFrame) {
    if next == Next::User {
        return;
    }
    loop {
        if caisson_hw::log::take_pending()
            && let Some((slot, number)) = log_reader()
        {
            here.ring(slot, doorbell::ring(number));
        }
        match here.pick(frame) {
            Choice::User => return,
            Choice::Guest(context) => {
                if guests::run(here, context, frame) == Next::User {
                    return;
                }
            }
            Choice::Idle => {
                here.flush_if_wanted();
                caisson_hw::cpu::idle();
            }
        }
    }
}

/// Runs this CPU from now on.
pub fn forever() -> ! {
    let mut frame = UserFrame::default();
    let here = here();
    here.tick();
    settle(&here, Next::Pick, &mut frame);
    caisson_hw::enter_user(&frame)
}

impl Kernel for Caisson {
    #[inline]
    fn syscall(frame: &mut UserFrame) {
        let here = here();
        let next = here.syscall(frame);
        settle(&here, next, frame);
    }

    fn interrupt(number: u8, user: Option<&Trap>, next: &mut UserFrame) -> bool {
        let here = here();
        match number {
            vector::TIMER => {
                let over = here.tick();
                if over && let Some(trap) = user {
                    // What the epitaph tells of the service.
                    (next.rip, next.rsp, next.rax) = (trap.rip, trap.rsp, trap.rax);
                    let then = here.overrun(next);
                    settle(&here, then, next);
                    return false;
                }
            }
            vector::FLUSH => {
                crate::translations::answer();
                here.flush_if_wanted();
            }
            vector::RESCHEDULE => here.flush_if_wanted(),
            line => {
                if let Some(slot) = interrupt_owner(line.wrapping_sub(vector::LINE_0)) {
                    here.ring(slot, doorbell::INTERRUPT);
                }
            }
        }
        true
    }

    fn fault(trap: &Trap, next: &mut UserFrame) {
        let here = here();
        if here.local.service.get() == NO_SERVICE {
            crate::report::epitaph(trap);
        }
        let then = here.exception(next, trap.vector as u8, trap.error, trap.rip, trap.rsp, trap.address());
        settle(&here, then, next);
    }

    fn kernel_fault(trap: &Trap) -> ! {
        crate::report::epitaph(trap)
    }
}
