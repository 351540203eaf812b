//! The kernel's side of the mailbox: it copies a command, fills in what names guests and memory, rings the processor, and records
//! what the answer changes.

use caisson_proto::abi::Status;
use caisson_proto::addr::VmId;
use caisson_proto::kernel::{AsidState, FORGOTTEN, MailboxReport, MailboxState, VmKind, VmState};
use caisson_proto::mailbox::{self, COMMANDS, Kind, Length};
use caisson_proto::wire::{Done, Reply, Words};
use caisson_qemu_psp::rmp::{Entry, Size, State};
use caisson_qemu_psp::{Register, Status as Told};

use crate::kernel::{DONATED, Event, FREE, Fake, Fault, Row};
use crate::psp::MEMORY;

/// The mailbox's first frame: a command that the processor only reads. Then one that it writes, and the data.
const MAIL: u64 = 14 << 20;
/// Where data lies.
const DATA: u64 = MAIL + 0x2000;

/// A command that was rung.
#[derive(Clone, Debug)]
pub struct Command {
    pub number: u16,
    pub vm: VmId,
    pub length: usize,
    /// The buffer as the ringer wrote it.
    written: Vec<u8>,
    data: usize,
    pub answer: Option<Answer>,
    /// The context page, or the guest's page that the processor fills.
    page: Option<u64>,
    /// Where its buffer lies.
    at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    Other(u16),
    Lost,
    Never,
}

fn u32_at(buffer: &[u8], at: u8) -> u32 {
    u32::from_le_bytes(buffer[usize::from(at)..][..4].try_into().expect("four bytes"))
}

fn u64_at(buffer: &[u8], at: u8) -> u64 {
    u64::from_le_bytes(buffer[usize::from(at)..][..8].try_into().expect("eight bytes"))
}

impl Fake {
    pub fn ring(&mut self, number: u16, vm: VmId, bytes: &[u8]) -> Result<Words, Status> {
        let command = COMMANDS.iter().find(|command| command.number == number).ok_or(Status::NotFound)?;
        if self.command.is_some() {
            return Err(Status::Busy);
        }
        let flush = matches!(number, mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH);
        if self.lent > 0 && number != mailbox::SNP_PAGE_RECLAIM {
            return Err(Status::State);
        }
        if self.lends_some.take_if(|command| *command == number).is_some() {
            self.lend_mailbox(2);
            return Err(Status::State);
        }
        if flush && self.rows.iter().any(|row| row.state == AsidState::Dirty) {
            return Err(Status::TooWeak);
        }
        let (head, data) = bytes.split_at(4096);
        assert!(head[usize::from(command.length)..].iter().all(|byte| *byte == 0), "bytes after the buffer");
        let mut buffer = head[..usize::from(command.length)].to_vec();
        let mut page = None;
        for (at, kind) in command.fields {
            let length = |length: &Length, buffer: &[u8]| match length {
                Length::Bytes(bytes) => u64::from(*bytes),
                Length::At(at) => u64::from(u32_at(buffer, *at)),
            };
            let mut set = |bytes: &[u8]| buffer[usize::from(*at)..][..bytes.len()].copy_from_slice(bytes);
            match kind {
                Kind::Handle => set(&self.handle(number, vm)?.to_le_bytes()),
                Kind::Asid => set(&self.asid_of(vm).ok_or(Status::State)?.to_le_bytes()),
                Kind::Reclaim => {
                    let reclaimed = self.reclaimed(vm, u64_at(&buffer, *at))?;
                    page = Some(reclaimed);
                    buffer[usize::from(*at)..][..8].copy_from_slice(&reclaimed.to_le_bytes());
                }
                Kind::Context => {
                    let context = self.context(number, vm)?;
                    page = Some(context);
                    set(&context.to_le_bytes());
                }
                Kind::Guest(bytes) => {
                    let spa = self.guest(vm, u64_at(&buffer, *at), length(bytes, &buffer))?;
                    if number == mailbox::SNP_LAUNCH_UPDATE {
                        page = Some(spa);
                    }
                    buffer[usize::from(*at)..][..8].copy_from_slice(&spa.to_le_bytes());
                }
                Kind::Data(bytes) => {
                    let (offset, bytes) = (u64_at(&buffer, *at), length(bytes, &buffer));
                    if bytes > 0 {
                        if offset.saturating_add(bytes) > data.len() as u64 {
                            return Err(Status::Range);
                        }
                        buffer[usize::from(*at)..][..8].copy_from_slice(&(DATA + offset).to_le_bytes());
                    }
                }
                Kind::Firmware(bytes) => {
                    let (at, bytes) = (u64_at(&buffer, *at), length(bytes, &buffer));
                    let end = at.saturating_add(bytes);
                    if bytes > 0 && (at < DONATED || end > DONATED + (2 << 20) || at % 4096 != 0) {
                        return Err(Status::Range);
                    }
                }
                Kind::Nothing if u64_at(&buffer, *at) != 0 => return Err(Status::Range),
                Kind::Nothing => {}
            }
        }
        // Past this point nothing fails.
        if number == mailbox::SNP_GCTX_CREATE {
            self.next_context += 4096;
            *self.board.entry(page.expect("a context")) = Entry::firmware(Size::Small);
            let row = self.row_of(vm).expect("a row");
            self.row_mut(row).handle = page.expect("a context") | FORGOTTEN;
        }
        if number == mailbox::SNP_LAUNCH_UPDATE {
            let entry = self.board.entry(page.expect("a page"));
            if entry.immutable {
                return Err(Status::State);
            }
            *entry = Entry { immutable: true, validated: false, ..*entry };
        }
        let writes = self.snp && command.writes;
        let at = if writes { MAIL + 0x1000 } else { MAIL };
        if writes {
            self.lend_mailbox(bytes.len() as u64 / 4096);
        }
        let no_id_block = number == mailbox::SNP_LAUNCH_FINISH && buffer[24] & 1 == 0;
        assert!(!no_id_block || data.iter().all(|byte| *byte == 0), "another command's data");
        self.board.put(at, &buffer);
        self.board.put(DATA, data);
        let written = head[..usize::from(command.length)].to_vec();
        self.command =
            Some(Command { number, vm, length: buffer.len(), written, data: data.len(), answer: None, page, at });
        Ok(Done {}.encode())
    }

