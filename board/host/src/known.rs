//! What guests wrote to their pages.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// What a page holds; `None` if nobody can know.
pub type Holds = Option<u64>;

/// By VM and gfn.
#[derive(Debug, Default)]
pub struct Known(BTreeMap<u32, Vec<Option<Holds>>>);

impl Known {
    /// What is known of a page, if anything was written.
    pub fn get(&self, (vm, gfn): (u32, u64)) -> Option<Holds> {
        self.0.get(&vm)?.get(gfn as usize).copied().flatten()
    }

    /// It was written.
    pub fn insert(&mut self, (vm, gfn): (u32, u64), holds: Holds) {
        let pages = self.0.entry(vm).or_default();
        if pages.len() <= gfn as usize {
            pages.resize(gfn as usize + 1, None);
        }
        pages[gfn as usize] = Some(holds);
    }

    /// It isn't the VM's any more.
    pub fn remove(&mut self, (vm, gfn): (u32, u64)) {
        if let Some(page) = self.0.get_mut(&vm).and_then(|pages| pages.get_mut(gfn as usize)) {
            *page = None;
        }
    }

    /// Some page of a VM of which something is known.
    pub fn pick(&self, vm: u32, rng: &Rng) -> Option<u64> {
        let pages = self.0.get(&vm)?;
        let known = || (0..).zip(pages).filter(|(_, page)| page.is_some());
        known().nth(rng.below(known().count() as u64) as usize).map(|(gfn, _)| gfn)
    }
}
