//! Certificates for emulated chips: what AMD's key server gives for real ones (57230).
//!
//! A chip signs reports with a key that depends on its security version. That this key is a chip's is said by a certificate
//! of the signing key (ASK), and this is certified by the root (ARK). Both of these keys lie in `keys/`, for everybody to
//! see: the chain has the form of AMD's and none of its worth.
#![forbid(unsafe_code)]

mod certificate;
mod extensions;

use caisson_qemu_psp::config::{Chip, Tcb};
use caisson_qemu_psp::snp::vcek_point;
use rsa::RsaPrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use x509_cert::der::Encode;
use x509_cert::der::pem::LineEnding;

use certificate::{Subject, issue};

/// A certificate couldn't be made.
#[derive(Debug)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

fn because<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Error + '_ {
    move |error| Error(format!("{what}: {error}"))
}

/// A chain, each certificate in DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The root.
    pub ark: Vec<u8>,
    /// The signing key.
    pub ask: Vec<u8>,
    /// The chip's key.
    pub vcek: Vec<u8>,
}

/// The chain for a chip at a security version. The same every time.
pub fn chain(chip: &Chip, tcb: Tcb) -> Result<Chain, Error> {
    let key = |bytes: &[u8]| RsaPrivateKey::from_pkcs1_der(bytes).map_err(because("a key of the chain"));
    let ark = key(include_bytes!("../keys/ark.der"))?;
    let ask = key(include_bytes!("../keys/ask.der"))?;
    let vcek = vcek_point(chip, tcb);
    Ok(Chain {
        ark: issue("ARK-Caisson-Emulated", &ark, Subject::Authority("ARK-Caisson-Emulated", &ark.to_public_key()))?,
        ask: issue("ARK-Caisson-Emulated", &ark, Subject::Authority("SEV-Caisson-Emulated", &ask.to_public_key()))?,
        vcek: issue("SEV-Caisson-Emulated", &ask, Subject::Chip { point: &vcek, chip, tcb })?,
    })
}

/// A certificate in PEM.
pub fn pem(der: &[u8]) -> Result<String, Error> {
    let certificate: x509_cert::Certificate =
        x509_cert::der::Decode::from_der(der).map_err(because("a certificate of the chain"))?;
    let bytes = certificate.to_der().map_err(because("a certificate of the chain"))?;
    x509_cert::der::pem::encode_string("CERTIFICATE", LineEnding::LF, &bytes).map_err(because("PEM"))
}