    /// So many of the mailbox's pages are the processor's.
    pub fn lend_mailbox(&mut self, pages: u64) {
        self.lent = pages;
        for page in 1..=pages {
            *self.board.entry(MAIL + page * 4096) = Entry::firmware(Size::Small);
        }
    }

    fn handle(&self, number: u16, vm: VmId) -> Result<u32, Status> {
        let asid = self.row_of(vm).ok_or(Status::State)?;
        let row = self.row(asid);
        let starts = number == mailbox::LAUNCH_START;
        let ends = matches!(number, mailbox::DEACTIVATE | mailbox::DECOMMISSION);
        let right = match (starts, row.state) {
            (true, AsidState::Bound) => row.handle == 0,
            (true, _) => false,
            (false, AsidState::Active) => row.handle != 0,
            (false, AsidState::Bound) => row.handle != 0 && (number == mailbox::ACTIVATE || ends),
            (false, _) => row.handle != 0 && ends,
        };
        if !right || row.kind == VmKind::SevSnp {
            return Err(Status::State);
        }
        self.alive_unless(ends || number == mailbox::GUEST_STATUS, vm)?;
        if number == mailbox::DEACTIVATE {
            self.stopped(vm)?;
        }
        Ok(row.handle as u32)
    }

    fn context(&self, number: u16, vm: VmId) -> Result<u64, Status> {
        let row = self.row(self.row_of(vm).ok_or(Status::State)?);
        let creates = number == mailbox::SNP_GCTX_CREATE;
        let ends = number == mailbox::SNP_DECOMMISSION;
        let fits = if creates { row.handle == 0 } else { row.handle != 0 && row.handle & FORGOTTEN == 0 };
        if row.kind != VmKind::SevSnp || !fits || creates && row.state != AsidState::Bound {
            return Err(Status::State);
        }
        self.alive_unless(ends || number == mailbox::SNP_GUEST_STATUS, vm)?;
        if number == mailbox::SNP_DECOMMISSION {
            self.stopped(vm)?;
        }
        Ok(if creates { self.next_context } else { row.handle })
    }

