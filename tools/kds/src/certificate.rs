//! One certificate: X.509 version 3, signed with RSA-PSS and SHA-384, as AMD's are (57230 chapter 3).

use std::str::FromStr;
use std::time::Duration;

use caisson_qemu_psp::config::{Chip, Tcb};
use rsa::pkcs8::EncodePublicKey;
use rsa::pss::{SigningKey, get_default_pss_signature_algo_id};
use rsa::rand_core::{CryptoRng, Error as NoRandomness, RngCore};
use rsa::sha2::{Digest, Sha384};
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use rsa::{RsaPrivateKey, RsaPublicKey};
use x509_cert::certificate::{TbsCertificate, Version};
use x509_cert::der::asn1::{Any, BitString, ObjectIdentifier};
use x509_cert::der::{Decode, Encode};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use crate::{Error, because, extensions};

/// 1 January 2026, in seconds, and how long a certificate holds: 25 years.
const NOT_BEFORE: u64 = 1_767_225_600;
const HOLDS: u64 = 25 * 365 * 86_400;
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Whose key is certified.
pub enum Subject<'a> {
    /// One that signs certificates, by name.
    Authority(&'a str, &'a RsaPublicKey),
    /// A chip's, uncompressed.
    Chip {
        /// The key.
        point: &'a [u8; 97],
        /// The chip.
        chip: &'a Chip,
        /// The security version that the key belongs to.
        tcb: Tcb,
    },
}

/// Makes a certificate, in DER.
pub fn issue(issuer: &str, key: &RsaPrivateKey, subject: Subject) -> Result<Vec<u8>, Error> {
    let algorithm = get_default_pss_signature_algo_id::<Sha384>().map_err(because("the signature's algorithm"))?;
    let (name, subject_public_key_info, extensions) = match subject {
        Subject::Authority(name, key) => {
            let der = key.to_public_key_der().map_err(because("a public key"))?;
            let info = SubjectPublicKeyInfoOwned::from_der(der.as_bytes()).map_err(because("a public key"))?;
            (name, info, extensions::authority()?)
        }
        Subject::Chip { point, chip, tcb } => ("SEV-VCEK", elliptic(point)?, extensions::chip(chip, tcb)?),
    };
    let time = |seconds| {
        x509_cert::der::DateTime::from_unix_duration(Duration::from_secs(seconds))
            .map(|time| Time::GeneralTime(time.into()))
            .map_err(because("a date"))
    };
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::from(1u32),
        signature: algorithm.clone(),
        issuer: named(issuer)?,
        validity: Validity { not_before: time(NOT_BEFORE)?, not_after: time(NOT_BEFORE + HOLDS)? },
        subject: named(name)?,
        subject_public_key_info,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    let message = tbs_certificate.to_der().map_err(because("a certificate"))?;
    let signature = SigningKey::<Sha384>::new(key.clone())
        .try_sign_with_rng(&mut Salt(Sha384::digest(&message).into(), 0), &message)
        .map_err(because("a signature"))?;
    let certificate = x509_cert::Certificate {
        tbs_certificate,
        signature_algorithm: algorithm,
        signature: BitString::from_bytes(&signature.to_bytes()).map_err(because("a signature"))?,
    };
    certificate.to_der().map_err(because("a certificate"))
}

fn named(name: &str) -> Result<Name, Error> {
    Name::from_str(&format!("CN={name},O=Caisson,OU=Emulated and not secret")).map_err(because("a name"))
}

fn elliptic(point: &[u8; 97]) -> Result<SubjectPublicKeyInfoOwned, Error> {
    Ok(SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned { oid: EC_PUBLIC_KEY, parameters: Some(Any::from(&SECP384R1)) },
        subject_public_key: BitString::from_bytes(point).map_err(because("a public key"))?,
    })
}

/// A salt that follows from what is signed, so that a chain is the same every time. The keys aren't secret anyway.
struct Salt([u8; 48], u64);

impl RngCore for Salt {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        for chunk in into.chunks_mut(48) {
            self.1 += 1;
            let block = Sha384::new().chain_update(self.0).chain_update(self.1.to_le_bytes()).finalize();
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), NoRandomness> {
        self.fill_bytes(into);
        Ok(())
    }
}

impl CryptoRng for Salt {}
