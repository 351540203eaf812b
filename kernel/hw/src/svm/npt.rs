//! Nested page tables in kernel frames. Nothing here flushes a TLB.

use caisson_core::machine::{Removed, TablePool};
use caisson_core::svm::npt::{self, Mapping, Tree};
use caisson_proto::abi::Status;
use caisson_proto::addr::{Frame, Gfn};
use caisson_proto::kernel::Access;

use crate::tables::Mapped;

/// See [`npt::map`].
///
/// # Errors
/// As there.
pub fn map(
    root: Frame,
    gfn: Gfn,
    frame: Frame,
    pages: u64,
    access: Access,
    pool: &mut dyn TablePool,
) -> Result<(), Status> {
    npt::map(&mut Mapped, Tree::nested(root), gfn, frame, pages, access, pool)
}

/// See [`npt::unmap`].
///
/// # Errors
/// As there.
pub fn unmap(root: Frame, from: Gfn, end: Gfn, pool: &mut dyn TablePool) -> Result<Option<Removed>, Status> {
    npt::unmap(&mut Mapped, Tree::nested(root), from, end, pool)
}

/// See [`npt::look_up`].
pub fn look_up(root: Frame, gfn: Gfn) -> Option<Mapping> {
    npt::look_up(&Mapped, Tree::nested(root), gfn)
}

/// See [`npt::drop_all`].
pub fn drop_all(root: Frame, pool: &mut dyn TablePool) {
    npt::drop_all(&mut Mapped, Tree::nested(root), pool);
}