    /// The page that is to be given back.
    fn reclaimed(&self, vm: VmId, given: u64) -> Result<u64, Status> {
        match given {
            mailbox::RECLAIM_MAILBOX if self.lent > 0 => Ok(MAIL + self.lent * 4096),
            mailbox::RECLAIM_MAILBOX => Err(Status::NotFound),
            mailbox::RECLAIM_CONTEXT => {
                let handle = self.row_of(vm).map_or(0, |asid| self.row(asid).handle);
                if handle == 0 { Err(Status::NotFound) } else { Ok(handle & !FORGOTTEN) }
            }
            _ => self.guest(vm, given - mailbox::RECLAIM_GUEST, 4096),
        }
    }

    fn alive_unless(&self, ends: bool, vm: VmId) -> Result<(), Status> {
        let alive = self.vms.iter().any(|other| other.id == vm && other.state == VmState::Alive);
        if alive || ends { Ok(()) } else { Err(Status::State) }
    }

    fn stopped(&self, vm: VmId) -> Result<(), Status> {
        if self.vms.iter().any(|other| other.id == vm && other.running) { Err(Status::Busy) } else { Ok(()) }
    }

    fn guest(&self, vm: VmId, gpa: u64, bytes: u64) -> Result<u64, Status> {
        let vm = self.vms.iter().find(|other| other.id == vm).ok_or(Status::NotFound)?;
        let mut spa = None;
        for gfn in gpa >> 12..=(gpa + bytes.max(1) - 1) >> 12 {
            let page = vm.pages.get(&gfn).filter(|page| page.private).ok_or(Status::Range)?;
            let first = *spa.get_or_insert(page.at - ((gfn - (gpa >> 12)) << 12));
            if page.at != first + ((gfn - (gpa >> 12)) << 12) {
                return Err(Status::Range);
            }
        }
        Ok(spa.ok_or(Status::Range)? + gpa % 4096)
    }

    /// Lets the processor work. Whether it answered.
    pub fn work(&mut self) -> bool {
        let Some(command) = self.command.as_ref().filter(|command| command.answer.is_none()) else { return false };
        let number = command.number;
        let fault = self.faults.get_mut(&number).and_then(|faults| faults.pop_front());
        let executes = matches!(fault, None | Some(Fault::Lies(_)));
        let real = if executes { self.execute(number) } else { 0 };
        let answer = match fault {
            None => Answer::Status(real),
            Some(Fault::Fails(status) | Fault::Lies(status)) => Answer::Status(status),
            Some(Fault::Handle(handle)) => {
                let at = self.command.as_ref().expect("a command").at;
                self.board.put(at, &handle.to_le_bytes());
                Answer::Status(0)
            }
            Some(Fault::Silent) => Answer::Never,
            Some(Fault::Other(number)) => Answer::Other(number),
            Some(Fault::Lost) => Answer::Lost,
        };
        if let Answer::Status(status) = answer {
            self.log.push(Event::Command(number, status));
        }
        if let Some(command) = &mut self.command {
            command.answer = Some(answer);
        }
        answer != Answer::Never
    }

    fn execute(&mut self, number: u16) -> u16 {
        let at = self.command.as_ref().expect("a command").at;
        self.mailbox.write(Register::AddressLow, at as u32);
        self.mailbox.write(Register::AddressHigh, (at >> 32) as u32);
        let ring = self.mailbox.write(Register::CommandResponse, u32::from(number) << 16).expect("it is free");
        let status = self.processor.ring(&mut self.board, ring);
        self.mailbox.complete(status);
        assert_ne!(status, Told::InvalidCommand);
        status as u16
    }

