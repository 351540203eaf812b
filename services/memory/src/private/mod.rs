//! Private guest memory: what its VM's handler asks for, carried out on the kernel.
//!
//! Private and shared are two ways to show the same frame of a slot that has a gmem: turning one into the other happens
//! in place, and at any time there is one of them. What is there, the kernel's tables say; memory keeps which guest frames
//! are wanted private, and which pages of a gmem are broken. Only memory maps, so nothing comes between a decision and its
//! commit; who reads a page's state, decides and commits does it in one message.

mod convert;
mod fault;
mod gmems;
mod hole;

use caisson_proto::abi::{MAX_PAGES_PER_CALL, Status};
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::kernel::{FrameState, GuestConvert, GuestLook, Look};

use crate::gmem::Error;
use crate::slots::Shown;
use crate::{Kernel, Memory};

impl Memory {
    /// What a VM's slot shows at a guest frame, if private memory can be there.
    fn with_gmem(&mut self, vm: VmId, gfn: Gfn) -> Result<Shown, Status> {
        let shown = self.shown(vm, gfn)?;
        if shown.gmem.is_none() {
            return Err(Status::NotFound);
        }
        self.gmems.binding(vm, shown.slot, gfn).map_err(Error::status)?;
        Ok(shown)
    }

    /// Turns pages that are all there and alike private or shared, where they lie; as one large page where that is possible.
    fn turn(&mut self, vm: VmId, gfn: Gfn, pages: u64, private: bool, kernel: &mut impl Kernel) -> Result<(), Status> {
        let turn = GuestConvert { vm, gfn, pages, private, large: true };
        match kernel.ask(&turn) {
            Err(Status::Exhausted) => {
                self.donate(vm, kernel)?;
                kernel.ask(&turn).map(|_| ())
            }
            answer => answer.map(|_| ()),
        }
    }
}

/// How many of these pages, at most 512, are like the first, and how.
pub(crate) fn look(vm: VmId, gfn: Gfn, pages: u64, kernel: &mut impl Kernel) -> Result<Look, Status> {
    let look = kernel.ask(&GuestLook { vm, gfn, pages: pages.min(MAX_PAGES_PER_CALL) })?;
    // A table that doesn't advance would never end.
    if look.pages == 0 { Err(Status::State) } else { Ok(look) }
}

/// Whether something is mapped there.
fn is_there(look: &Look) -> bool {
    matches!(look.state, FrameState::Owned | FrameState::Private)
}
