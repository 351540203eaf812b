//! The platform's own keys: who owns it, its endorsement key and its Diffie-Hellman key (55766 chapter 2).
//!
//! Only secrets are kept; certificates are made when somebody asks, so that a platform costs nothing until then.

use p384::SecretKey;

use crate::board::Board;
use crate::buffer::{field, put};
use crate::certificate::{Certificate, LENGTH, Usage};
use crate::config::{Chip, Version};
use crate::crypto;

/// Bytes of an identity as it is stored.
pub const STORED: usize = 1 + 2 * KEY + 2 * LENGTH;
const KEY: usize = 48;

/// Who owns the platform.
#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one, and no heap")]
pub enum Owner {
    /// The platform itself, by this key.
    Itself(SecretKey),
    /// Somebody else.
    External {
        /// The owner's certificate.
        oca: Certificate,
        /// The endorsement key's, signed by the owner.
        pek: Certificate,
    },
}

/// The keys.
#[derive(Clone)]
pub struct Identity {
    /// The owner.
    pub owner: Owner,
    /// The endorsement key.
    pub pek: SecretKey,
    /// The Diffie-Hellman key.
    pub pdh: SecretKey,
}

/// A new secret key.
pub fn fresh(board: &mut impl Board) -> SecretKey {
    loop {
        let mut bytes = [0; KEY];
        board.random(&mut bytes);
        if let Some(key) = crypto::secret(&bytes) {
            return key;
        }
    }
}

/// A key that the chip always has. The labels are those of AMD's tools; the derivation is ours, as theirs isn't public.
pub fn chip_key(chip: &Chip, label: &str, context: &[u8]) -> SecretKey {
    let mut round = 0u32;
    loop {
        let mut bytes = [0; KEY];
        for (part, chunk) in bytes.chunks_mut(32).enumerate() {
            let block = crypto::hmac(&chip.secret, &[&round.to_le_bytes(), &[part as u8], label.as_bytes(), context]);
            put(chunk, 0, &block);
        }
        if let Some(key) = crypto::secret(&bytes) {
            return key;
        }
        round = round.wrapping_add(1);
    }
}

impl Identity {
    /// One that nobody had before, owned by the platform itself.
    pub fn new(board: &mut impl Board) -> Self {
        Self { owner: Owner::Itself(fresh(board)), pek: fresh(board), pdh: fresh(board) }
    }

    /// The endorsement key's certificate, without signatures.
    pub fn request(&self, version: Version) -> Certificate {
        Certificate::new(Usage::Pek, &self.pek.public_key(), version)
    }

    /// The certificates of the Diffie-Hellman key, the endorsement key, the owner and the chip. The owner and the chip vouch
    /// for the endorsement key, it for the Diffie-Hellman key. For the chip's nobody vouches here (55766 section 5.9: its
    /// signed certificate comes from AMD's server).
    pub fn certificates(&self, chip: &Chip, version: Version) -> [Certificate; 4] {
        let cek = chip_key(chip, "sev-chip-endorsement-key", &[]);
        let (oca, mut pek) = match &self.owner {
            Owner::Itself(key) => {
                let mut oca = Certificate::new(Usage::Oca, &key.public_key(), version);
                oca.sign(0, Usage::Oca, key);
                let mut pek = self.request(version);
                pek.sign(0, Usage::Oca, key);
                (oca, pek)
            }
            Owner::External { oca, pek } => (oca.clone(), pek.clone()),
        };
        pek.sign(pek.place_beside(Usage::Oca), Usage::Cek, &cek);
        let mut pdh = Certificate::new(Usage::Pdh, &self.pdh.public_key(), version);
        pdh.sign(0, Usage::Pek, &self.pek);
        [pdh, pek, oca, Certificate::new(Usage::Cek, &cek.public_key(), version)]
    }

    /// As it is stored.
    pub fn bytes(&self) -> [u8; STORED] {
        let mut out = [0; STORED];
        put(&mut out, 1, &self.pek.to_bytes());
        put(&mut out, 1 + KEY, &self.pdh.to_bytes());
        match &self.owner {
            Owner::Itself(key) => put(&mut out, 1 + 2 * KEY, &key.to_bytes()),
            Owner::External { oca, pek } => {
                out[0] = 1;
                put(&mut out, 1 + 2 * KEY, &oca.0);
                put(&mut out, 1 + 2 * KEY + LENGTH, &pek.0);
            }
        }
        out
    }

    /// As it was stored.
    pub fn from_bytes(bytes: &[u8; STORED]) -> Option<Self> {
        let key = |index: usize| crypto::secret(&field(bytes, 1 + index * KEY));
        let certificate = |index: usize| Certificate(field(bytes, 1 + 2 * KEY + index * LENGTH));
        let owner = match bytes[0] {
            0 => Owner::Itself(key(2)?),
            1 => Owner::External { oca: certificate(0), pek: certificate(1) },
            _ => return None,
        };
        Some(Self { owner, pek: key(0)?, pdh: key(1)? })
    }
}
