//! The kernel's tables, as its own code walks and changes them.

use caisson_core::svm::npt::{ENTRIES, Tables};
use caisson_proto::addr::Frame;

use crate::world::World;

/// The tables of services' spaces lie beyond memory, as far as it is the kernel's to give.
pub const SPACES: u64 = 1 << 36;

type Table = Option<Box<[u64; ENTRIES]>>;

/// What is in all of them.
#[derive(Default)]
pub struct Contents {
    frames: Vec<Table>,
    spaces: Vec<Table>,
}

impl Contents {
    /// Those of so many services, all empty.
    pub fn new(spaces: usize) -> Self {
        Self { frames: Vec::new(), spaces: (0..spaces).map(|_| Some(Box::new([0; ENTRIES]))).collect() }
    }

    fn at(&self, table: u64) -> Option<&[u64; ENTRIES]> {
        let place = match table.checked_sub(SPACES) {
            Some(slot) => self.spaces.get(slot as usize),
            None => self.frames.get(table as usize),
        };
        place?.as_deref()
    }

    fn at_mut(&mut self, table: u64) -> Option<&mut [u64; ENTRIES]> {
        let place = match table.checked_sub(SPACES) {
            Some(slot) => self.spaces.get_mut(slot as usize),
            None => self.frames.get_mut(table as usize),
        };
        place?.as_deref_mut()
    }

    /// A frame becomes a table, an empty one.
    pub fn insert(&mut self, frame: u64) {
        let at = frame as usize;
        if self.frames.len() <= at {
            self.frames.resize_with(at + 1, || None);
        }
        match &mut self.frames[at] {
            Some(table) => table.fill(0),
            none => *none = Some(Box::new([0; ENTRIES])),
        }
    }

    /// It is none any more.
    pub fn remove(&mut self, frame: u64) {
        if let Some(table) = self.frames.get_mut(frame as usize) {
            *table = None;
        }
    }
}

/// The kernel's tables as [`caisson_core::svm::npt`] sees them.
pub struct View<'a>(pub &'a World);

impl Tables for View<'_> {
    fn read(&self, table: Frame, index: usize) -> u64 {
        match self.0.tables.borrow().at(table.0) {
            Some(entries) => entries[index],
            None => {
                self.0.fail(|| format!("a walk through frame {:#x}, which is no table", table.0));
                0
            }
        }
    }

    fn write(&mut self, table: Frame, index: usize, entry: u64) {
        match self.0.tables.borrow_mut().at_mut(table.0) {
            Some(entries) => entries[index] = entry,
            None => self.0.fail(|| format!("frame {:#x} is written as a table and is none", table.0)),
        }
    }
}
