//! Windows onto memory that somebody else can write at the same time: the guest's, a vCPU's state page, a lease.
//!
//! No reference to such memory ever exists. Every access is a volatile copy of bytes or words, inside a limit.

use core::mem::size_of;

use caisson_proto::abi::{Lease, MAX_VCPUS};
use caisson_proto::addr::{Gpa, PAGE_SIZE};
use caisson_proto::layout;
use caisson_proto::vcpu::VcpuState;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The range isn't inside the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfWindow;

/// A range of this service's addresses that others write too.
#[derive(Clone, Copy, Debug)]
struct Window {
    base: u64,
    bytes: u64,
}

impl Window {
    #[inline]
    fn at(&self, offset: u64, bytes: usize) -> Result<u64, OutOfWindow> {
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= self.bytes => Ok(self.base + offset),
            _ => Err(OutOfWindow),
        }
    }

    /// Copies a word out, in one access, if it is aligned.
    #[inline]
    fn word(&self, offset: u64) -> Option<u64> {
        let address = self.at(offset, 8).ok().filter(|address| address & 7 == 0)?;
        // SAFETY: as in `read`.
        Some(unsafe { (address as *const u64).read_volatile() })
    }

    /// Copies a word in, in one access, if it is aligned.
    #[inline]
    fn set_word(&self, offset: u64, word: u64) -> Option<()> {
        let address = self.at(offset, 8).ok().filter(|address| address & 7 == 0)?;
        // SAFETY: as in `write`.
        unsafe { (address as *mut u64).write_volatile(word) };
        Some(())
    }

    /// Copies out, in whole words where the shared side is aligned.
    #[inline]
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), OutOfWindow> {
        if let Ok(place) = <&mut [u8; 8]>::try_from(&mut *buffer)
            && let Some(word) = self.word(offset)
        {
            *place = word.to_le_bytes();
            return Ok(());
        }
        self.read_any(offset, buffer)
    }

    fn read_any(&self, offset: u64, buffer: &mut [u8]) -> Result<(), OutOfWindow> {
        let mut address = self.at(offset, buffer.len())?;
        let lead = (address.wrapping_neg() & 7).min(buffer.len() as u64) as usize;
        let (head, rest) = buffer.split_at_mut(lead);
        let (words, tail) = rest.as_chunks_mut::<8>();
        for byte in head {
            // SAFETY: `at` checked that the range is inside the window; what lies in a window is mapped or the
            // access faults this service; volatile, so whatever another party writes meanwhile is just a value.
            *byte = unsafe { (address as *const u8).read_volatile() };
            address += 1;
        }
        for word in words {
            // SAFETY: as above, and aligned to 8 after the leading bytes.
            *word = unsafe { (address as *const u64).read_volatile() }.to_le_bytes();
            address += 8;
        }
        for byte in tail {
            // SAFETY: as above.
            *byte = unsafe { (address as *const u8).read_volatile() };
            address += 1;
        }
        Ok(())
    }

    /// Copies in, in whole words where the shared side is aligned.
    #[inline]
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfWindow> {
        if let Ok(&word) = <&[u8; 8]>::try_from(bytes)
            && self.set_word(offset, u64::from_le_bytes(word)).is_some()
        {
            return Ok(());
        }
        self.write_any(offset, bytes)
    }

    fn write_any(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfWindow> {
        let mut address = self.at(offset, bytes.len())?;
        let lead = (address.wrapping_neg() & 7).min(bytes.len() as u64) as usize;
        let (head, rest) = bytes.split_at(lead);
        let (words, tail) = rest.as_chunks::<8>();
        for &byte in head {
            // SAFETY: as in `read`; a window that isn't writable faults this service. Nothing in Rust's own memory
            // lies in a window.
            unsafe { (address as *mut u8).write_volatile(byte) };
            address += 1;
        }
        for word in words {
            // SAFETY: as above, and aligned to 8 after the leading bytes.
            unsafe { (address as *mut u64).write_volatile(u64::from_le_bytes(*word)) };
            address += 8;
        }
        for &byte in tail {
            // SAFETY: as above.
            unsafe { (address as *mut u8).write_volatile(byte) };
            address += 1;
        }
        Ok(())
    }

    #[inline]
    fn get<T: FromBytes + IntoBytes>(&self, offset: u64) -> Result<T, OutOfWindow> {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    #[inline]
    fn put<T: IntoBytes + Immutable>(&self, offset: u64, value: &T) -> Result<(), OutOfWindow> {
        self.write(offset, value.as_bytes())
    }
}

/// The guest's shared memory, from guest-physical 0 to a limit. A page that memory hasn't populated faults this
/// service: keep count of what was.
#[derive(Clone, Copy, Debug)]
pub struct GuestWindow(Window);

impl GuestWindow {
    /// The guest's first `bytes` bytes. Capped at the end of a service's address space.
    pub const fn new(bytes: u64) -> Self {
        let most = layout::USER_END - layout::GUEST;
        Self(Window { base: layout::GUEST, bytes: if bytes < most { bytes } else { most } })
    }

    /// The limit in bytes.
    pub const fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Copies out of the guest.
    ///
    /// # Errors
    /// [`OutOfWindow`], and nothing was copied.
    #[inline]
    pub fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), OutOfWindow> {
        self.0.read(gpa.0, buffer)
    }

    /// Copies into the guest.
    ///
    /// # Errors
    /// [`OutOfWindow`], and nothing was copied.
    #[inline]
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), OutOfWindow> {
        self.0.write(gpa.0, bytes)
    }

    /// Copies a value out of the guest; one access if it is aligned and of 8 bytes.
    ///
    /// # Errors
    /// [`OutOfWindow`].
    pub fn get<T: FromBytes + IntoBytes>(&self, gpa: Gpa) -> Result<T, OutOfWindow> {
        self.0.get(gpa.0)
    }

    /// Copies a value into the guest; one access if it is aligned and of 8 bytes.
    ///
    /// # Errors
    /// [`OutOfWindow`].
    pub fn put<T: IntoBytes + Immutable>(&self, gpa: Gpa, value: &T) -> Result<(), OutOfWindow> {
        self.0.put(gpa.0, value)
    }
}

