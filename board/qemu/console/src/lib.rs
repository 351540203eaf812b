//! caisson-qemu-console
