//! What a guest's virtio devices are to be, checked before anything is built.

use std::fs::File;
use std::path::Path;

use caisson_manifest::vm::{self, VmFile};
use caisson_proto::vmm::{Disk, Encryption, Virtio};

use crate::failure::{Context, Failure};

/// The devices of a VM with so many bytes of memory, by its file and its disk, if it has one.
pub fn virtio(name: &str, memory: u64, file: &VmFile, disk: Option<&Path>) -> Result<Virtio, Failure> {
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
    };
    if virtio != Virtio::default() && file.encryption.unwrap_or_default() != Encryption::None {
        return wrong(
            "it is encrypted, so devices can't reach its memory: leave out `disk`, `balloon`, `memory-max` and `virtio-console`",
        );
    }
    Ok(virtio)
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
            virtio("a", 128 * MIB, &file, disk).map_err(|failure| failure.text)
        };
        assert_eq!(said("", None), Ok(Virtio::default()));
        assert!(said("disk-overlay = \"1M\"", None).unwrap_err().contains("needs a `disk`"));
        assert!(said("balloon-target = \"1M\"", None).unwrap_err().contains("needs `balloon = true`"));
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
