//! A board of plain memory, and a driver that says to it what a test wants said.
#![allow(dead_code, reason = "each test uses some of it")]

use std::collections::HashMap;

use caisson_proto::addr::{CpuId, Frame, Gpa, Spa};
use caisson_qemu_psp::rmp::{Entry, Size};
use caisson_qemu_psp::{Asid, Board, Command, Config, Cpu, Fault, Mailbox, MemoryKey, Processor, Register, Status};

pub mod firmware;
pub mod owner;
pub mod snp;

/// Memory ends here: 16 MiB.
pub const MEMORY: u64 = 16 << 20;
/// Frames that the RMP covers: all but the last MiB.
const COVERED: u64 = (15 << 20) >> 12;
/// Where command buffers lie: beyond the RMP, so that SNP doesn't change anything about them.
pub const COMMAND: u64 = 15 << 20;
/// Where buffers lie that commands name.
pub const DATA: u64 = (15 << 20) + 0x1_0000;

pub struct Machine {
    memory: Vec<u8>,
    pub rmp: Vec<Entry>,
    pub cpus: Vec<Cpu>,
    pub keys: HashMap<u16, MemoryKey>,
    /// What was written through a key: ASID and address of each piece.
    pub private: Vec<(u16, u64, usize)>,
    pub fabric: Result<(), Fault>,
    pub flushes: u32,
    seed: u64,
}

impl Machine {
    pub fn new(cpus: u16) -> Self {
        let cpu = Cpu { wbinvds: 0, snp_enabled: true, host_save: Spa(0) };
        Self {
            memory: vec![0; MEMORY as usize],
            rmp: vec![Entry::default(); COVERED as usize],
            cpus: vec![cpu; usize::from(cpus)],
            keys: HashMap::new(),
            private: Vec::new(),
            fabric: Ok(()),
            flushes: 0,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }

    pub fn wbinvd(&mut self) {
        self.cpus.iter_mut().for_each(|cpu| cpu.wbinvds += 1);
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub fn get(&self, at: u64, length: usize) -> &[u8] {
        &self.memory[at as usize..][..length]
    }

    pub fn entry(&mut self, at: u64) -> &mut Entry {
        &mut self.rmp[(at >> 12) as usize]
    }
}

impl Board for Machine {
    fn is_memory(&self, at: Spa, length: u64) -> bool {
        at.0.checked_add(length).is_some_and(|end| end <= MEMORY)
    }

    fn read(&mut self, at: Spa, into: &mut [u8]) -> Result<(), Fault> {
        into.copy_from_slice(self.get(at.0, into.len()));
        Ok(())
    }

    fn write(&mut self, at: Spa, bytes: &[u8]) -> Result<(), Fault> {
        self.put(at.0, bytes);
        Ok(())
    }

    fn write_private(&mut self, asid: Asid, at: Spa, bytes: &[u8]) -> Result<(), Fault> {
        assert!(self.keys.contains_key(&asid.0), "ASID {} has no key", asid.0);
        self.private.push((asid.0, at.0, bytes.len()));
        self.put(at.0, bytes);
        Ok(())
    }

    fn install_key(&mut self, asid: Asid, key: &MemoryKey) {
        assert!(self.keys.insert(asid.0, key.clone()).is_none(), "ASID {} has a key", asid.0);
    }

    fn remove_key(&mut self, asid: Asid) {
        assert!(self.keys.remove(&asid.0).is_some(), "ASID {} has no key", asid.0);
    }

    fn flush_fabric(&mut self) -> Result<(), Fault> {
        self.flushes += 1;
        self.fabric
    }

    fn rmp(&mut self, frame: Frame) -> Option<Entry> {
        self.rmp.get(frame.0 as usize).copied()
    }

    fn set_rmp(&mut self, frame: Frame, entry: Entry) -> Result<(), Fault> {
        *self.rmp.get_mut(frame.0 as usize).ok_or(Fault)? = entry;
        Ok(())
    }

    fn init_rmp(&mut self) -> Result<(), Fault> {
        self.rmp.fill(Entry::default());
        Ok(())
    }

    fn cpu(&mut self, cpu: CpuId) -> Cpu {
        self.cpus[usize::from(cpu.0)]
    }

    fn random(&mut self, into: &mut [u8]) {
        for byte in into {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            *byte = (self.seed >> 32) as u8;
        }
    }
}

/// A processor, its machine and a driver that speaks through the registers.
pub struct Rig {
    pub processor: Processor,
    pub machine: Machine,
    pub mailbox: Mailbox,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Config::emulated(4, 1))
    }

