//! What the slot table knows of each VM.

use caisson_proto::abi::MAX_VMS;
use caisson_proto::addr::{Gfn, VmId};
use caisson_proto::memory::MAX_SLOTS;
use caisson_proto::slots::{HostAddress, Region};
use caisson_proto::wire::Field;

use super::events::Open;
use super::{END, Error, RESERVED, Slots, Wanted, gfn_key, id_key};

/// A slot that is being emptied, to be deleted or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Emptying {
    /// What was asked for.
    pub wanted: Wanted,
    /// Up to where nothing is mapped any more.
    pub next: Gfn,
}

/// One VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Vm {
    /// `None` if there is none in this place.
    pub vm: Option<VmId>,
    pub count: usize,
    pub open: Option<Open>,
    /// Changes by others than events that are under way.
    pub holds: u32,
    pub emptying: Option<Emptying>,
    pub requests: u64,
    pub flushes: u64,
}

impl Vm {
    /// Whether slots may not be swapped now.
    pub const fn is_open(&self) -> bool {
        self.open.is_some() || self.holds > 0
    }
}

impl<const N: usize, const G: usize> Slots<N, G> {
    /// A VM comes, without slots. What another left in its place goes.
    ///
    /// # Errors
    /// [`Error::NoVm`] for an id that no VM can have.
    pub fn vm_make(&mut self, vm: VmId) -> Result<(), Error> {
        if let Some(before) = self.vms.get(vm.index()).and_then(|of| of.vm) {
            self.vm_gone(before);
        }
        while self.vms.len() <= vm.index().min(MAX_VMS) {
            self.vms.push(Vm::default()).map_err(|_| Error::NoVm)?;
        }
        let place = self.vms.get_mut(vm.index()).ok_or(Error::NoVm)?;
        *place = Vm { vm: Some(vm), ..Vm::default() };
        Ok(())
    }

    /// A VM goes, with its regions, its slots, and what was under way.
    pub fn vm_gone(&mut self, vm: VmId) {
        if self.vm(vm).is_err() {
            return;
        }
        if let Some(place) = self.vms.get_mut(vm.index()) {
            *place = Vm::default();
        }
        let Self { ids, gfns, hosts, free, regions, .. } = self;
        ids.remove_range(id_key(vm, 0)..id_key(vm, 1 << 16), |place| {
            let _ = free.push(place);
        });
        gfns.remove_range(gfn_key(vm, 0)..gfn_key(vm, END), |_| ());
        for (index, region) in regions.iter_mut().enumerate().filter(|(_, region)| region.vm == Some(vm)) {
            let base = HostAddress { region: Region(index as u16), page: 0 }.to_word();
            hosts.remove_range(base..base + END);
            (region.vm, region.pages) = (None, 0);
            region.directory.reset(0);
        }
        for (index, region) in regions.iter_mut().enumerate() {
            region.first = hosts.before(HostAddress { region: Region(index as u16), page: 0 }.to_word());
        }
    }

    /// Whether it knows a VM.
    pub fn knows(&self, vm: VmId) -> bool {
        self.vm(vm).is_ok()
    }

    pub(super) fn vm(&self, vm: VmId) -> Result<&Vm, Error> {
        self.vms.get(vm.index()).filter(|of| of.vm == Some(vm)).ok_or(Error::NoVm)
    }

    pub(super) fn vm_mut(&mut self, vm: VmId) -> Result<&mut Vm, Error> {
        self.vms.get_mut(vm.index()).filter(|of| of.vm == Some(vm)).ok_or(Error::NoVm)
    }

    /// A change of a VM that isn't an event's begins: until [`Slots::release`], its slots stay as they are.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::Busy`] if there are too many.
    pub fn hold(&mut self, vm: VmId) -> Result<(), Error> {
        let of = self.vm_mut(vm)?;
        of.holds = of.holds.checked_add(1).ok_or(Error::Busy)?;
        Ok(())
    }

    /// It is over.
    ///
    /// # Errors
    /// [`Error::NoVm`]; [`Error::Absent`] if there was none.
    pub fn release(&mut self, vm: VmId) -> Result<(), Error> {
        let of = self.vm_mut(vm)?;
        of.holds = of.holds.checked_sub(1).ok_or(Error::Absent)?;
        Ok(())
    }

    /// Events that overlapped a slot of this VM, and of those, steps that unmapped something, for which one flush of its TLBs
    /// was asked each.
    pub fn counts(&self, vm: VmId) -> (u64, u64) {
        self.vm(vm).map_or((0, 0), |of| (of.requests, of.flushes))
    }

    /// Whether a VM may have another slot: one of its own, or one that is nobody's.
    pub(super) fn has_room(&self, vm: &Vm) -> bool {
        let owed = |of: &Vm| RESERVED.saturating_sub(of.count);
        let places = MAX_VMS - self.vms.len();
        let others = self.vms.iter().map(owed).sum::<usize>() + places * RESERVED - owed(vm);
        vm.count < MAX_SLOTS as usize && (vm.count < RESERVED || N - self.len() > others)
    }
}
