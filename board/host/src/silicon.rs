//! The secure processor: the emulated one of `board/qemu/psp`, behind the mailbox's registers and before the model of
//! memory. It takes its time; and some of its commands fail, or are answered with a lie.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use caisson_core::machine::Mailbox as Registers;
use caisson_core::rmp::Rmp;
use caisson_proto::addr::{CpuId, Frame, PAGE_SIZE, Spa};
use caisson_proto::mailbox;
use caisson_qemu_psp::rmp::Entry;
use caisson_qemu_psp::{Asid, Board, Config, Cpu, Fault, Mailbox, MemoryKey, Processor, Register, Status};

use crate::config::Mutant;
use crate::guest::Guest;
use crate::history::What;
use crate::place::Hand;
use crate::world::World;

/// The command's frame; those of the data follow. The kernel's own.
pub const MAILBOX: u64 = 8;
/// Frames of command and data.
pub const MAIL_FRAMES: usize = 10;
/// Frames that an RMP covers: more than any machine here has.
const MAX_FRAMES: usize = 1 << 14;
/// What the processor leaves in pages of its own.
const SEALED: u64 = 0x5ea1ed;
/// Frames that SEV-ES takes.
pub const DONATION: u64 = 256;

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// It isn't executed, and says so.
    Fails,
    /// It is executed, and said to have failed.
    DeniesIt,
    /// It isn't executed, and said to have succeeded.
    ClaimsIt,
}

/// The processor and its mailbox.
pub struct Silicon {
    /// What the kernel reaches.
    pub registers: &'static Registers,
    /// Contents of the mailbox's frames.
    pub mail: RefCell<Vec<[u8; PAGE_SIZE as usize]>>,
    processor: RefCell<Box<Processor>>,
    mailbox: RefCell<Mailbox>,
    /// When it answers what was rung; 0 while nothing is under way.
    pub answers_at: Cell<u64>,
    /// Commands still to go wrong.
    pub faults: Cell<u32>,
    /// It has lied: what it says and what the kernel believes may differ for good.
    pub lied: Cell<bool>,
    /// INIT gave all ASIDs up, also one that was bound before, and no DF_FLUSH succeeded since.
    young: Cell<bool>,
    /// Something failed that costs an ASID.
    pub failed: Cell<bool>,
    /// Commands that were answered.
    pub commands: Cell<u64>,
    /// Guests that it knows by handle: ASID that they were active in.
    pub guests: RefCell<BTreeMap<u32, u32>>,
}

thread_local! {
    /// Registers of runs that are over.
    static REGISTERS: RefCell<Vec<&'static Registers>> = const { RefCell::new(Vec::new()) };
}

fn registers() -> &'static Registers {
    let made = || {
        let registers = [(); 3].map(|()| &*Box::leak(Box::new(AtomicU32::new(0))));
        let command = [(); 2].map(|()| &*Box::leak(Box::new([const { AtomicU64::new(0) }; mailbox::BUFFER_BYTES / 8])));
        let entries = (0..MAX_FRAMES).map(|_| [const { AtomicU64::new(0) }; 2]).collect::<Vec<_>>().leak();
        &*Box::leak(Box::new(Registers {
            registers,
            command,
            first: Frame(MAILBOX),
            rmp: (Rmp(entries), Frame(MAILBOX)),
        }))
    };
    let registers = REGISTERS.with_borrow_mut(Vec::pop).unwrap_or_else(made);
    registers.registers.iter().for_each(|register| register.store(1 << 31, Ordering::Relaxed));
    registers.command.iter().flat_map(|buffer| buffer.iter()).for_each(|word| word.store(0, Ordering::Relaxed));
    registers.rmp.0.0.iter().flatten().for_each(|word| word.store(0, Ordering::Relaxed));
    registers
}

impl Drop for Silicon {
    fn drop(&mut self) {
        REGISTERS.with_borrow_mut(|all| all.push(self.registers));
    }
}

