//! What certificates say beside names and keys. A chip's tells the security version and the chip's id, which verifiers
//! compare with a report's (57230 section 3.1).

use caisson_qemu_psp::config::{Chip, Tcb};
use x509_cert::der::Encode;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, OctetString};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};

use crate::{Error, because};

const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const KEY_USAGE: &str = "2.5.29.15";
const STRUCT_VERSION: &str = "1.3.6.1.4.1.3704.1.1";
const PRODUCT: &str = "1.3.6.1.4.1.3704.1.2";
const BOOT_LOADER: &str = "1.3.6.1.4.1.3704.1.3.1";
const TEE: &str = "1.3.6.1.4.1.3704.1.3.2";
const SNP: &str = "1.3.6.1.4.1.3704.1.3.3";
const MICROCODE: &str = "1.3.6.1.4.1.3704.1.3.8";
const CHIP: &str = "1.3.6.1.4.1.3704.1.4";

/// Of a key that signs certificates.
pub fn authority() -> Result<Vec<Extension>, Error> {
    let constraints = BasicConstraints { ca: true, path_len_constraint: None };
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    Ok(vec![encoded(BASIC_CONSTRAINTS, true, &constraints)?, encoded(KEY_USAGE, true, &usage)?])
}

/// Of a chip's key.
pub fn chip(chip: &Chip, tcb: Tcb) -> Result<Vec<Extension>, Error> {
    let product = Ia5StringRef::new("Genoa-emulated").map_err(because("the product's name"))?;
    Ok(vec![
        encoded(STRUCT_VERSION, false, &0u8)?,
        encoded(PRODUCT, false, &product)?,
        encoded(BOOT_LOADER, false, &tcb.boot_loader)?,
        encoded(TEE, false, &tcb.tee)?,
        encoded(SNP, false, &tcb.snp)?,
        encoded(MICROCODE, false, &tcb.microcode)?,
        // The id itself, without a type around it.
        extension(CHIP, false, chip.id.to_vec())?,
    ])
}

fn encoded(oid: &str, critical: bool, value: &impl Encode) -> Result<Extension, Error> {
    extension(oid, critical, value.to_der().map_err(because("an extension"))?)
}

fn extension(oid: &str, critical: bool, value: Vec<u8>) -> Result<Extension, Error> {
    Ok(Extension {
        extn_id: ObjectIdentifier::new(oid).map_err(because("an extension's name"))?,
        critical,
        extn_value: OctetString::new(value).map_err(because("an extension"))?,
    })
}
