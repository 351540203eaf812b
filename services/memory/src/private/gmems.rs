//! gmems come and go.

use caisson_proto::abi::Status;
use caisson_proto::addr::{PAGE_SIZE, ServiceId, VmId};
use caisson_proto::memory::{GmemDrop, GmemMade, GmemMake};

use crate::gmem::Error;
use crate::slots::Wanted;
use crate::{Kernel, Memory, own};

impl Memory {
    pub(crate) fn gmem_make(
        &mut self, sender: ServiceId, request: &GmemMake, kernel: &mut impl Kernel,
    ) -> Result<GmemMade, Status> {
        let GmemMake { vm, flags, bytes } = *request;
        own(vm, sender, kernel)?;
        let gmem = self.gmems.create(vm, flags, bytes).map_err(Error::status)?;
        Ok(GmemMade { gmem })
    }

    pub(crate) fn gmem_drop(
        &mut self, sender: ServiceId, request: &GmemDrop, kernel: &mut impl Kernel,
    ) -> Result<(), Status> {
        let GmemDrop { vm, gmem } = *request;
        own(vm, sender, kernel)?;
        let pages = self.gmems.of(vm, gmem).map_err(Error::status)?;
        let shown = self.gmems.bound(gmem, &(0..pages)).next().is_some();
        self.gmems.destroy(gmem, shown).map_err(Error::status)
    }

    /// Binds a new slot to its gmem, before the slot appears.
    pub(crate) fn bind(&mut self, vm: VmId, wanted: &Wanted) -> Result<(), Status> {
        let Wanted { id, gfn, pages, gmem, .. } = *wanted;
        let bound = self.gmems.bind(vm, id, gfn, pages, gmem.gmem, gmem.page.saturating_mul(PAGE_SIZE));
        bound.map_err(|error| if error == Error::OtherVm { Status::NotFound } else { error.status() })
    }
}