impl Silicon {
    /// After reset.
    pub fn new(cpus: usize, asids: (u32, u32), faults: u32) -> Self {
        let (low, high) = (asids.0 as u16, asids.1 as u16);
        let config = Config { first_sev_asid: low, last_asid: high, ..Config::emulated(cpus as u16, 1) };
        Self {
            registers: registers(),
            mail: RefCell::new(vec![[0; PAGE_SIZE as usize]; MAIL_FRAMES]),
            processor: RefCell::new(Box::new(Processor::new(config))),
            mailbox: RefCell::new(Mailbox::new()),
            answers_at: Cell::new(0),
            faults: Cell::new(faults),
            lied: Cell::new(false),
            young: Cell::new(true),
            failed: Cell::new(false),
            commands: Cell::new(0),
            guests: RefCell::default(),
        }
    }

    fn register(&self) -> &AtomicU32 {
        self.registers.registers[0]
    }

    /// Looks at its registers, and answers when it is time.
    pub fn tick(&self, world: &World) {
        if self.register().load(Ordering::Acquire) >> 31 != 0 {
            return;
        }
        let now = world.now.get();
        if self.answers_at.get() == 0 {
            let time = [1, 10, 100, 1000][world.rng.below(4) as usize];
            return self.answers_at.set(now + 1 + world.rng.below(time));
        }
        if self.answers_at.get() <= now {
            self.answers_at.set(0);
            self.answer(world);
        }
    }

    /// The commands' first words lie where the kernel has them as atomics.
    fn take_in(&self) {
        let mut mail = self.mail.borrow_mut();
        for (page, buffer) in self.registers.command.iter().enumerate() {
            for (at, word) in buffer.iter().enumerate() {
                mail[page][at * 8..at * 8 + 8].copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
        }
    }

    /// And are put there.
    pub fn put_out(&self) {
        let mail = self.mail.borrow();
        for (page, buffer) in self.registers.command.iter().enumerate() {
            for (at, word) in buffer.iter().enumerate() {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&mail[page][at * 8..at * 8 + 8]);
                word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
            }
        }
    }

    fn answer(&self, world: &World) {
        let command = (self.register().load(Ordering::Acquire) >> 16 & 0x7ff) as u16;
        self.take_in();
        let fault = self.fault(world, command);
        let executes = !matches!(fault, Some(Mischief::Fails | Mischief::ClaimsIt));
        let real = if executes { self.execute(world, command) } else { Status::Success };
        let told = match fault {
            Some(Mischief::Fails | Mischief::DeniesIt) => Status::HardwareErrorPlatform,
            Some(Mischief::ClaimsIt) | None => real,
        };
        if flushes(command) && told == Status::Success {
            self.young.set(false);
        }
        world.note(0, What::Processor(command, told as u16, fault));
        self.commands.set(self.commands.get() + 1);
        self.put_out();
        self.register().store(1 << 31 | u32::from(command) << 16 | u32::from(told as u16), Ordering::Release);
        world.knock(world.manifest.firmware);
    }

    fn fault(&self, world: &World, command: u16) -> Option<Mischief> {
        if world.breaks(Mutant::ClaimedDfFlush) && flushes(command)
            || world.breaks(Mutant::ClaimedActivate) && activates(command) && world.rng.chance(1, 4)
        {
            return Some(Mischief::ClaimsIt);
        }
        let left = self.faults.get();
        let often = if command == world.config.stubborn { 6 } else { world.config.others };
        if left == 0 || !world.rng.chance(often, 12) {
            return None;
        }
        self.faults.set(left - 1);
        self.failed.set(true);
        // Without what it claims to have initialised nothing would happen any more.
        let kinds = if world.config.lies && command != mailbox::SNP_INIT_EX { 3 } else { 1 };
        let fault = [Mischief::Fails, Mischief::DeniesIt, Mischief::ClaimsIt][world.rng.below(kinds) as usize];
        self.lied.set(self.lied.get() || fault != Mischief::Fails);
        Some(fault)
    }

