//! Entry of the kernel on QEMU, and the machine that it finds there.
//!
//! QEMU's `-kernel` starts an ELF file with a PVH note in 32-bit protected mode without paging, ebx pointing to
//! `pvh::StartInfo`. `start` has the way to long mode; `info` reads the machine into a
//! [`BootInfo`]; then the function named by [`entry!`] gets it.
//!
//! The kernel's binary needs `-C relocation-model=static` and, in its build script,
//! `cargo:rustc-link-arg-bins=-Tkernel.ld`. `kernel.ld` includes defmt's `defmt.x`.
#![no_std]
// Elsewhere only what has rules to test is used, by its tests.
#![cfg_attr(not(target_os = "none"), forbid(unsafe_code), allow(dead_code))]

pub use caisson_core::boot::BootInfo;

mod info;
mod pvh;
#[cfg(target_os = "none")]
mod start;

/// Names the kernel's main function: a `fn(&BootInfo) -> !`.
///
/// It is called once, on the boot CPU, with interrupts off, on a stack of 64 KiB, with the first 512 GiB of
/// physical memory mapped at their own addresses, and from `caisson_hw::layout::FRAMES_MAP` on.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn caisson_kernel_main(boot: &$crate::BootInfo) -> ! {
            $main(boot)
        }
    };
}
