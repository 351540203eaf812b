//! The page of a ring, for the algorithm of `services/rt`.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use caisson_rt::ring::Memory;

use crate::world::World;

/// The page.
pub struct Page(pub Rc<World>);

impl Page {
    fn word(&self, at: usize) -> u64 {
        self.0.ring.borrow().get(at / 8).copied().unwrap_or(0)
    }

    fn set(&self, at: usize, value: u64) {
        if let Some(word) = self.0.ring.borrow_mut().get_mut(at / 8) {
            *word = value;
        }
    }
}

impl Memory for Page {
    fn load64(&self, at: usize, _: Ordering) -> u64 {
        self.word(at)
    }
    fn store64(&self, at: usize, value: u64, _: Ordering) {
        self.set(at, value);
    }
    fn load32(&self, at: usize, _: Ordering) -> u32 {
        (self.word(at) >> (at % 8 * 8)) as u32
    }
    fn swap32(&self, at: usize, value: u32, order: Ordering) -> u32 {
        let before = self.load32(at, order);
        let shift = at % 8 * 8;
        self.set(at, self.word(at) & !(0xffff_ffff << shift) | u64::from(value) << shift);
        before
    }
    fn read_slot(&self, at: usize) -> [u64; 8] {
        core::array::from_fn(|n| self.word(at + n * 8))
    }
    fn write_slot(&self, at: usize, words: &[u64; 8]) {
        for (n, &word) in words.iter().enumerate() {
            self.set(at + n * 8, word);
        }
    }
    fn fence(&self) {}
}