    fn execute(&self, world: &World, command: u16) -> Status {
        let mut registers = self.mailbox.borrow_mut();
        let [_, low, high] = self.registers.registers.map(|register| register.load(Ordering::Relaxed));
        registers.write(Register::AddressLow, low);
        registers.write(Register::AddressHigh, high);
        let Some(ring) = registers.write(Register::CommandResponse, u32::from(command) << 16) else {
            world.fail(|| "the processor is rung while it is busy".into());
            return Status::InvalidCommand;
        };
        let status = self.processor.borrow_mut().ring(&mut Surroundings(world), ring);
        registers.complete(status);
        drop(registers);
        self.judge(world, command, status);
        status
    }

    /// What the processor refuses says that somebody's account is wrong, unless it has lied before.
    fn judge(&self, world: &World, command: u16, status: Status) {
        let owed = matches!(
            status,
            Status::WbinvdRequired | Status::DfFlushRequired | Status::AsidOwned | Status::InvalidAsid | Status::Active
        );
        let page = misses_page(command, status);
        let excused = self.lied.get() || activates(command) && self.young.get() && !page;
        world.check(!(owed || page) || excused, || format!("the processor refuses command {command:#x}: {status:?}"));
        let word = |at: usize| {
            let mut bytes = [0; 4];
            let buffer = (self.registers.registers[1].load(Ordering::Relaxed) >> 12) as usize - MAILBOX as usize;
            bytes.copy_from_slice(&self.mail.borrow()[buffer][at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        if status != Status::Success {
            return;
        }
        match command {
            mailbox::INIT | mailbox::SNP_INIT_EX => self.young.set(true),
            mailbox::LAUNCH_START => drop(self.guests.borrow_mut().insert(word(0), 0)),
            mailbox::ACTIVATE => {
                let asid = word(4);
                let known = self.guests.borrow().iter().any(|(handle, of)| *of == asid && *handle != word(0));
                world.check(!known || self.lied.get(), || {
                    format!("ASID {asid} gets a new guest and the processor still knows the last")
                });
                self.guests.borrow_mut().insert(word(0), asid);
            }
            mailbox::DECOMMISSION => drop(self.guests.borrow_mut().remove(&word(0))),
            mailbox::SHUTDOWN => self.guests.borrow_mut().clear(),
            _ => {}
        }
    }
}

const fn flushes(command: u16) -> bool {
    matches!(command, mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH)
}

const fn activates(command: u16) -> bool {
    matches!(command, mailbox::ACTIVATE | mailbox::SNP_ACTIVATE)
}

/// A page isn't what the kernel's account says. Whether one is there to be reclaimed is found out by asking.
const fn misses_page(command: u16, status: Status) -> bool {
    let wrong = matches!(status, Status::InvalidPageState | Status::InvalidPageOwner | Status::InvalidPageSize);
    wrong && command != mailbox::SNP_PAGE_RECLAIM
}

/// What surrounds the processor.
struct Surroundings<'a>(&'a World);

impl Surroundings<'_> {
    /// The page of the mailbox at an address, and where in it.
    fn mail(at: Spa) -> Option<(usize, usize)> {
        let page = usize::try_from((at.0 >> 12).checked_sub(MAILBOX)?).ok()?;
        (page < MAIL_FRAMES).then_some((page, (at.0 % PAGE_SIZE) as usize))
    }
}

impl Board for Surroundings<'_> {
    fn is_memory(&self, at: Spa, length: u64) -> bool {
        at.0.checked_add(length).is_some_and(|end| end <= self.0.config.frames << 12)
    }

    fn read(&mut self, at: Spa, into: &mut [u8]) -> Result<(), Fault> {
        if let Some((page, offset)) = Self::mail(at) {
            let mail = self.0.silicon.mail.borrow();
            let bytes = mail[page..].as_flattened().get(offset..offset + into.len()).ok_or(Fault)?;
            into.copy_from_slice(bytes);
            return Ok(());
        }
        into.fill(0);
        if at.0.is_multiple_of(PAGE_SIZE)
            && let Some(word) = into.get_mut(..8)
        {
            word.copy_from_slice(&self.0.caches.borrow().dram(at.0 >> 12).to_le_bytes());
        }
        Ok(())
    }

