//! Driving SNP guests.

use caisson_proto::addr::Gpa;
use caisson_qemu_psp::rmp::{Entry, Size};
use caisson_qemu_psp::snp::{HEADER, Message};
use caisson_qemu_psp::{Command, Status};

use super::*;

/// A policy that everybody accepts.
pub const POLICY: u64 = 0x3_0000;
/// Where contexts lie: 1 MiB, one page each.
pub const CONTEXTS: u64 = 1 << 20;

impl Rig {
    /// With SNP_INIT_EX done and ASIDs flushed.
    pub fn snp() -> Self {
        let mut rig = Self::new();
        rig.machine.wbinvd();
        assert_eq!(rig.run(Command::SnpInitEx, &snp_init(1)).0, Status::Success);
        rig.snp_flush();
        rig
    }

    pub fn snp_flush(&mut self) {
        self.machine.wbinvd();
        assert_eq!(self.run(Command::SnpDfFlush, &[]).0, Status::Success);
    }

    /// A new context at this page.
    pub fn context(&mut self, at: u64) -> u64 {
        *self.machine.entry(at) = Entry::firmware(Size::Small);
        assert_eq!(self.addressed(Command::SnpGctxCreate, at), Status::Success);
        at
    }

    /// A guest in its launch, bound to an ASID.
    pub fn launching(&mut self, index: u64, asid: u32) -> u64 {
        let context = self.context(CONTEXTS + index * 4096);
        assert_eq!(self.run(Command::SnpLaunchStart, &snp_start(context, POLICY)).0, Status::Success);
        assert_eq!(self.run(Command::SnpActivate, &snp_activate(context, asid)).0, Status::Success);
        context
    }

    /// Gives the processor a page to fill.
    pub fn add(&mut self, context: u64, asid: u16, page_type: u32, at: u64, gpa: u64) -> Status {
        *self.machine.entry(at) = Entry::pre_guest(Asid(asid), Gpa(gpa), Size::Small);
        self.run(Command::SnpLaunchUpdate, &snp_update(context, page_type << 1, at)).0
    }

    pub fn finish(&mut self, context: u64) -> Status {
        self.run(Command::SnpLaunchFinish, &pack(&[&context.to_le_bytes(), &[0; 56]])).0
    }

    /// A command whose buffer is an address.
    pub fn addressed(&mut self, command: Command, at: u64) -> Status {
        self.run(command, &at.to_le_bytes()).0
    }

    /// SNP_GUEST_STATUS: policy, ASID, state.
    pub fn snp_status(&mut self, context: u64) -> (u64, u32, u8) {
        let (status, _) = self.run(Command::SnpGuestStatus, &pack(&[&context.to_le_bytes(), &DATA.to_le_bytes()]));
        assert_eq!(status, Status::Success);
        let page = self.machine.get(DATA, 32);
        (u64::from_le_bytes(page[..8].try_into().expect("eight bytes")), word(page, 8), page[12])
    }
}

pub fn snp_init(flags: u32) -> Vec<u8> {
    pack(&[&words(&[flags]), &[0; 60]])
}

pub fn snp_start(context: u64, policy: u64) -> Vec<u8> {
    pack(&[&context.to_le_bytes(), &policy.to_le_bytes(), &[0; 32]])
}

pub fn snp_activate(context: u64, asid: u32) -> Vec<u8> {
    pack(&[&context.to_le_bytes(), &words(&[asid])])
}

/// Flags: bit 0 the size, \[3:1\] the type.
pub fn snp_update(context: u64, flags: u32, at: u64) -> Vec<u8> {
    pack(&[&context.to_le_bytes(), &words(&[flags, 0]), &at.to_le_bytes(), &[0; 8]])
}

/// A guest that runs, and what it read in its secrets page.
#[derive(Clone)]
pub struct Talker {
    pub context: u64,
    pub keys: [[u8; 32]; 4],
    pub key: u8,
    pub sequence: u64,
}