/// The state page of a vCPU of this vmm. It is there once `VcpuCreate` succeeded.
#[derive(Clone, Copy, Debug)]
pub struct StatePage(Window);

impl StatePage {
    /// The page of vCPU `index`; `None` if no VM has so many.
    pub const fn new(index: u8) -> Option<Self> {
        if (index as usize) < MAX_VCPUS {
            let base = layout::VCPU_STATE + index as u64 * PAGE_SIZE;
            Some(Self(Window { base, bytes: size_of::<VcpuState>() as u64 }))
        } else {
            None
        }
    }

    /// Copies everything out.
    pub fn read(&self) -> VcpuState {
        self.0.get(0).unwrap_or_default()
    }

    /// Copies everything in.
    pub fn write(&self, state: &VcpuState) {
        // The window is exactly as long as the type.
        let _ = self.0.put(0, state);
    }

    /// One field, at its `offset_of!(VcpuState, …)`.
    ///
    /// # Errors
    /// [`OutOfWindow`] if it isn't inside [`VcpuState`].
    pub fn get<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, OutOfWindow> {
        self.0.get(offset as u64)
    }

    /// Sets one field, at its `offset_of!(VcpuState, …)`.
    ///
    /// # Errors
    /// [`OutOfWindow`] if it isn't inside [`VcpuState`].
    pub fn put<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) -> Result<(), OutOfWindow> {
        self.0.put(offset as u64, value)
    }
}

/// Pages lent to this service for the call that it is serving.
#[derive(Clone, Copy, Debug)]
pub struct LeaseWindow(Window);

impl LeaseWindow {
    /// The pages of a delivered lease.
    pub const fn new(lease: &Lease) -> Self {
        Self(Window { base: lease.page.0 << 12, bytes: lease.pages * PAGE_SIZE })
    }

    /// Copies out of the lease.
    ///
    /// # Errors
    /// [`OutOfWindow`], and nothing was copied.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), OutOfWindow> {
        self.0.read(offset, buffer)
    }

    /// Copies into the lease, if it was lent for writing; else this service faults.
    ///
    /// # Errors
    /// [`OutOfWindow`], and nothing was copied.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfWindow> {
        self.0.write(offset, bytes)
    }
}
