//! A VM's pages at one moment, to compare with those of another.

use caisson_core::svm::npt::look_up;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::kernel::FrameState;

use crate::world::{View, World};

/// A page that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its frame.
    pub frame: u64,
    /// Whether it is the guest's alone.
    pub private: bool,
    /// Whether it is in its handler's window.
    pub shown: bool,
}

/// All of them.
pub struct Pages {
    /// How often others began or ended to take pages from VMs.
    pub taken: u64,
    /// By gfn.
    pub pages: Vec<Option<Seen>>,
}

impl World {
    /// The pages of a VM, whose handler is in a slot, unless somebody is changing the tables.
    pub fn seen(&self, vm: VmId, slot: usize) -> Option<Pages> {
        self.kernel.inspect(|_| ())?;
        let root = self.kernel.vms.get(vm.index()).filter(|of| of.id.get() == vm)?.root(0)?;
        let page = |gfn| {
            let frame = self.nested(root, gfn)?.frame;
            let private = self.frame(frame).is_some_and(|is| is.state == FrameState::Private);
            let shown = look_up(&View(self), Self::window(slot), Gfn(Self::in_window(gfn)));
            Some(Seen { frame: frame.0, private, shown: shown.is_some_and(|it| it.frame == frame) })
        };
        Some(Pages { taken: self.takings.get(), pages: (0..self.manifest.guest_pages).map(page).collect() })
    }
}
