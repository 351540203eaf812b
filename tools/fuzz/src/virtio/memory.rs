//! Guest memory that is nothing but bytes. It fails the test if a device reaches beyond it.

use std::collections::BTreeSet;
use std::ops::Range;

use caisson_proto::abi::Status;
use caisson_vmm::plugged::BLOCK;
use caisson_vmm::virtio::memory::{Broken, Reach};

/// Where memory can be plugged. There are no bytes behind it.
pub const REGION: Range<u64> = 4 << 30..(4 << 30) + 160 * BLOCK;

/// The memory, from address 0 on.
#[derive(Debug, Default)]
pub struct Flat {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What was given back, call by call: first page and how many.
    pub released: Vec<(u64, u64)>,
    /// memory answers this to whatever is given back.
    pub refuses: Option<Status>,
    /// None of it can be had any more.
    pub is_gone: bool,
    /// Blocks of [`REGION`] that are plugged.
    pub plugged: BTreeSet<u64>,
    /// Where was written, access by access: first byte and how many.
    pub written: Vec<(u64, usize)>,
}

impl Flat {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], ..Self::default() }
    }

    /// Writes as the driver does: what lies beyond the end is left out.
    pub fn put(&mut self, gpa: u64, from: &[u8]) {
        let start = usize::try_from(gpa).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes[start..].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// Reads as the driver does.
    pub fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
        self.bytes[gpa as usize..][..N].try_into().unwrap_or([0; N])
    }
}

impl Reach for Flat {
    fn contains(&self, gpa: u64, bytes: u64) -> bool {
        gpa.checked_add(bytes).is_some_and(|end| end <= self.bytes.len() as u64)
    }

    fn read(&mut self, gpa: u64, into: &mut [u8]) -> Result<(), Broken> {
        assert!(self.contains(gpa, into.len() as u64), "a read beyond memory");
        if self.is_gone {
            return Err(Broken::Memory);
        }
        into.copy_from_slice(&self.bytes[gpa as usize..][..into.len()]);
        Ok(())
    }

    fn write(&mut self, gpa: u64, from: &[u8]) -> Result<(), Broken> {
        assert!(self.contains(gpa, from.len() as u64), "a write beyond memory");
        if self.is_gone {
            return Err(Broken::Memory);
        }
        self.written.push((gpa, from.len()));
        self.bytes[gpa as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn plugged(&self, gpa: u64, bytes: u64) -> Option<(u64, u64)> {
        let end = gpa.checked_add(bytes).filter(|end| gpa >= REGION.start && *end <= REGION.end)?;
        let blocks = gpa / BLOCK..end.div_ceil(BLOCK);
        Some((self.plugged.range(blocks.clone()).count() as u64, blocks.end - blocks.start))
    }

    fn plug(&mut self, gpa: u64, bytes: u64) -> Result<(), Status> {
        assert!(gpa.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK) && bytes > 0);
        assert_eq!(self.plugged(gpa, bytes).map(|(plugged, _)| plugged), Some(0), "blocks that are plugged");
        if let Some(status) = self.refuses {
            return Err(status);
        }
        self.plugged.extend(gpa / BLOCK..(gpa + bytes) / BLOCK);
        Ok(())
    }

    fn unplug(&mut self, gpa: u64, bytes: u64) -> Result<(), Status> {
        assert!(gpa.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK) && bytes > 0);
        let count = bytes / BLOCK;
        assert_eq!(self.plugged(gpa, bytes), Some((count, count)), "blocks that aren't plugged");
        if let Some(status) = self.refuses {
            return Err(status);
        }
        self.plugged.retain(|block| !(gpa / BLOCK..(gpa + bytes) / BLOCK).contains(block));
        Ok(())
    }

    fn release(&mut self, gfn: u64, pages: u64) -> Result<(), Status> {
        if !self.contains(gfn << 12, pages << 12) || pages == 0 {
            return Err(Status::Range);
        }
        if let Some(status) = self.refuses {
            return Err(status);
        }
        self.released.push((gfn, pages));
        self.bytes[gfn as usize * 4096..][..pages as usize * 4096].fill(0);
        Ok(())
    }
}
