//! The kernel's tables, as its own code walks and changes them.

use caisson_core::svm::npt::Tables;
use caisson_proto::addr::Frame;

use crate::world::World;

/// The kernel's tables as [`caisson_core::svm::npt`] sees them.
pub struct View<'a>(pub &'a World);

impl Tables for View<'_> {
    fn read(&self, table: Frame, index: usize) -> u64 {
        match self.0.tables.borrow().get(&table.0) {
            Some(entries) => entries[index],
            None => {
                self.0.fail(|| format!("a walk through frame {:#x}, which is no table", table.0));
                0
            }
        }
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        match self.0.tables.borrow_mut().get_mut(&table.0) {
            Some(entries) => entries[index] = entry,
            None => self.0.fail(|| format!("frame {:#x} is written as a table and is none", table.0)),
        }
    }
}