    pub fn with(config: Config) -> Self {
        let machine = Machine::new(config.cpus);
        Self { processor: Processor::new(config), machine, mailbox: Mailbox::new() }
    }

    /// With INIT done and ASIDs flushed. SEV-ES memory lies at 8 MiB.
    pub fn initialised() -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.run(Command::Init, &init(1, 8 << 20, 1 << 20)).0, Status::Success);
        rig.flush();
        rig
    }

    /// WBINVD on all CPUs, then DF_FLUSH.
    pub fn flush(&mut self) {
        self.machine.wbinvd();
        assert_eq!(self.run(Command::DfFlush, &[]).0, Status::Success);
    }

    /// Rings a command with this buffer; the status, and the buffer afterwards.
    pub fn run(&mut self, command: Command, buffer: &[u8]) -> (Status, Vec<u8>) {
        assert_eq!(buffer.len(), command.length(), "{command:?}");
        self.machine.put(COMMAND, buffer);
        let status = self.ring(command as u16, COMMAND);
        (status, self.machine.get(COMMAND, buffer.len()).to_vec())
    }

    /// Rings whatever this is.
    pub fn ring(&mut self, command: u16, at: u64) -> Status {
        self.mailbox.write(Register::AddressLow, at as u32);
        self.mailbox.write(Register::AddressHigh, (at >> 32) as u32);
        let ring =
            self.mailbox.write(Register::CommandResponse, u32::from(command) << 16).expect("the mailbox is free");
        let status = self.processor.ring(&mut self.machine, ring);
        self.mailbox.complete(status);
        let response = self.mailbox.read(Register::CommandResponse);
        assert_eq!(response >> 31, 1);
        Status::from_bits(response as u16).expect("a known status")
    }

    /// Launches a guest without an owner and binds it.
    pub fn guest(&mut self, policy: u32, asid: u32) -> u32 {
        let handle = self.start(policy);
        assert_eq!(self.run(Command::Activate, &words(&[handle, asid])).0, Status::Success);
        handle
    }

    pub fn start(&mut self, policy: u32) -> u32 {
        let (status, buffer) = self.run(Command::LaunchStart, &launch_start(policy));
        assert_eq!(status, Status::Success);
        word(&buffer, 0)
    }

    pub fn simple(&mut self, command: Command, handle: u32) -> Status {
        self.run(command, &words(&[handle])).0
    }

    /// State, guests and flags by PLATFORM_STATUS.
    pub fn status(&mut self) -> (u8, u32, u32) {
        let (status, buffer) = self.run(Command::PlatformStatus, &[0; 12]);
        assert_eq!(status, Status::Success);
        (buffer[2], word(&buffer, 8), word(&buffer, 3))
    }

    /// A PEK and PDH export: PDH, PEK, OCA, CEK one after the other.
    pub fn export(&mut self) -> Vec<u8> {
        let length = 0x824;
        let buffer =
            pack(&[&(DATA).to_le_bytes(), &words(&[length, 0]), &(DATA + 0x824).to_le_bytes(), &words(&[3 * length])]);
        assert_eq!(self.run(Command::PdhCertExport, &buffer).0, Status::Success);
        self.machine.get(DATA, 4 * 0x824).to_vec()
    }
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn pack(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// INIT's buffer.
pub fn init(flags: u32, at: u64, length: u32) -> Vec<u8> {
    pack(&[&words(&[flags, 0]), &at.to_le_bytes(), &words(&[length])])
}

/// INIT_EX's buffer.
pub fn init_ex(flags: u32, storage: u64) -> Vec<u8> {
    let donated = 8u64 << 20;
    pack(&[
        &words(&[36, flags]),
        &donated.to_le_bytes(),
        &words(&[1 << 20, 0]),
        &storage.to_le_bytes(),
        &words(&[0x8000]),
    ])
}

/// LAUNCH_START's buffer, without an owner.
pub fn launch_start(policy: u32) -> Vec<u8> {
    pack(&[&words(&[0, policy]), &[0; 28]])
}

/// Handle, address and length.
pub fn update(handle: u32, at: u64, length: u32) -> Vec<u8> {
    pack(&[&words(&[handle, 0]), &at.to_le_bytes(), &words(&[length])])
}

/// A page's entry as the host makes it for the processor to fill.
pub fn pre_guest(asid: u16, gpa: u64) -> Entry {
    Entry::pre_guest(Asid(asid), Gpa(gpa), Size::Small)
}
