//! Pages become private or shared where they lie.

use caisson_proto::abi::{MAX_PAGES_PER_CALL, Status};
use caisson_proto::addr::{Gfn, ServiceId};
use caisson_proto::kernel::FrameState;
use caisson_proto::memory::Attribute;

use super::look;
use crate::gmem::Error;
use crate::{Kernel, Memory, REGION_PAGES, own};

impl Memory {
    /// Room to note it is reserved first, so nothing stops half-way for lack of it. What the kernel refuses ends it: the pages before
    /// have turned, and the same request goes on.
    pub(crate) fn attribute(
        &mut self, sender: ServiceId, request: &Attribute, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let Attribute { vm, gfn, pages, private } = *request;
        let end = gfn.0.checked_add(pages).filter(|end| *end <= REGION_PAGES).ok_or(Status::Range)?;
        if pages == 0 || pages > MAX_PAGES_PER_CALL {
            return Err(Status::Range);
        }
        own(vm, sender, kernel)?;
        let mut at = gfn.0;
        while at < end {
            at += self.with_gmem(vm, Gfn(at))?.pages;
        }
        let frames = gfn.0..end;
        if private {
            self.gmems.reserve(vm, &frames).map_err(Error::status)?;
        }
        let (mut at, mut answer) = (gfn.0, Ok(()));
        while at < end && answer.is_ok() {
            match look(vm, Gfn(at), end - at, kernel) {
                Ok(found) => {
                    let other = if private { FrameState::Owned } else { FrameState::Private };
                    if found.state == other {
                        // `Exhausted` says that nothing was done.
                        let turned = self.turn(vm, Gfn(at), found.pages, private, kernel);
                        answer =
                            turned.map_err(|status| if status == Status::Exhausted { Status::Busy } else { status });
                    }
                    if answer.is_ok() {
                        self.gmems.set_private(vm, &(at..at + found.pages), private);
                        at += found.pages;
                    }
                }
                Err(status) => answer = Err(status),
            }
        }
        if private {
            self.gmems.trim(vm, &frames);
        }
        answer
    }
}
