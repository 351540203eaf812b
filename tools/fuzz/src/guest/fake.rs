//! A platform made of plain memory. It fails the test if it is asked for what the kernel would refuse.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa};
use caisson_proto::supervisor::ExitKind;
use caisson_proto::switch::{Area, begin, split};
use caisson_proto::vcpu::{CpuidEntry, Groups, VcpuState};
use caisson_vmm::{Event, Platform};

use super::machine::KHZ;

/// The platform.
#[derive(Debug, Default)]
pub struct Fake {
    /// Guest memory.
    pub memory: Vec<u8>,
    /// Of each page, whether it is there.
    pub backed: Vec<bool>,
    /// What was given back, call by call: first page and how many.
    pub given_back: Vec<(u64, u64)>,
    /// Pages beside the guest's own, from [`ASIDE`] on, once they were asked for.
    pub aside: Vec<u8>,
    /// No more memory is given.
    pub refuse_memory: bool,
    /// What memory answers then, if not that it is exhausted.
    pub refuses_with: Option<Status>,
    /// How often a device waited for memory since it got some.
    pub pauses: u64,
    /// Whenever it has so many times, somebody gives what is asked for next.
    pub relents: Option<u64>,
    /// No more than a page at a time is given.
    pub refuse_chunks: bool,
    /// The vCPUs' state pages.
    pub states: Vec<VcpuState>,
    /// Groups that were asked for.
    pub filled: Vec<(u8, Groups)>,
    /// The TSC.
    pub time: Cell<u64>,
    /// vCPUs that were kicked.
    pub kicks: Vec<u8>,
    /// vCPUs that were made to run.
    pub runs: Vec<u8>,
    /// The vCPUs' CPUID tables.
    pub cpuid: Vec<Vec<CpuidEntry>>,
    /// What the guest wrote.
    pub console: Vec<u8>,
    /// How much the console takes.
    pub console_limit: Option<usize>,
    /// Frames that were sent.
    pub sent: Vec<Vec<u8>>,
    /// How often the switch was called for no frames.
    pub switch_calls: u64,
    /// Frames that wait for the guest.
    pub waiting: VecDeque<Vec<u8>>,
    /// After each batch of frames the guest's other vCPU puts as many requests into the queue whose index lies here, until so
    /// many frames were sent.
    pub refill: Option<(u64, usize)>,
    /// What was published of statistics.
    pub published: BTreeMap<usize, Vec<u64>>,
    /// WBINVDs that the kernel counted.
    pub wbinvds: u64,
    /// How the VM ended.
    pub ended: Option<(ExitKind, [u64; 4])>,
    /// What was logged.
    pub events: Vec<Event>,
    /// Pages that were promised beside those from the start.
    pub promised: u64,
    /// Pages that the guest has for itself, as memory knows them.
    pub private: BTreeSet<u64>,
    /// Instead of `memory`: pages anywhere, as far as they are backed.
    pub sparse: Option<BTreeMap<u64, Vec<u8>>>,
}

const PAGE: usize = 4096;

/// Where the vmm has pages for instructions that are executed aside.
pub const ASIDE: u64 = 0xf000_0000;

impl Fake {
    /// Memory of so many bytes, none of it backed, and vCPUs.
    pub fn new(bytes: u64, vcpus: u8) -> Self {
        Self {
            memory: vec![0; bytes as usize],
            backed: vec![false; bytes as usize / PAGE],
            states: vec![VcpuState::default(); vcpus.into()],
            time: Cell::new(5000),
            ..Self::default()
        }
    }

    /// Memory that may lie anywhere.
    pub fn sparse() -> Self {
        Self { sparse: Some(BTreeMap::new()), ..Self::new(0, 1) }
    }

    /// The bytes of a range, page by page. What isn't backed fails the test.
    fn each(gpa: Gpa, length: usize) -> impl Iterator<Item = (u64, usize)> {
        (gpa.0..gpa.0 + length as u64).map(|at| (at / PAGE as u64, at as usize % PAGE))
    }

    /// Memory, where it is and how far into it this address is. What isn't backed fails the test.
    fn place(&self, gpa: Gpa, length: usize) -> (bool, usize) {
        if let Some(offset) = gpa.0.checked_sub(ASIDE).filter(|offset| *offset < self.aside.len() as u64) {
            return (true, offset as usize);
        }
        let (first, last) = (gpa.0 as usize / PAGE, (gpa.0 as usize + length - 1) / PAGE);
        assert!(self.backed[first..=last].iter().all(|backed| *backed), "an access to memory that isn't backed");
        assert!(self.private.range(first as u64..=last as u64).next().is_none(), "an access to what is private");
        (false, gpa.0 as usize)
    }
}

