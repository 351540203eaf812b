//! The machine layer.
#![no_std]
