//! A VM's network: its name, and the card's address there.

use caisson_proto::switch::Mac;

use crate::{Error, wrong};

/// Longest name of a network in bytes.
const MAX_NETWORK: usize = 32;

/// Checks the name of a VM's network.
///
/// # Errors
/// [`Error`] if it can't be used.
pub fn check_network(name: &str, network: &str) -> Result<(), Error> {
    let plain = network.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if network.is_empty() || network.len() > MAX_NETWORK || !plain {
        return Err(wrong!(
            "`network` of VM \"{name}\" is \"{network}\": give 1 to {MAX_NETWORK} lower-case letters, digits or \"-\""
        ));
    }
    Ok(())
}

/// Checks the Ethernet address of a VM's card.
///
/// # Errors
/// [`Error`] for what is no address, or one that no single card can have: a group's, or zeros.
pub fn check_mac(name: &str, text: &str) -> Result<Mac, Error> {
    let mut mac = Mac::default();
    let pairs: Vec<&str> = text.split(':').collect();
    let is_pair = |pair: &&str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    if pairs.len() != mac.len() || !pairs.iter().all(is_pair) {
        return Err(wrong!("`mac` of VM \"{name}\" is \"{text}\": give an address like 02:00:00:00:00:01"));
    }
    for (byte, pair) in mac.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    if mac[0] & 1 != 0 || mac == Mac::default() {
        return Err(wrong!(
            "`mac` of VM \"{name}\" is \"{text}\", which isn't the address of one card: make its first byte 02"
        ));
    }
    Ok(mac)
}

/// The address of a card whose VM's file names none: made locally, and of the VM's number, counted from 1.
pub const fn usual_mac(number: u8) -> Mac {
    [2, 0, 0, 0, 0, number]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::vm::VmFile;

    #[test]
    fn networks_and_addresses_are_checked() {
        assert_eq!(check_mac("a", "02:00:00:00:aB:ff"), Ok([2, 0, 0, 0, 0xab, 0xff]));
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "02:00:00:00:00:+1",
            "02-00-00-00-00-01",
            "2:0:0:0:0:1",
        ] {
            assert!(check_mac("a", text).unwrap_err().0.contains("an address like"), "{text}");
        }
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert!(check_mac("a", text).unwrap_err().0.contains("isn't the address of one card"), "{text}");
        }
        assert!(check_network("a", "lan-1").is_ok() && check_network("a", &"x".repeat(MAX_NETWORK)).is_ok());
        for network in ["", "Lan", "a b", &"x".repeat(MAX_NETWORK + 1)] {
            assert!(check_network("a", network).unwrap_err().0.contains("`network` of VM \"a\""), "{network}");
        }
        let file = VmFile::parse(Path::new("a.toml"), "network = \"lan\"\nmac = \"02:00:00:00:00:07\"").unwrap();
        assert_eq!((file.network.as_deref(), file.mac.as_deref()), (Some("lan"), Some("02:00:00:00:00:07")));
    }
}