impl Platform for Fake {
    fn populate(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        if let Some(sparse) = &mut self.sparse {
            (gfn.0..gfn.0 + pages).for_each(|page| _ = sparse.entry(page).or_insert_with(|| vec![0; PAGE]));
            return Ok(());
        }
        let is_aside = gfn.0 << 12 == ASIDE && pages == caisson_vmm::ASIDE_PAGES && self.aside.is_empty();
        assert!(is_aside || pages <= 512 && (gfn.0 + pages) << 12 <= self.memory.len() as u64);
        let relents = self.pauses > 0 && self.relents == Some(self.pauses);
        if self.refuse_memory && !relents || self.refuse_chunks && pages > 1 && !is_aside {
            return Err(self.refuses_with.unwrap_or(Status::Exhausted));
        }
        if relents {
            self.pauses = 0;
        }
        if is_aside {
            self.aside = vec![0; (pages << 12) as usize];
        } else {
            self.backed[gfn.0 as usize..][..pages as usize].fill(true);
        }
        Ok(())
    }
    fn populate_private(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        if (gfn.0..gfn.0 + pages).any(|page| !self.private.contains(&page)) {
            return Err(Status::State);
        }
        self.populate(gfn, pages)
    }
    fn convert(&mut self, gfn: Gfn, pages: u64, private: bool) -> Result<(), Status> {
        assert!(pages > 0 && gfn.0 / 512 == (gfn.0 + pages - 1) / 512);
        if self.refuse_memory {
            return Err(Status::Dead);
        }
        (gfn.0..gfn.0 + pages)
            .for_each(|page| _ = if private { self.private.insert(page) } else { self.private.remove(&page) });
        Ok(())
    }
    fn give_back(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        assert!(pages > 0 && pages <= 512 && gfn.0 / 512 == (gfn.0 + pages - 1) / 512);
        self.given_back.push((gfn.0, pages));
        if let Some(sparse) = &mut self.sparse {
            (gfn.0..gfn.0 + pages).for_each(|page| _ = sparse.remove(&page));
            return Ok(());
        }
        for page in gfn.0 as usize..(gfn.0 + pages) as usize {
            self.backed[page] = false;
            // Whoever takes it next finds zeros.
            self.memory[page * PAGE..][..PAGE].fill(0);
        }
        if self.refuse_memory { Err(Status::Dead) } else { Ok(()) }
    }
    fn promise(&mut self, pages: u64, more: bool) -> Result<(), Status> {
        self.promised = if more { self.promised + pages } else { self.promised - pages };
        Ok(())
    }
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        if let Some(sparse) = &self.sparse {
            Self::each(gpa, into.len()).zip(into).for_each(|((page, at), byte)| *byte = sparse[&page][at]);
            return true;
        }
        let (aside, at) = self.place(gpa, into.len());
        let memory = if aside { &self.aside } else { &self.memory };
        into.copy_from_slice(&memory[at..][..into.len()]);
        true
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> bool {
        if let Some(sparse) = &mut self.sparse {
            let mut put = |(page, at): (u64, usize), byte| sparse.get_mut(&page).expect("it is backed")[at] = byte;
            Self::each(gpa, from.len()).zip(from).for_each(|(place, byte)| put(place, *byte));
            return true;
        }
        let (aside, at) = self.place(gpa, from.len());
        let memory = if aside { &mut self.aside } else { &mut self.memory };
        memory[at..][..from.len()].copy_from_slice(from);
        true
    }
    fn pause(&mut self) {
        self.pauses += 1;
        self.time.set(self.time.get() + 10 * KHZ);
    }
    fn now(&self) -> u64 {
        self.time.set(self.time.get() + 1);
        self.time.get()
    }
    fn kick(&mut self, vcpu: u8) {
        self.kicks.push(vcpu);
    }
    fn run(&mut self, vcpu: u8) {
        self.runs.push(vcpu);
    }
    fn fill(&mut self, vcpu: u8, groups: Groups, _: Groups, state: &mut VcpuState) {
        self.filled.push((vcpu, groups));
        copy(&self.states[usize::from(vcpu)], state, groups);
    }
    fn store(&mut self, vcpu: u8, groups: Groups, state: &VcpuState) {
        copy(state, &mut self.states[usize::from(vcpu)], groups);
    }
    fn gpr(&self, vcpu: u8, number: usize) -> u64 {
        self.states[usize::from(vcpu)].gpr[number]
    }
    fn set_gpr(&mut self, vcpu: u8, number: usize, value: u64) {
        self.states[usize::from(vcpu)].gpr[number] = value;
    }
    fn load_cpuid(&mut self, vcpu: u8, entries: &[CpuidEntry]) -> Result<(), Status> {
        assert!(entries.len() <= CpuidEntry::MAX);
        match self.cpuid.get_mut(usize::from(vcpu)) {
            Some(table) => *table = entries.to_vec(),
            None => {
                assert_eq!(usize::from(vcpu), self.cpuid.len());
                self.cpuid.push(entries.to_vec());
            }
        }
        Ok(())
    }
    fn host_cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        match leaf {
            0 => [0xd, 1, 2, 3],
            0x8000_0000 => [0x8000_001f, 0, 0, 0],
            0xd if subleaf == 2 => [256, 576, 0, 0],
            0xd if subleaf == 9 => [8, 2688, 0, 0],
            0xd => [0x207, 0, 0, 0],
            _ => [u32::MAX; 4],
        }
    }
    fn console_out(&mut self, bytes: &[u8]) -> usize {
        let room = self.console_limit.map_or(usize::MAX, |limit| limit.saturating_sub(self.console.len()));
        let taken = bytes.len().min(room);
        self.console.extend_from_slice(&bytes[..taken]);
        taken
    }
    fn send_frames(&mut self, batch: &Area, bytes: usize) -> Option<u64> {
        let (mut rest, before) = (&batch.0[..bytes], self.sent.len());
        while let Some((frame, later)) = split(rest) {
            self.sent.push(frame.to_vec());
            rest = later;
        }
        assert!(bytes > 0 && rest.is_empty(), "what isn't frames is sent");
        if let Some((at, until)) = self.refill
            && self.sent.len() < until
        {
            let index = self.memory[at as usize..].first_chunk_mut::<2>().expect("a queue");
            *index = (u16::from_le_bytes(*index) + (self.sent.len() - before) as u16).to_le_bytes();
        }
        Some(0)
    }
    fn fetch_frames(&mut self, batch: &mut Area) -> Option<(usize, bool)> {
        let mut end = 0;
        while let Some(frame) = self.waiting.front() {
            let Some((place, next)) = begin(&mut batch.0, end, frame.len()) else { break };
            place.copy_from_slice(frame);
            end = next;
            self.waiting.pop_front();
        }
        Some((end, !self.waiting.is_empty()))
    }
    fn call_switch(&mut self) {
        self.switch_calls += 1;
    }
    fn publish(&mut self, page: usize, word: usize, value: u64) {
        assert!(page <= self.states.len());
        self.published.entry(page).or_insert_with(|| vec![0; 512])[word] = value;
    }
    fn count(&mut self, page: usize, word: usize, more: u64) {
        self.publish(page, word, self.published[&page][word] + more);
    }
    fn wbinvds(&self, _: u8) -> u64 {
        self.wbinvds
    }
    fn end(&mut self, kind: ExitKind, words: [u64; 4]) {
        assert!(self.ended.is_none());
        self.ended = Some((kind, words));
    }
    fn log(&mut self, event: Event) {
        self.events.push(event);
    }
}

