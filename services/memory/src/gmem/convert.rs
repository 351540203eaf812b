//! Which guest frames are private.

use caisson_proto::addr::{Gfn, VmId};

use super::bitmaps::Plane;
use super::{END, Error, Gmems, MOST, Machine};

impl<const M: usize, const B: usize> Gmems<M, B> {
    /// Whether a VM wants a guest frame private.
    pub fn is_private(&self, vm: VmId, gfn: Gfn) -> bool {
        gfn.0 < END && self.bits.get(Plane::Private, vm.index() as u16, gfn.0)
    }

    /// Guest frames become private or shared, at most 512 a call. Room to note it is reserved first; the change lies between a
    /// beginning and an end, and only what was visible until now is unmapped.
    ///
    /// # Errors
    /// [`Error::BadSize`] for none, for more than 512, or past the last guest frame; [`Error::Full`]; [`Error::Machine`].
    /// Nothing is changed then.
    pub fn convert(
        &mut self, vm: VmId, gfn: Gfn, pages: u64, private: bool, machine: &mut impl Machine,
    ) -> Result<(), Error> {
        if pages == 0 || pages > MOST || gfn.0 >= END || pages > END - gfn.0 {
            return Err(Error::BadSize);
        }
        let (of, range) = (vm.index() as u16, gfn.0..gfn.0 + pages);
        if private && !self.bits.reserve(Plane::Private, of, &range) {
            return Err(Error::Full);
        }
        if let Err(status) = machine.begin(vm, gfn, Gfn(range.end)) {
            self.bits.trim(Plane::Private, of, &range);
            return Err(Error::Machine(status));
        }
        machine.unmap(vm, gfn, pages, !private);
        machine.flush(vm);
        if private {
            self.bits.set(Plane::Private, of, &range);
        } else {
            self.bits.clear(Plane::Private, of, &range);
        }
        machine.end(vm);
        Ok(())
    }
}
