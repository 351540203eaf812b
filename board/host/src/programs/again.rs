//! How the model of a vmm ends, and that it comes back.

use caisson_proto::supervisor::{CrashKind, ExitKind};
use caisson_supervisor::limit::{RESET_WINDOW_MS, RESTARTS};

use super::doze;
use crate::service::Sys;
use crate::world::KHZ;

/// Ends this life. One that failed is often tried again, as a reset; and while not much has happened each is.
pub fn end(sys: &Sys<'_>, kind: ExitKind, detail: u64) {
    let world = sys.world;
    let young = kind != ExitKind::Reset && world.history.borrow().events() < world.config.events;
    let again = kind == ExitKind::Crashed && detail == CrashKind::Hung as u64 && world.rng.chance(3, 4);
    if young || again && world.resets.get() > 0 {
        world.resets.set(world.resets.get().saturating_sub(1));
        return sys.exit(&[ExitKind::Reset as u64, 0, 0, 0, 0, 0, 0, 0]);
    }
    sys.exit(&[kind as u64, detail, 0, 0, 0, 0, 0, 0]);
}

/// A VM that fails again and again while not much has happened isn't given up: now and then it waits until the supervisor has
/// forgotten its resets.
pub fn rest(sys: &Sys<'_>) {
    let world = sys.world;
    let lives = sys.id.generation();
    let young = world.history.borrow().events() < world.config.events;
    if young && lives > 0 && usize::from(lives).is_multiple_of(RESTARTS) {
        let until = world.now.get() + RESET_WINDOW_MS * KHZ;
        while world.now.get() < until && !sys.stopped() {
            doze(sys, until - world.now.get());
        }
    }
}
