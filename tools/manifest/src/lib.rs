//! caisson-manifest
