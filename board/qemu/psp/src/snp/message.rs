//! Messages between guest and processor: a header that is authenticated and a payload that is encrypted too
//! (56860 section 8.26, "SNP_GUEST_REQUEST", and chapter 7).

use crate::buffer::{field, put};
use crate::crypto;

/// Bytes of a header.
pub const HEADER: usize = 0x60;
const ALGORITHM_AES_256_GCM: u8 = 1;
const VERSION: u8 = 1;
/// What is authenticated of the header.
const AUTHENTICATED: core::ops::Range<usize> = 0x30..HEADER;

/// What a message is about; the others of 56860 are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A key is wanted.
    KeyRequest = 3,
    /// The key.
    KeyResponse = 4,
    /// A report is wanted.
    ReportRequest = 5,
    /// The report.
    ReportResponse = 6,
}

/// A message in the clear, in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its number: odd for requests.
    pub sequence: u64,
    /// What it is about.
    pub kind: u8,
    /// Which key protects it, and so the VMPL that sends it.
    pub key: u8,
    /// Bytes of its payload.
    pub length: u16,
}

impl Message {
    /// Reads a header without believing it. None if it isn't of the form that this version has.
    pub fn parse(page: &[u8; 4096]) -> Option<Self> {
        let length = u16::from_le_bytes(field(page, 0x36));
        let fixed = (page[0x30], page[0x31], u16::from_le_bytes(field(page, 0x32)), page[0x35]);
        let zero = page[0x28..0x30].iter().chain(&page[0x38..0x3c]).chain(&page[0x3d..HEADER]).all(|byte| *byte == 0);
        if fixed != (ALGORITHM_AES_256_GCM, VERSION, HEADER as u16, VERSION) || !zero {
            return None;
        }
        if usize::from(length) > page.len() - HEADER {
            return None;
        }
        Some(Self { sequence: u64::from_le_bytes(field(page, 0x20)), kind: page[0x34], key: page[0x3c], length })
    }

    /// Decrypts the payload in place, if it is the work of somebody with this key.
    #[must_use]
    pub fn open(&self, key: &[u8; 32], page: &mut [u8; 4096]) -> bool {
        let tag = field(page, 0);
        let (head, payload) = page.split_at_mut(HEADER);
        let Some(payload) = payload.get_mut(..usize::from(self.length)) else { return false };
        crypto::open(key, &self.nonce(), &head[AUTHENTICATED], payload, &tag)
    }

    /// Writes the header and encrypts the payload, which is in its place, in place.
    #[must_use]
    pub fn seal(&self, key: &[u8; 32], page: &mut [u8; 4096]) -> bool {
        let nonce = self.nonce();
        let (head, payload) = page.split_at_mut(HEADER);
        head.fill(0);
        put(head, 0x20, &self.sequence.to_le_bytes());
        put(head, 0x30, &[ALGORITHM_AES_256_GCM, VERSION]);
        put(head, 0x32, &(HEADER as u16).to_le_bytes());
        put(head, 0x34, &[self.kind, VERSION]);
        put(head, 0x36, &self.length.to_le_bytes());
        put(head, 0x3c, &[self.key]);
        let Some(payload) = payload.get_mut(..usize::from(self.length)) else { return false };
        let Some(tag) = crypto::seal(key, &nonce, &head[AUTHENTICATED], payload) else { return false };
        put(head, 0, &tag);
        true
    }

    fn nonce(&self) -> [u8; 12] {
        field(&self.sequence.to_le_bytes(), 0)
    }
}
