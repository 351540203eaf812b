//! caisson-supervisor