fn copy(from: &VcpuState, to: &mut VcpuState, groups: Groups) {
    if groups.contains(Groups::CORE) {
        (to.gpr, to.rip, to.rflags, to.cpl) = (from.gpr, from.rip, from.rflags, from.cpl);
    }
    if groups.contains(Groups::SEGMENTS) {
        (to.segments, to.ldtr, to.tr) = (from.segments, from.ldtr, from.tr);
    }
    if groups.contains(Groups::TABLES) {
        (to.gdtr, to.idtr) = (from.gdtr, from.idtr);
    }
    if groups.contains(Groups::CONTROL) {
        (to.cr0, to.cr2, to.cr3, to.cr4, to.efer) = (from.cr0, from.cr2, from.cr3, from.cr4, from.efer);
    }
    if groups.contains(Groups::DEBUG) {
        (to.dr, to.dr6, to.dr7) = (from.dr, from.dr6, from.dr7);
    }
    if groups.contains(Groups::PAT) {
        to.pat = from.pat;
    }
    if groups.contains(Groups::EVENTS) {
        (to.shadow, to.event) = (from.shadow, from.event);
    }
    if groups.contains(Groups::TSC) {
        (to.tsc_offset, to.tsc_aux) = (from.tsc_offset, from.tsc_aux);
    }
    if groups.contains(Groups::XCR0) {
        to.xcr0 = from.xcr0;
    }
}
