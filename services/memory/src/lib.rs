//! caisson-memory
