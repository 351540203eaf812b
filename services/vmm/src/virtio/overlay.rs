//! A disk's contents: a file that nobody changes, and what the guest wrote over it.

use alloc::vec::Vec;

/// Bytes that are copied at the first write to any of them.
pub const CLUSTER: usize = 4096;
/// In the place of a cluster's number: it is as the file has it.
const UNTOUCHED: u32 = u32::MAX;

/// There is no room for what was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The contents.
#[derive(Debug)]
pub struct Overlay {
    base: &'static [u8],
    /// For each cluster of the disk, its number among the copies.
    places: Vec<u32>,
    copies: Vec<u8>,
    /// Clusters that there may be copies of.
    limit: usize,
}

impl Overlay {
    /// A disk with the contents of `base`, of which `bytes` may be changed. All that it will ever take is taken now.
    ///
    /// # Errors
    /// [`Full`] if there is no memory for so much.
    pub fn new(base: &'static [u8], bytes: u64) -> Result<Self, Full> {
        let clusters = base.len().div_ceil(CLUSTER);
        let limit = usize::try_from(bytes).map_err(|_| Full)? / CLUSTER;
        let limit = limit.min(clusters);
        let (mut places, mut copies) = (Vec::new(), Vec::new());
        if limit > 0 {
            places.try_reserve_exact(clusters).map_err(|_| Full)?;
            places.resize(clusters, UNTOUCHED);
            copies.try_reserve_exact(limit * CLUSTER).map_err(|_| Full)?;
        }
        Ok(Self { base, places, copies, limit })
    }

    /// Length of the disk in bytes.
    pub fn bytes(&self) -> u64 {
        self.base.len() as u64
    }

    /// Whether nothing of it may be changed.
    pub fn is_read_only(&self) -> bool {
        self.limit == 0
    }

    fn copy(&self, cluster: usize) -> Option<usize> {
        self.places.get(cluster).filter(|place| **place != UNTOUCHED).map(|place| *place as usize * CLUSTER)
    }

    /// Bytes from `offset` on: as many as lie in one cluster, and at most `bytes`. None beyond the disk's end.
    pub fn get(&self, offset: u64, bytes: usize) -> &[u8] {
        let Ok(offset) = usize::try_from(offset) else { return &[] };
        let (cluster, within) = (offset / CLUSTER, offset % CLUSTER);
        let end = bytes.min(CLUSTER - within).min(self.base.len().saturating_sub(offset));
        let (from, start) = match self.copy(cluster) {
            Some(copy) => (self.copies.as_slice(), copy + within),
            None => (self.base, offset),
        };
        from.get(start..start + end).unwrap_or_default()
    }

    /// The same to be written, copied before.
    ///
    /// # Errors
    /// [`Full`] if no more may be changed.
    pub fn get_mut(&mut self, offset: u64, bytes: usize) -> Result<&mut [u8], Full> {
        let Ok(offset) = usize::try_from(offset) else { return Ok(&mut []) };
        let (cluster, within) = (offset / CLUSTER, offset % CLUSTER);
        let count = bytes.min(CLUSTER - within).min(self.base.len().saturating_sub(offset));
        if count == 0 {
            return Ok(&mut []);
        }
        let copy = match self.copy(cluster) {
            Some(copy) => copy,
            None => self.add(cluster)?,
        };
        self.copies.get_mut(copy + within..copy + within + count).ok_or(Full)
    }

    fn add(&mut self, cluster: usize) -> Result<usize, Full> {
        let number = self.copies.len() / CLUSTER;
        if number >= self.limit {
            return Err(Full);
        }
        let place = self.places.get_mut(cluster).ok_or(Full)?;
        *place = u32::try_from(number).map_err(|_| Full)?;
        let start = cluster * CLUSTER;
        let end = self.base.len().min(start + CLUSTER);
        // Nothing is allocated: the room was taken at the beginning.
        self.copies.extend_from_slice(self.base.get(start..end).unwrap_or_default());
        self.copies.resize((number + 1) * CLUSTER, 0);
        Ok(number * CLUSTER)
    }
}
