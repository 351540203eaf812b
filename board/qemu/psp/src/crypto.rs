//! The primitives, as the specifications use them: little-endian numbers of 72 bytes, and keys derived by counter.

use aes::Aes128;
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::AeadInOut;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::{Hmac, KeyInit, Mac};
use p384::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
use p384::elliptic_curve::sec1::{FromSec1Point, ToSec1Point};
use p384::{PublicKey, Sec1Point, SecretKey};
use sha2::Sha256;

/// Bytes of a coordinate or of half a signature, least significant first, padded with zeros (55766 appendix C.3.2).
pub const COMPONENT: usize = 72;
/// Bytes of a P-384 coordinate.
const COORDINATE: usize = 48;

/// HMAC-SHA-256 of the parts one after the other.
pub fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = mac_of(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Whether `tag` is that HMAC; takes as long whether it is or not.
pub fn hmac_is(key: &[u8], parts: &[&[u8]], tag: &[u8]) -> bool {
    let mut mac = mac_of(key);
    parts.iter().for_each(|part| mac.update(part));
    mac.verify_slice(tag).is_ok()
}

fn mac_of(key: &[u8]) -> Hmac<Sha256> {
    // A key of an HMAC may have any length; an empty one can't be reached, and would be refused by what follows.
    Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()))
}

/// Derives up to 32 bytes from a key: NIST SP 800-108 in counter mode with HMAC-SHA-256, numbers little-endian
/// (55766 chapter 2; agrees with the `sev` crate's vectors).
pub fn derive<const N: usize>(key: &[u8], label: &str, context: &[u8]) -> [u8; N] {
    const { assert!(N <= 32) };
    let bits = (N as u32) * 8;
    let block = hmac(key, &[&1u32.to_le_bytes(), label.as_bytes(), &[0], context, &bits.to_le_bytes()]);
    let mut out = [0; N];
    out.copy_from_slice(&block[..N]);
    out
}

/// Encrypts or decrypts in place: AES-128 in counter mode.
pub fn counter_mode(key: &[u8; 16], iv: &[u8; 16], data: &mut [u8]) {
    Ctr128BE::<Aes128>::new(&(*key).into(), &(*iv).into()).apply_keystream(data);
}

/// A secret key from 48 random bytes; none if they are no valid scalar, which is less likely than 2⁻¹⁹⁰.
pub fn secret(bytes: &[u8; COORDINATE]) -> Option<SecretKey> {
    SecretKey::from_slice(bytes).ok()
}

/// A public key's coordinates.
pub fn coordinates(key: &PublicKey) -> ([u8; COMPONENT], [u8; COMPONENT]) {
    let point = key.to_sec1_point(false);
    let (mut x, mut y) = ([0; COMPONENT], [0; COMPONENT]);
    if let (Some(px), Some(py)) = (point.x(), point.y()) {
        reverse(px, &mut x);
        reverse(py, &mut y);
    }
    (x, y)
}

/// The public key with these coordinates, if they are a point of the curve.
pub fn public_key(x: &[u8; COMPONENT], y: &[u8; COMPONENT]) -> Option<PublicKey> {
    let (x, y) = (big_endian(x)?, big_endian(y)?);
    let point = Sec1Point::from_affine_coordinates(&x.into(), &y.into(), false);
    Option::from(PublicKey::from_sec1_point(&point))
}

/// The shared secret: the x coordinate, most significant byte first.
pub fn agree(secret: &SecretKey, public: &PublicKey) -> [u8; COORDINATE] {
    let shared = p384::ecdh::diffie_hellman(secret.to_nonzero_scalar(), public.as_affine());
    let mut out = [0; COORDINATE];
    out.copy_from_slice(shared.raw_secret_bytes().as_slice());
    out
}

/// Signs a digest. None can't happen with SHA-256 or longer.
pub fn sign(secret: &SecretKey, digest: &[u8]) -> Option<([u8; COMPONENT], [u8; COMPONENT])> {
    let signature: Signature = SigningKey::from(secret).sign_prehash(digest).ok()?;
    let (r, s) = signature.split_bytes();
    let (mut out_r, mut out_s) = ([0; COMPONENT], [0; COMPONENT]);
    reverse(r.as_slice(), &mut out_r);
    reverse(s.as_slice(), &mut out_s);
    Some((out_r, out_s))
}

/// Whether this signature of a digest is right.
pub fn verify(public: &PublicKey, digest: &[u8], r: &[u8; COMPONENT], s: &[u8; COMPONENT]) -> bool {
    let (Some(r), Some(s)) = (big_endian(r), big_endian(s)) else { return false };
    Signature::from_scalars(r, s)
        .is_ok_and(|signature| VerifyingKey::from(public).verify_prehash(digest, &signature).is_ok())
}

fn reverse(from: &[u8], into: &mut [u8; COMPONENT]) {
    into.iter_mut().zip(from.iter().rev()).for_each(|(to, byte)| *to = *byte);
}

/// None if it is longer than a coordinate.
fn big_endian(component: &[u8; COMPONENT]) -> Option<[u8; COORDINATE]> {
    let (low, high) = component.split_at(COORDINATE);
    let mut out = [0; COORDINATE];
    out.iter_mut().zip(low.iter().rev()).for_each(|(to, byte)| *to = *byte);
    high.iter().all(|byte| *byte == 0).then_some(out)
}

/// Encrypts in place and authenticates, with AES-256-GCM. None can't happen: nothing here is that long.
pub fn seal(key: &[u8; 32], nonce: &[u8; 12], associated: &[u8], data: &mut [u8]) -> Option<[u8; 16]> {
    let cipher = Aes256Gcm::new(&(*key).into());
    cipher.encrypt_inout_detached(&(*nonce).into(), associated, data.into()).ok().map(Into::into)
}

/// Decrypts in place if the tag is right; else says so, and the data is worth nothing.
#[must_use]
pub fn open(key: &[u8; 32], nonce: &[u8; 12], associated: &[u8], data: &mut [u8], tag: &[u8; 16]) -> bool {
    let cipher = Aes256Gcm::new(&(*key).into());
    cipher.decrypt_inout_detached(&(*nonce).into(), associated, data.into(), &(*tag).into()).is_ok()
}