impl Talker {
    /// Launches a guest with its secrets and a page that is measured.
    pub fn launch(rig: &mut Rig, index: u64, asid: u16) -> Self {
        Self::launch_with(rig, index, asid, &[(5, 0x1000), (1, 0x2000)])
    }

    /// Launches a guest with pages of these types at these addresses; the first must be its secrets.
    pub fn launch_with(rig: &mut Rig, index: u64, asid: u16, pages: &[(u32, u64)]) -> Self {
        let context = rig.launching(index, u32::from(asid));
        let secrets = (5 << 20) + index * 0x1_0000;
        for ((page_type, gpa), number) in pages.iter().zip(0..) {
            assert_eq!(rig.add(context, asid, *page_type, secrets + number * 4096, *gpa), Status::Success);
        }
        assert_eq!(rig.finish(context), Status::Success);
        Self::new(rig, context, secrets)
    }

    /// The guest with this context and this secrets page.
    pub fn new(rig: &Rig, context: u64, secrets: u64) -> Self {
        let page = rig.machine.get(secrets, 4096);
        let keys = std::array::from_fn(|index| page[32 + index * 32..][..32].try_into().expect("a key"));
        Self { context, keys, key: 0, sequence: 0 }
    }

    /// The next message.
    pub fn sealed(&self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut page = [0; 4096];
        page[HEADER..][..payload.len()].copy_from_slice(payload);
        let length = payload.len() as u16;
        let message = Message { sequence: self.sequence + 1, kind, key: self.key, length };
        assert!(message.seal(&self.keys[usize::from(self.key)], &mut page));
        page.to_vec()
    }

    /// Sends a page as it is; the response lies in the page after it.
    pub fn send(&self, rig: &mut Rig, page: &[u8]) -> Status {
        rig.machine.put(DATA, page);
        let pages = [DATA.to_le_bytes(), (DATA + 0x1000).to_le_bytes()];
        rig.run(Command::SnpGuestRequest, &pack(&[&self.context.to_le_bytes(), &pages[0], &pages[1]])).0
    }

    /// Asks; kind and payload of the answer.
    pub fn ask(&mut self, rig: &mut Rig, kind: u8, payload: &[u8]) -> Result<(u8, Vec<u8>), Status> {
        let request = self.sealed(kind, payload);
        match self.send(rig, &request) {
            Status::Success => {}
            status => return Err(status),
        }
        let mut page: [u8; 4096] = rig.machine.get(DATA + 0x1000, 4096).try_into().expect("a page");
        let message = Message::parse(&page).expect("a message");
        self.sequence += 2;
        assert_eq!((message.sequence, message.key), (self.sequence, self.key));
        assert!(message.open(&self.keys[usize::from(self.key)], &mut page));
        Ok((message.kind, page[HEADER..][..usize::from(message.length)].to_vec()))
    }

    /// A report, or the status in the answer.
    pub fn report(&mut self, rig: &mut Rig, vmpl: u32, data: &[u8; 64]) -> Result<Vec<u8>, u32> {
        let (kind, response) = self.ask(rig, 5, &pack(&[data, &words(&[vmpl, 0]), &[0; 24]])).expect("an answer");
        assert_eq!(kind, 6);
        if word(&response, 0) != 0 {
            return Err(word(&response, 0));
        }
        assert_eq!(word(&response, 4), 0x4a0);
        Ok(response[0x20..].to_vec())
    }
}

impl Rig {
    /// Ends a launch and asks the guest what was measured. For this it gets a secrets page,
    /// as its last.
    pub fn digest(&mut self, context: u64) -> Vec<u8> {
        let asid = self.snp_status(context).1 as u16;
        let secrets = (13 << 20) + u64::from(asid) * 4096;
        assert_eq!(self.add(context, asid, 5, secrets, 0x9000), Status::Success);
        assert_eq!(self.finish(context), Status::Success);
        let report = Talker::new(self, context, secrets).report(self, 0, &[0; 64]).expect("a report");
        report[0x90..0xc0].to_vec()
    }
}
