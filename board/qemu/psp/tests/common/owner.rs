//! A guest's owner: makes a session, judges a measurement, wraps a secret. Written from what the `sev` crate does.

use caisson_qemu_psp::certificate::{Certificate, Usage};
use caisson_qemu_psp::config::Version;
use caisson_qemu_psp::crypto;

pub struct Owner {
    pub tek: [u8; 16],
    pub tik: [u8; 16],
}

pub struct Session {
    pub certificate: Vec<u8>,
    pub session: Vec<u8>,
}

impl Owner {
    pub fn new() -> Self {
        Self { tek: *b"transport encryp", tik: *b"transport integr" }
    }

    /// A session for the platform whose Diffie-Hellman certificate this is.
    pub fn session(&self, pdh: &[u8], policy: u32) -> Session {
        let secret = crypto::secret(&[0x42; 48]).expect("a scalar");
        let version = Version { major: 0, minor: 0, build: 0 };
        let certificate = Certificate::new(Usage::Pdh, &secret.public_key(), version);
        let platform = Certificate(pdh.try_into().expect("a certificate")).key(Usage::Pdh).expect("a key");
        let (nonce, iv) = ([7; 16], [9; 16]);
        let shared = crypto::agree(&secret, &platform);
        let master: [u8; 16] = crypto::derive(&shared, "sev-master-secret", &nonce);
        let kek: [u8; 16] = crypto::derive(&master, "sev-kek", &[]);
        let kik: [u8; 16] = crypto::derive(&master, "sev-kik", &[]);
        let mut wrapped = [self.tek, self.tik].concat();
        crypto::counter_mode(&kek, &iv, &mut wrapped);
        let session = [
            &nonce[..],
            &wrapped,
            &iv,
            &crypto::hmac(&kik, &[&wrapped]),
            &crypto::hmac(&self.tik, &[&policy.to_le_bytes()]),
        ];
        Session { certificate: certificate.0.to_vec(), session: session.concat() }
    }

    /// A packet's header and body.
    pub fn secret(&self, secret: &[u8], measurement: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (flags, iv) = ([0; 4], [3; 16]);
        let mut body = secret.to_vec();
        crypto::counter_mode(&self.tek, &iv, &mut body);
        let length = (body.len() as u32).to_le_bytes();
        let mac = crypto::hmac(&self.tik, &[&[1], &flags, &iv, &length, &length, &body, measurement]);
        ([&flags[..], &iv, &mac].concat(), body)
    }
}
