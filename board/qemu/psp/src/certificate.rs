//! The certificates of the platform's own keys, in the form of 55766 appendix C.1.

use p384::{PublicKey, SecretKey};
use sha2::{Digest, Sha256};

use crate::buffer::{field, put};
use crate::config::Version;
use crate::crypto;

/// Bytes of a certificate.
pub const LENGTH: usize = 0x824;
/// What signatures cover: all before the first of them.
const BODY: usize = 0x414;
/// The two signatures: usage, algorithm, components.
const SLOTS: [usize; 2] = [0x414, 0x61c];
/// The curve's number (appendix C.3.2).
const P384: u32 = 2;
const ECDSA_SHA256: u32 = 2;
const ECDH_SHA256: u32 = 3;

/// What a key is for (55766 appendix C.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Usage {
    /// None: an empty signature.
    Invalid = 0x1000,
    /// The owner's key.
    Oca = 0x1001,
    /// The platform's endorsement key.
    Pek = 0x1002,
    /// The platform's Diffie-Hellman key.
    Pdh = 0x1003,
    /// The chip's endorsement key.
    Cek = 0x1004,
}

/// A certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate(pub [u8; LENGTH]);

impl core::fmt::Debug for Certificate {
    fn fmt(&self, out: &mut core::fmt::Formatter) -> core::fmt::Result {
        write!(out, "Certificate(usage {:#x})", self.u32(8))
    }
}

impl Certificate {
    /// A key without signatures. Only the endorsement key's tells a version.
    pub fn new(usage: Usage, key: &PublicKey, version: Version) -> Self {
        let mut certificate = Self([0; LENGTH]);
        certificate.set(0, &1u32.to_le_bytes());
        if usage == Usage::Pek {
            certificate.set(4, &[version.major, version.minor]);
        }
        let algorithm = if usage == Usage::Pdh { ECDH_SHA256 } else { ECDSA_SHA256 };
        certificate.set(8, &(usage as u32).to_le_bytes());
        certificate.set(0xc, &algorithm.to_le_bytes());
        let (x, y) = crypto::coordinates(key);
        certificate.set(0x10, &P384.to_le_bytes());
        certificate.set(0x14, &x);
        certificate.set(0x14 + crypto::COMPONENT, &y);
        for slot in SLOTS {
            certificate.set(slot, &(Usage::Invalid as u32).to_le_bytes());
        }
        certificate
    }

    /// Signs it in one of its two places.
    pub fn sign(&mut self, slot: usize, usage: Usage, key: &SecretKey) {
        let digest = Sha256::digest(&self.0[..BODY]);
        let (Some(at), Some((r, s))) = (SLOTS.get(slot), crypto::sign(key, &digest)) else { return };
        self.set(*at, &(usage as u32).to_le_bytes());
        self.set(at + 4, &ECDSA_SHA256.to_le_bytes());
        self.set(at + 8, &r);
        self.set(at + 8 + crypto::COMPONENT, &s);
    }

    /// Whether a key of this usage signed it, in either place.
    pub fn signed_by(&self, usage: Usage, key: &PublicKey) -> bool {
        let digest = Sha256::digest(&self.0[..BODY]);
        SLOTS.iter().any(|at| {
            self.u32(*at) == usage as u32
                && self.u32(at + 4) == ECDSA_SHA256
                && crypto::verify(key, &digest, &field(&self.0, at + 8), &field(&self.0, at + 8 + crypto::COMPONENT))
        })
    }

    /// Its key, if it is a version 1 certificate of a P-384 key for this usage. Other curves, and owners with RSA keys,
    /// are refused.
    pub fn key(&self, usage: Usage) -> Option<PublicKey> {
        let algorithm = if usage == Usage::Pdh { ECDH_SHA256 } else { ECDSA_SHA256 };
        let expected = [(0, 1), (8, usage as u32), (0xc, algorithm), (0x10, P384)];
        if expected.iter().any(|(at, value)| self.u32(*at) != *value) {
            return None;
        }
        crypto::public_key(&field(&self.0, 0x14), &field(&self.0, 0x14 + crypto::COMPONENT))
    }

    /// The place that a signature by `other` isn't in.
    pub fn place_beside(&self, other: Usage) -> usize {
        if self.u32(SLOTS[1]) == other as u32 { 0 } else { 1 }
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(field(&self.0, at))
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.0, at, bytes);
    }
}