    pub fn take(&mut self, bytes: &mut [u8]) -> Words {
        let report = |state, command, status, vm| MailboxReport { state, command, status, vm }.encode();
        let idle = report(MailboxState::Idle, 0, 0, VmId::default());
        let Some(command) = self.command.clone() else { return idle };
        let status = match command.answer {
            None | Some(Answer::Never) => return report(MailboxState::Busy, command.number, 0, command.vm),
            Some(Answer::Lost) => {
                self.command = None;
                return idle;
            }
            Some(Answer::Other(number)) => {
                self.command = None;
                return report(MailboxState::Done, number, 0, command.vm);
            }
            Some(Answer::Status(status)) => status,
        };
        self.command = None;
        let mut buffer = self.board.get(command.at, command.length).to_vec();
        let told = u32::from_le_bytes(buffer.get(..4).map_or([0; 4], |bytes| bytes.try_into().expect("four")));
        // What was filled in is taken out again.
        let fields = COMMANDS.iter().find(|known| known.number == command.number).map_or(&[][..], |known| known.fields);
        for (at, kind) in fields {
            let bytes = if matches!(kind, Kind::Handle | Kind::Asid) { 4 } else { 8 };
            let range = usize::from(*at)..usize::from(*at) + bytes;
            buffer[range.clone()].copy_from_slice(&command.written[range]);
        }
        bytes.fill(0);
        bytes[..command.length].copy_from_slice(&buffer);
        let data = command.data.min(bytes.len() - 4096);
        bytes[4096..4096 + data].copy_from_slice(self.board.get(DATA, data));
        self.record(&command, status, told);
        report(MailboxState::Done, command.number, status, command.vm)
    }

    /// What a command changes.
    fn record(&mut self, command: &Command, status: u16, handle: u32) {
        let row = self.row_of(command.vm);
        let failed = status != 0;
        match command.number {
            mailbox::SNP_PAGE_RECLAIM if self.board.entry(command.page.expect("a page")).state() == State::Reclaim => {
                let page = command.page.expect("a page");
                *self.board.entry(page) = Entry::default();
                if page > MAIL && page < MAIL + (10 << 12) {
                    self.lent -= 1;
                } else {
                    self.row_mut(row.expect("a row")).handle = 0;
                }
            }
            _ if failed => {}
            mailbox::LAUNCH_START => self.row_mut(row.expect("a row")).handle = u64::from(handle),
            mailbox::ACTIVATE | mailbox::SNP_ACTIVATE => self.row_mut(row.expect("a row")).state = AsidState::Active,
            mailbox::SNP_GCTX_CREATE => self.row_mut(row.expect("a row")).handle &= !FORGOTTEN,
            mailbox::DEACTIVATE | mailbox::SNP_DECOMMISSION => {
                let row = self.row_mut(row.expect("a row"));
                if command.number == mailbox::SNP_DECOMMISSION {
                    row.handle |= FORGOTTEN;
                }
                if row.state == AsidState::Active {
                    row.state = AsidState::Dirty;
                }
            }
            mailbox::DECOMMISSION => self.row_mut(row.expect("a row")).handle = 0,
            mailbox::INIT | mailbox::INIT_EX | mailbox::SNP_INIT_EX => {
                if command.number == mailbox::SNP_INIT_EX {
                    self.snp = true;
                    for at in (DONATED..DONATED + (2 << 20)).step_by(4096) {
                        *self.board.entry(at) = Entry::firmware(Size::Small);
                    }
                }
                let idle = |row: &&mut Row| matches!(row.state, AsidState::Free | AsidState::Flushed);
                self.rows.iter_mut().filter(idle).for_each(|row| row.state = AsidState::Dirty);
            }
            mailbox::SHUTDOWN | mailbox::SNP_SHUTDOWN_EX => {
                let snp = command.number == mailbox::SNP_SHUTDOWN_EX;
                self.snp &= !snp;
                for row in self.rows.iter_mut().filter(|row| (row.kind == VmKind::SevSnp) == snp) {
                    self.leaked_pages += u64::from(snp && row.handle != 0);
                    row.handle = 0;
                    if row.state == AsidState::Active {
                        row.state = AsidState::Dirty;
                    }
                }
            }
            mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH => {
                // A guest that the processor still knows keeps its ASID.
                let forgotten = |row: &Row| row.handle == 0 || row.handle & FORGOTTEN != 0;
                for row in self.rows.iter_mut().filter(|row| row.state == AsidState::Flushed && forgotten(row)) {
                    self.leaked_pages += u64::from(row.handle != 0);
                    *row = FREE;
                }
            }
            _ => {}
        }
    }
}

const _: () = assert!(DATA + 8 * 4096 < MEMORY);
