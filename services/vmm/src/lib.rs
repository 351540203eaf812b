//! caisson-vmm
