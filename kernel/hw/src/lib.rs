//! caisson-hw
