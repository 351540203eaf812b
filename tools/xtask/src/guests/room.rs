//! Does a guest's memory hold its kernel and its initrd side by side? The vmm puts the kernel where it prefers to lie
//! and the initrd as high as the kernel allows; a Multiboot kernel lies where it was linked, and the initrd behind it.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use caisson_manifest::vm::MEMORY_STEP;
use caisson_vmm::boot::multiboot::{self, Image};

use super::Guest;
use crate::bzimage::{self, Kernel};
use crate::failure::{Context, Failure};

/// What the kernel takes before it frees what it unpacked itself with: page tables and the map of its memory, in bytes.
const SPARE: u64 = 4 << 20;
/// Below 4 GiB a guest has no more memory than this, in bytes; the rest lies above.
const LOW_END: u64 = 3 << 30;
/// The initrd begins at a multiple of this many bytes.
const PAGE: u64 = 4096;
/// What says what a kernel is lies in so many bytes of it.
const HEAD: u64 = 8192;
/// An initrd lies above low memory.
const PLACE_HIGH: u64 = caisson_vmm::boot::place::HIGH;

/// Whether a kernel is entered by Multiboot. Linux kernels may have its mark too and have their own protocol.
pub fn is_multiboot(kernel: &Path) -> Result<bool, Failure> {
    let (mut file, _) = open(kernel, "kernel")?;
    let head = head(&mut file, kernel)?;
    Ok(bzimage::check(&head).is_err() && multiboot::is_multiboot(&head))
}

fn head(file: &mut File, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut head = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut head).about("read", path)?;
    Ok(head)
}

/// Checks a guest's kernel and initrd, and whether its memory holds both.
pub fn check(guest: &Guest) -> Result<(), Failure> {
    let (mut kernel, kernel_length) = open(&guest.kernel, "kernel")?;
    let initrd = guest.initrd.as_deref().map_or(Ok(0), |path| open(path, "initrd").map(|(_, length)| length))?;
    let head = head(&mut kernel, &guest.kernel)?;
    let bad = |why: String| Failure::setup(format!("the kernel {} {why}", guest.kernel.display()));
    let checked = bzimage::check(&head);
    if checked.is_err() && multiboot::is_multiboot(&head) {
        kernel.rewind().about("read", &guest.kernel)?;
        let mut whole = Vec::new();
        kernel.read_to_end(&mut whole).about("read", &guest.kernel)?;
        let image = Image::parse(&whole).map_err(|why| bad(why.to_string()))?;
        return fits_behind(guest.memory, image.end, initrd).map_err(|why| too_small(guest, &why));
    }
    let kernel = checked.map_err(bad)?;
    if kernel_length < kernel.file {
        return Err(bad(format!("is cut off: it has {kernel_length} of {} bytes", kernel.file)));
    }
    fits(guest.memory, &kernel, initrd).map_err(|why| too_small(guest, &why))
}

fn too_small(guest: &Guest, why: &str) -> Failure {
    Failure::setup(format!("VM \"{}\" has {} MiB of memory, {why}", guest.name, mib(guest.memory)))
}

/// What is wrong with so much memory for a kernel that ends at `end` and an initrd behind it.
fn fits_behind(memory: u64, end: u64, initrd: u64) -> Result<(), String> {
    let needed = if initrd == 0 { end } else { end.max(PLACE_HIGH).next_multiple_of(PAGE).saturating_add(initrd) };
    if needed > LOW_END {
        return Err(format!("and no memory would do: kernel and initrd must lie below {} MiB", mib(LOW_END)));
    }
    if needed > memory {
        let enough = mib(needed.next_multiple_of(MEMORY_STEP));
        return Err(format!("too little for its kernel and its initrd; give it {enough}M or more"));
    }
    Ok(())
}

fn open(path: &Path, what: &str) -> Result<(File, u64), Failure> {
    let file = File::open(path).about(&format!("open the {what}"), path)?;
    let data = file.metadata().about("look at", path)?;
    if !data.is_file() {
        return Err(Failure::setup(format!("the {what} {} is no file", path.display())));
    }
    Ok((file, data.len()))
}

/// What is wrong with so much memory for a kernel and an initrd of so many bytes.
fn fits(memory: u64, kernel: &Kernel, initrd: u64) -> Result<(), String> {
    let own = u64::from(kernel.init_size) + SPARE;
    let needed = kernel.address.saturating_add(own).saturating_add(initrd.next_multiple_of(PAGE));
    let top = LOW_END.min(u64::from(kernel.initrd_max) + 1);
    let parts = format!(
        "its kernel needs {} MiB from {} MiB on and its initrd {} MiB",
        mib(own),
        mib(kernel.address),
        mib(initrd)
    );
    if needed > top {
        return Err(format!("and no memory would do: {parts}, but both must lie below {} MiB", mib(top)));
    }
    if needed > memory {
        let enough = mib(needed.next_multiple_of(MEMORY_STEP));
        return Err(format!("too little for its kernel and its initrd: {parts}; give it {enough}M or more"));
    }
    Ok(())
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const KERNEL: Kernel = Kernel { address: 16 << 20, init_size: 52 << 20, initrd_max: 0x7fff_ffff, file: 0 };

    #[test]
    fn kernel_and_initrd_must_fit_together() {
        // 16 + 52 + 4 for the kernel; each alone would fit what both don't.
        assert_eq!(fits(80 * MIB, &KERNEL, 8 * MIB), Ok(()));
        assert_eq!(
            fits(80 * MIB, &KERNEL, 8 * MIB + 1).unwrap_err(),
            "too little for its kernel and its initrd: its kernel needs 56 MiB from 16 MiB on and its initrd 9 MiB; \
             give it 82M or more"
        );
        assert!(fits(78 * MIB, &KERNEL, 8 * MIB).is_err());
        assert_eq!(fits(72 * MIB, &KERNEL, 0), Ok(()));
    }

    #[test]
    fn what_lies_behind_a_kernel_counts_from_its_end() {
        assert_eq!(fits_behind(64 * MIB, 5 * MIB, 59 * MIB), Ok(()));
        assert!(fits_behind(64 * MIB, 5 * MIB + 1, 59 * MIB).unwrap_err().contains("give it 66M or more"));
        assert!(fits_behind(8 << 30, 5 * MIB, 3 << 30).unwrap_err().contains("no memory would do"));
        assert_eq!(fits_behind(64 * MIB, MIB / 2, 63 * MIB), Ok(()));
        assert!(fits_behind(64 * MIB, MIB / 2, 63 * MIB + 1).is_err());
    }

    #[test]
    fn an_initrd_that_never_fits_is_told_apart() {
        let error = fits(8 << 30, &KERNEL, 2 << 30).unwrap_err();
        assert!(error.contains("no memory would do") && error.contains("below 2048 MiB"), "{error}");
        let beyond = Kernel { address: u64::MAX, ..KERNEL };
        assert!(fits(8 << 30, &beyond, 0).is_err());
    }
}
