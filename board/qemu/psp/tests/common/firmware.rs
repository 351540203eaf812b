//! The firmware of `vectors/`, launched as a hypervisor launches it.

use super::*;

pub const FIRMWARE: &[u8] = include_bytes!("../vectors/firmware.bin");
/// Pages that a hypervisor adds: address, length, and what they are to the firmware (vectors/make.py has the same list).
const SECTIONS: [(u64, u64, u32); 4] =
    [(0x80_0000, 0x3000, 1), (0x80_d000, 0x1000, 2), (0x80_e000, 0x1000, 3), (0x81_1000, 0x2000, 1)];
/// Where save areas are to the guest.
const VMSA: u64 = 0xffff_ffff_f000;

/// A line of `digests.txt`.
pub struct Vector {
    pub mode: &'static str,
    pub hypervisor: &'static str,
    pub vcpus: u64,
    pub digest: Vec<u8>,
}

pub fn vectors() -> Vec<Vector> {
    let line = |line: &'static str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [mode, hypervisor, vcpus, hex] = words[..] else { panic!("{line}") };
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let digest = (0..hex.len()).step_by(2).map(byte).collect();
        Vector { mode, hypervisor, vcpus: vcpus.parse().expect("a number"), digest }
    };
    include_str!("../vectors/digests.txt").lines().map(line).collect()
}

fn save_area(mode: &str, hypervisor: &str, index: u64) -> &'static [u8] {
    match (mode, hypervisor, index) {
        ("seves", _, 0) => include_bytes!("../vectors/seves-QEMU-vmsa0.bin"),
        ("seves", _, _) => include_bytes!("../vectors/seves-QEMU-vmsa1.bin"),
        ("snp", "gce", 0) => include_bytes!("../vectors/snp-gce-vmsa0.bin"),
        ("snp", "gce", _) => include_bytes!("../vectors/snp-gce-vmsa1.bin"),
        ("snp", _, 0) => include_bytes!("../vectors/snp-QEMU-vmsa0.bin"),
        ("snp", _, _) => include_bytes!("../vectors/snp-QEMU-vmsa1.bin"),
        _ => panic!("{mode} {hypervisor}"),
    }
}

/// Where the guest's memory lies.
const MEMORY_AT: u64 = 4 << 20;

impl Vector {
    /// Launches an SEV or SEV-ES guest; the digest, as a report tells it.
    pub fn sev(&self, rig: &mut Rig) -> Vec<u8> {
        let (policy, asid) = if self.mode == "seves" { (4, 1) } else { (0, 5) };
        let handle = rig.guest(policy, asid);
        rig.machine.put(MEMORY_AT, FIRMWARE);
        let length = FIRMWARE.len() as u32;
        assert_eq!(rig.run(Command::LaunchUpdateData, &update(handle, MEMORY_AT, length)).0, Status::Success);
        for index in 0..self.vcpus {
            let at = MEMORY_AT + 0x10_0000 + index * 4096;
            rig.machine.put(at, save_area(self.mode, self.hypervisor, index));
            assert_eq!(rig.run(Command::LaunchUpdateVmsa, &update(handle, at, 4096)).0, Status::Success);
        }
        assert_eq!(rig.run(Command::LaunchMeasure, &update(handle, DATA, 48)).0, Status::Success);
        let report = pack(&[&words(&[handle, 0]), &DATA.to_le_bytes(), &[0; 16], &words(&[0xd0])]);
        assert_eq!(rig.run(Command::Attestation, &report).0, Status::Success);
        rig.machine.get(DATA + 16, 32).to_vec()
    }

    /// Launches an SNP guest; it runs, and can ask for reports.
    pub fn snp(&self, rig: &mut Rig, index: u64, asid: u16) -> snp::Talker {
        let context = rig.launching(index, u32::from(asid));
        let mut pages: Vec<(u32, u64, &[u8])> = Vec::new();
        let bottom = (4 << 30) - FIRMWARE.len() as u64;
        pages.extend(FIRMWARE.chunks(4096).zip(0..).map(|(page, number)| (1, bottom + number * 4096, page)));
        for (gpa, length, kind) in SECTIONS {
            let page_type = match (kind, self.hypervisor) {
                (1, "gce") => 4,
                (1, _) => 3,
                (2, _) => 5,
                _ => 6,
            };
            pages.extend((0..length / 4096).map(|number| (page_type, gpa + number * 4096, &[0; 4096][..])));
        }
        pages.extend((0..self.vcpus).map(|vcpu| (2, VMSA, save_area(self.mode, self.hypervisor, vcpu))));
        let mut secrets = 0;
        for ((page_type, gpa, content), number) in pages.into_iter().zip(0..) {
            let at = MEMORY_AT + index * 0x20_0000 + number * 4096;
            rig.machine.put(at, content);
            assert_eq!(rig.add(context, asid, page_type, at, gpa), Status::Success, "type {page_type} at {gpa:#x}");
            if page_type == 5 {
                secrets = at;
            }
        }
        assert_eq!(rig.finish(context), Status::Success);
        snp::Talker::new(rig, context, secrets)
    }
}
