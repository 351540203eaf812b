//! caisson-kernel
