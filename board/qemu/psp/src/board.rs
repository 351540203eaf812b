//! All that the processor touches, and so the seam between it and where it runs.
//!
//! In QEMU a service implements [`Board`] with its `silicon` capability; the simulated machine implements it with its
//! model of DRAM. The processor keeps no fact about memory, the RMP or CPUs that isn't asked for here.

use caisson_proto::addr::{CpuId, Frame, Spa};

use crate::rmp::Entry;

/// An address-space identifier of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Asid(pub u16);

/// The key with which a guest's memory is encrypted.
#[derive(Clone, PartialEq, Eq)]
pub struct MemoryKey(pub [u8; 32]);

impl core::fmt::Debug for MemoryKey {
    fn fmt(&self, out: &mut core::fmt::Formatter) -> core::fmt::Result {
        out.write_str("MemoryKey(..)")
    }
}

/// Memory that can't be reached, or a table that can't be written, after it was said that it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// What a CPU shows to the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cpu {
    /// How many times it executed WBINVD since reset: begun and completed, WBNOINVD not counted.
    pub wbinvds: u64,
    /// SYSCFG\[SNPEn\] (APM volume 2, section 15.36.2).
    pub snp_enabled: bool,
    /// VM_HSAVE_PA.
    pub host_save: Spa,
}

/// What surrounds the processor.
pub trait Board {
    /// Whether these bytes are DRAM that the processor can reach at all.
    fn is_memory(&self, at: Spa, length: u64) -> bool;
    /// Reads DRAM, past the CPUs' caches and without any guest's key.
    fn read(&mut self, at: Spa, into: &mut [u8]) -> Result<(), Fault>;
    /// Writes DRAM, past the CPUs' caches and without any guest's key.
    fn write(&mut self, at: Spa, bytes: &[u8]) -> Result<(), Fault>;
    /// Writes DRAM through the key of a guest that is active in `asid`. A board without memory encryption writes plainly.
    fn write_private(&mut self, asid: Asid, at: Spa, bytes: &[u8]) -> Result<(), Fault>;
    /// Loads a guest's key into the memory controllers.
    fn install_key(&mut self, asid: Asid, key: &MemoryKey);
    /// Takes it out again.
    fn remove_key(&mut self, asid: Asid);
    /// Completes what the memory controllers and the fabric still hold.
    fn flush_fabric(&mut self) -> Result<(), Fault>;

    /// A frame's entry in the RMP; none if the RMP doesn't cover it.
    fn rmp(&mut self, frame: Frame) -> Option<Entry>;
    /// Changes a frame's entry, as the processor may and the host may not.
    fn set_rmp(&mut self, frame: Frame, entry: Entry) -> Result<(), Fault>;
    /// Makes every page that the RMP covers the host's.
    fn init_rmp(&mut self) -> Result<(), Fault>;

    /// What a CPU shows.
    fn cpu(&mut self, cpu: CpuId) -> Cpu;
    /// Random bytes.
    fn random(&mut self, into: &mut [u8]);

    /// The part of a page's content that is hashed into launch digests. All of it, but a simulation of many launches may
    /// choose less.
    fn hashed<'a>(&self, page: &'a [u8]) -> &'a [u8] {
        page
    }
}
