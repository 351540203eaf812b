//! What a guest's virtio devices are to be, checked before anything is built.

use std::fs::File;
use std::path::Path;

use caisson_manifest::vm::{self, VmFile};
use caisson_proto::abi::MAX_SERVICES;
use caisson_proto::switch::PortRecord;
use caisson_proto::vmm::{Disk, Encryption, Net, Virtio};
use zerocopy::IntoBytes;

use super::Guest;
use crate::failure::{Context, Failure};

/// The devices of the VM of this number, counted from 1, with so many bytes of memory, by its file and its disk, if it has one.
pub fn virtio(name: &str, number: u8, memory: u64, file: &VmFile, disk: Option<&Path>) -> Result<Virtio, Failure> {
    let wrong = |what: &str| Err(Failure::setup(format!("VM \"{name}\": {what}")));
    if file.disk_overlay.is_some() && disk.is_none() {
        return wrong("`disk-overlay` needs a `disk`");
    }
    if file.balloon_target.is_some() && file.balloon != Some(true) {
        return wrong("`balloon-target` needs `balloon = true`");
    }
    if file.memory_plugged.is_some() && file.memory_max.is_none() {
        return wrong("`memory-plugged` needs `memory-max`");
    }
    let virtio = Virtio {
        disk: disk.map(|path| checked_disk(name, path, file)).transpose()?,
        balloon: match file.balloon {
            Some(true) => Some(vm::check_balloon(name, memory, file.balloon_target)?),
            _ => None,
        },
        plug: file.memory_max.map(|most| vm::check_plug(name, memory, most, file.memory_plugged)).transpose()?,
        console: file.virtio_console.unwrap_or(false),
        net: card(name, number, file)?,
    };
    if virtio != Virtio::default() && file.encryption.unwrap_or_default() != Encryption::None {
        return wrong(
            "it is encrypted, so devices can't reach its memory: leave out `disk`, `balloon`, `memory-max`, `virtio-console` and `network`",
        );
    }
    Ok(virtio)
}

/// The network's card.
fn card(name: &str, number: u8, file: &VmFile) -> Result<Option<Net>, Failure> {
    match (&file.network, &file.mac) {
        (Some(network), mac) => {
            vm::check_network(name, network)?;
            let mac = mac.as_deref().map_or(Ok(vm::usual_mac(number)), |mac| vm::check_mac(name, mac))?;
            Ok(Some(Net { mac }))
        }
        (None, Some(_)) => Err(Failure::setup(format!("VM \"{name}\": `mac` needs a `network`"))),
        (None, None) => Ok(None),
    }
}

/// Checks that nobody has the address of another in the same network.
pub fn addresses(guests: &[Guest]) -> Result<(), Failure> {
    let address = |guest: &Guest| guest.network.clone().zip(guest.virtio.net);
    for (at, guest) in guests.iter().enumerate() {
        let other = guests.iter().take(at).find(|other| address(other).is_some() && address(other) == address(guest));
        if let Some(other) = other {
            let (first, second) = (&other.name, &guest.name);
            return Err(Failure::setup(format!(
                "VMs \"{first}\" and \"{second}\" have the same address in one network: give each its own `mac`"
            )));
        }
    }
    Ok(())
}

/// What the switch is told: the port of each service, whose slots are of these VMs.
pub fn ports(guests: &[Guest], slots: impl Iterator<Item = Option<usize>>) -> Vec<u8> {
    let mut networks: Vec<&str> = guests.iter().filter_map(|guest| guest.network.as_deref()).collect();
    networks.sort_unstable();
    networks.dedup();
    let mut records = [PortRecord::default(); MAX_SERVICES];
    for (record, guest) in records.iter_mut().zip(slots).filter_map(|(record, vm)| Some((record, guests.get(vm?)?))) {
        let place = guest.network.as_deref().and_then(|name| networks.iter().position(|network| *network == name));
        if let Some((at, net)) = place.zip(guest.virtio.net) {
            // There are no more networks than guests.
            *record = PortRecord { network: at as u8 + 1, spare: 0, mac: net.mac };
        }
    }
    records.as_bytes().to_vec()
}

fn checked_disk(name: &str, path: &Path, file: &VmFile) -> Result<Disk, Failure> {
    let data = File::open(path).about("open the disk", path)?.metadata().about("look at", path)?;
    if !data.is_file() {
        return Err(Failure::setup(format!("the disk {} is no file", path.display())));
    }
    Ok(vm::check_disk(name, data.len(), file.disk_overlay)?)
}

#[cfg(test)]
mod tests {
    use caisson_proto::vmm::Plug;

    use super::*;

    #[test]
    fn keys_that_need_another_say_so() {
        const MIB: u64 = 1 << 20;
        let said = |text: &str, disk: Option<&Path>| {
            let file = VmFile::parse(Path::new("a.toml"), text).unwrap();
            virtio("a", 3, 128 * MIB, &file, disk).map_err(|failure| failure.text)
        };
        assert_eq!(said("", None), Ok(Virtio::default()));
        assert!(said("disk-overlay = \"1M\"", None).unwrap_err().contains("needs a `disk`"));
        assert!(said("balloon-target = \"1M\"", None).unwrap_err().contains("needs `balloon = true`"));
        assert!(said("mac = \"02:00:00:00:00:01\"", None).unwrap_err().contains("needs a `network`"));
        assert_eq!(said("network = \"lan\"", None).unwrap().net, Some(Net { mac: [2, 0, 0, 0, 0, 3] }));
        assert!(said("network = \"lan\"\nencryption = \"sev-snp\"", None).unwrap_err().contains("is encrypted"));
        assert!(said("memory-plugged = \"2M\"", None).unwrap_err().contains("needs `memory-max`"));
        let plug = said("memory-max = \"384M\"\nmemory-plugged = \"2M\"", None).unwrap().plug;
        assert_eq!(plug, Some(Plug { most: 256 * MIB, wanted: 2 * MIB }));
        assert!(said("memory-max = \"384M\"\nencryption = \"sev\"", None).unwrap_err().contains("is encrypted"));
        assert!(said("balloon = true\nencryption = \"sev\"", None).unwrap_err().contains("is encrypted"));
        assert!(said("", Some(Path::new("/nothing/there"))).unwrap_err().contains("open the disk"));
        assert!(said("", Some(Path::new("/"))).unwrap_err().contains("is no file"));
        let disk = tempfile::NamedTempFile::new().unwrap();
        assert!(said("", Some(disk.path())).unwrap_err().contains("whole sectors"));
        disk.as_file().set_len(MIB).unwrap();
        assert_eq!(said("", Some(disk.path())).unwrap().disk, Some(Disk { overlay: MIB }));
    }
}
