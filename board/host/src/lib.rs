//! caisson-host
