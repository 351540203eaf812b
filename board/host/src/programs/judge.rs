//! What may become of what a vmm asks memory for, and what its guest's pages must be after it.

use caisson_proto::abi::Status;
use caisson_proto::addr::VmId;
use caisson_proto::kernel::{VmKind, VmState};

use crate::seen::Seen;
use crate::service::Sys;

/// Judges what is answered to the vmm of a VM.
#[derive(Clone, Copy)]
pub struct Judge {
    /// The VM.
    pub vm: VmId,
    /// Its kind.
    pub kind: VmKind,
}

impl Judge {
    /// Whether the VM lives, and so does who asks.
    fn alive(self, sys: &Sys<'_>) -> bool {
        let mut vms = sys.world.kernel.vms.iter();
        vms.any(|vm| vm.id.get() == self.vm && vm.state() == Some(VmState::Alive)) && !sys.stopped()
    }

    /// Whether everybody whom a change needs lived through it, and nobody took the VM away.
    pub fn quiet(self, sys: &Sys<'_>) -> bool {
        let world = sys.world;
        let first_life = |slot| world.kernel.service(slot).id.get().generation() == 0;
        first_life(world.manifest.memory) && first_life(world.manifest.notifier) && self.alive(sys)
    }

    /// What memory may answer to a request that is right: whether it was carried out.
    pub fn answer(self, sys: &Sys<'_>, what: &str, result: Result<(), Status>) -> bool {
        // The processor may work for the VM, or no frame is left to split a large page with.
        let excused = self.kind != VmKind::Plain || matches!(result, Err(Status::Busy | Status::Exhausted));
        let expected = result.is_ok() || excused || !self.quiet(sys);
        sys.world.check(expected, || format!("{what} of {:?} is answered with {result:?}", self.vm));
        result.is_ok()
    }

    /// Asks for something; what that makes of each page must be right, given what was there before, also where memory isn't in its
    /// first life. Of encrypted VMs the processor may have pages turned meanwhile.
    pub fn act<R>(
        self, sys: &Sys<'_>, what: &str, ask: impl FnOnce() -> Result<R, Status>,
        right: impl Fn(&R, u64, Option<Seen>, Option<Seen>) -> bool,
    ) -> Result<R, Status> {
        let world = sys.world;
        let life = || world.kernel.service(world.manifest.memory).id.get();
        let (lived, before) = (life(), world.seen(self.vm, sys.slot));
        let answer = ask();
        let after = world.seen(self.vm, sys.slot);
        let steady = self.kind == VmKind::Plain && life() == lived && self.alive(sys);
        let (Ok(answered), Some(before), Some(after), true) = (&answer, before, after, steady) else { return answer };
        if before.taken != after.taken {
            // Somebody else took pages.
            return answer;
        }
        for (gfn, (was, is)) in (0..).zip(before.pages.into_iter().zip(after.pages)) {
            world.check(right(answered, gfn, was, is), || {
                format!("{what}: gfn {gfn:#x} of {:?} was {was:x?} and is {is:x?}", self.vm)
            });
        }
        answer
    }
}
