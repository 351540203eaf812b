//! What a guest's owner sends along with a launch: keys that only this platform can unwrap (55766 section 2.2 and
//! LAUNCH_START).

use p384::{PublicKey, SecretKey};

use crate::buffer::field;
use crate::crypto;
use crate::guests::Policy;
use crate::status::Status;

/// Bytes of a session: nonce, wrapped keys, IV, their MAC, the policy's MAC.
pub const LENGTH: usize = 128;

/// A guest's transport keys.
pub struct Keys {
    /// For encryption.
    pub tek: [u8; 16],
    /// For integrity.
    pub tik: [u8; 16],
}

/// Unwraps the keys: the Diffie-Hellman secret gives a master secret, this a key to decrypt and one to authenticate.
pub fn unwrap(session: &[u8; LENGTH], platform: &SecretKey, owner: &PublicKey, policy: Policy) -> Result<Keys, Status> {
    let nonce: [u8; 16] = field(session, 0);
    let mut wrapped: [u8; 32] = field(session, 16);
    let master: [u8; 16] = crypto::derive(&crypto::agree(platform, owner), "sev-master-secret", &nonce);
    let kek: [u8; 16] = crypto::derive(&master, "sev-kek", &[]);
    let kik: [u8; 16] = crypto::derive(&master, "sev-kik", &[]);
    if !crypto::hmac_is(&kik, &[&wrapped], &session[64..96]) {
        return Err(Status::BadMeasurement);
    }
    crypto::counter_mode(&kek, &field(session, 48), &mut wrapped);
    let keys = Keys { tek: field(&wrapped, 0), tik: field(&wrapped, 16) };
    if !crypto::hmac_is(&keys.tik, &[&policy.bits().to_le_bytes()], &session[96..]) {
        return Err(Status::BadMeasurement);
    }
    Ok(keys)
}