    fn write(&mut self, at: Spa, bytes: &[u8]) -> Result<(), Fault> {
        if let Some((page, offset)) = Self::mail(at) {
            let mut mail = self.0.silicon.mail.borrow_mut();
            let into = mail[page..].as_flattened_mut().get_mut(offset..offset + bytes.len()).ok_or(Fault)?;
            into.copy_from_slice(bytes);
            return Ok(());
        }
        let hand = self.0.caches.borrow().hand(at.0 >> 12);
        self.0.check(hand == Hand::Firmware, || format!("the processor writes to {:#x}, which is {hand:x?}", at.0));
        self.0.caches.borrow_mut().put(at.0 >> 12, 0, SEALED);
        Ok(())
    }

    fn write_private(&mut self, asid: Asid, at: Spa, bytes: &[u8]) -> Result<(), Fault> {
        let (world, frame) = (self.0, at.0 >> 12);
        let hand = world.caches.borrow().hand(frame);
        let vm = if let Hand::Private(vm) = hand { Some(vm) } else { None };
        let has = |guest: &Guest| guest.asid == u32::from(asid.0) && Some(guest.vm.bits()) == vm;
        let right = world.guests.borrow().iter().any(has) || world.silicon.lied.get();
        world.check(right, || format!("the processor writes frame {frame:#x} with ASID {}; it is {hand:x?}", asid.0));
        let (Some(word), true) = (bytes.get(..8), at.0.is_multiple_of(PAGE_SIZE)) else { return Ok(()) };
        let mut value = [0; 8];
        value.copy_from_slice(word);
        let value = u64::from_le_bytes(value);
        world.caches.borrow_mut().put(frame, asid.0.into(), value);
        let owner = world.owner.borrow().get(frame);
        if let (Some((_, gfn)), Some(vm)) = (owner, vm) {
            world.memory.borrow_mut().insert((vm, gfn), Some(value));
        }
        Ok(())
    }

    fn install_key(&mut self, asid: Asid, key: &MemoryKey) {
        let mut id = [0; 8];
        id.copy_from_slice(&key.0[..8]);
        self.0.caches.borrow_mut().install_key(asid.0.into(), u64::from_le_bytes(id) | 1);
    }

    fn remove_key(&mut self, asid: Asid) {
        self.0.caches.borrow_mut().remove_key(asid.0.into());
    }

    fn flush_fabric(&mut self) -> Result<(), Fault> {
        self.0.caches.borrow_mut().flush_fabric();
        Ok(())
    }

    fn rmp(&mut self, frame: Frame) -> Option<Entry> {
        self.0.silicon.registers.rmp.0.get(frame).map(Entry::from_table)
    }

    fn set_rmp(&mut self, frame: Frame, entry: Entry) -> Result<(), Fault> {
        self.0.silicon.registers.rmp.0.set(frame, entry.to_table());
        Ok(())
    }

    fn init_rmp(&mut self) -> Result<(), Fault> {
        self.0.silicon.registers.rmp.0.clear();
        Ok(())
    }

    fn cpu(&mut self, cpu: CpuId) -> Cpu {
        let wbinvds = self.0.cpus.get(usize::from(cpu.0)).map_or(0, |cpu| cpu.wbinvds.get());
        Cpu { wbinvds, snp_enabled: self.0.config.snp, host_save: Spa(0) }
    }

    fn random(&mut self, into: &mut [u8]) {
        into.iter_mut().for_each(|byte| *byte = self.0.rng.next() as u8);
    }

    fn hashed<'a>(&self, page: &'a [u8]) -> &'a [u8] {
        page.get(..8).unwrap_or(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_with_a_page_is_judged() {
        for status in [Status::InvalidPageState, Status::InvalidPageOwner, Status::InvalidPageSize] {
            assert!(misses_page(mailbox::SNP_LAUNCH_UPDATE, status), "{status:?}");
            assert!(!misses_page(mailbox::SNP_PAGE_RECLAIM, status), "{status:?}");
        }
        assert!(!misses_page(mailbox::SNP_LAUNCH_UPDATE, Status::InvalidGuestState));
    }
}
