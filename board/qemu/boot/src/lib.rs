//! caisson-qemu-boot
