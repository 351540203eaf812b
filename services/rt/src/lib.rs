//! caisson-rt
