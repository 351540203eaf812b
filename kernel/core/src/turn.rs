//! Whose turn it is at a service: the queue of contexts that want to be served, first come, first served.
//!
//! No lock. Entering is one atomic step where the service is free, leaving is one where nobody waits. Between a
//! leaver and the waiter that comes next there is one exchange on the waiter's slot: whoever comes second sees
//! what the first one left there, so a wake-up is neither lost nor doubled. `tests/loom` explores all of it.

use crate::prelude::*;

/// Slots for waiters: at least one a context, as a context waits in one place at a time.
pub const SLOTS: usize = if cfg!(loom) { 4 } else { 512 };
const _: () = assert!(cfg!(loom) || SLOTS >= crate::context::CONTEXTS);
const _: () = assert!(SLOTS.is_power_of_two(), "the slots come round with the tickets");

const EMPTY: u16 = 0;
const GRANTED: u16 = 1;
const FIRST: u16 = 2;

initial! {
    /// The queue of one service.
    pub struct Turn {
        /// Tickets given in the high half, the ticket being served in the low half. Both are 0 when all have left.
        state: AtomicU64 = AtomicU64::new(0),
        waiters: [AtomicU16; SLOTS] = array![AtomicU16::new(EMPTY); SLOTS],
    }
}

impl Turn {
    /// Joins the queue; `context` is looked at only to wait. True: it is this context's turn. False: it waits, and a
    /// later [`leave`](Self::leave) will name it.
    pub fn enter(&self, context: impl FnOnce() -> Context) -> bool {
        let before = self.state.fetch_add(1 << 32, Ordering::AcqRel);
        let (ticket, serving) = halves(before);
        ticket == serving || self.wait(ticket, context())
    }

    /// Takes the turn if nobody is in the queue.
    #[inline(always)]
    pub fn try_enter(&self) -> bool {
        self.state.compare_exchange(0, 1 << 32, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    #[cold]
    fn wait(&self, ticket: u32, context: Context) -> bool {
        let slot = &self.waiters[ticket as usize % SLOTS];
        if slot.swap(context.number() + FIRST, Ordering::AcqRel) == GRANTED {
            slot.store(EMPTY, Ordering::Release);
            return true;
        }
        false
    }

    /// Ends the turn of whoever has it if nobody came since. False: nothing was done.
    #[inline(always)]
    pub fn leave_alone(&self) -> bool {
        self.state.compare_exchange(1 << 32, 0, Ordering::SeqCst, Ordering::Acquire).is_ok()
    }

    /// Ends the turn of whoever has it. The context returned has it now and is to be woken.
    /// `None`: nobody waits, or the next one is about to find out by itself.
    pub fn leave(&self) -> Option<Context> {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            // Where somebody always waits, the numbers come round: each half by itself, and the slots with them.
            let (given, serving) = halves(state);
            let follows = serving.wrapping_add(1);
            let last = given == follows;
            let next = if last { 0 } else { u64::from(given) << 32 | u64::from(follows) };
            match self.state.compare_exchange_weak(state, next, Ordering::SeqCst, Ordering::Acquire) {
                Ok(_) if last => return None,
                Ok(_) => return self.grant(follows),
                Err(now) => state = now,
            }
        }
    }

    #[cold]
    fn grant(&self, ticket: u32) -> Option<Context> {
        let slot = &self.waiters[ticket as usize % SLOTS];
        match slot.swap(GRANTED, Ordering::AcqRel) {
            EMPTY | GRANTED => None,
            waiter => {
                slot.store(EMPTY, Ordering::Release);
                Context::from_number(waiter - FIRST)
            }
        }
    }

    /// Whether somebody has the turn now, for checks.
    #[cfg(not(target_os = "none"))]
    pub fn is_taken(&self) -> bool {
        self.state.load(Ordering::Acquire) != 0
    }
}

/// The tickets given and the one being served.
const fn halves(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served() {
        let turn = Turn::new();
        let [a, b, c] = [1, 2, 3].map(Context::doorbell);
        assert!(turn.enter(|| a));
        assert!(!turn.enter(|| b));
        assert!(!turn.enter(|| c));
        assert_eq!(turn.leave(), Some(b));
        assert!(!turn.enter(|| a));
        assert_eq!(turn.leave(), Some(c));
        assert_eq!(turn.leave(), Some(a));
        assert_eq!(turn.leave(), None);
        assert!(!turn.is_taken());
        assert!(turn.enter(|| b));
    }

    #[test]
    fn the_numbers_come_round_while_somebody_waits() {
        let turn = Turn::new();
        let [a, b, c] = [1, 2, 3].map(Context::doorbell);
        // As if the queue had never been empty for 2^32 - 2 turns.
        turn.state.store(0xffff_ffff << 32 | 0xffff_fffe, Ordering::Relaxed);
        assert!(!turn.enter(|| a));
        assert_eq!(turn.leave(), Some(a));
        assert!(!turn.enter(|| b));
        assert!(!turn.enter(|| c));
        assert_eq!(turn.leave(), Some(b));
        assert_eq!(turn.leave(), Some(c));
        assert_eq!(turn.leave(), None);
        assert!(!turn.is_taken());
    }
}
