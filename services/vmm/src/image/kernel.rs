//! The vmm's surroundings in the image: kernel operations, memory, windows and rings.

use core::mem::offset_of;

use caisson_proto::abi::{MAX_VCPUS, Status};
use caisson_proto::addr::{Gfn, Gpa, PAGE_SIZE, VcpuId, VmId};
use caisson_proto::cpuid::arrange;
use caisson_proto::info::ShareUse;
use caisson_proto::kernel::{CpuidLoad, VcpuKick, VcpuRead, VcpuRun};
use caisson_proto::layout;
use caisson_proto::memory::{Attribute, GiveBack, Populate, Promise, Unpromise};
use caisson_proto::supervisor::ExitKind;
use caisson_proto::switch::{self, Area, Fetch, Report, Send};
use caisson_proto::vcpu::{CpuidEntry, Groups, VcpuState};
use caisson_proto::wire::Request;
use caisson_rt::rings::Outward;
use caisson_rt::share::{PAGE_WORDS, ShareWindow};
use caisson_rt::time;
use caisson_rt::window::{GuestWindow, StatePage};
use caisson_rt::{LeasePage, call_borrow, call_lend, kernel, kernel_lend};
use caisson_vmm::{Event, Platform};
use zerocopy::IntoBytes;

use super::events;

/// Bytes of a word of the state page.
const WORD: usize = size_of::<u64>();
/// How often a call to memory is made again because memory died meanwhile.
const RETRIES: usize = 3;
/// How long it may take until memory that somebody else had is written back, in milliseconds.
const PATIENCE_MS: u64 = 200;
/// The same where it is for a vCPU, which can be parked.
const HURRY_MS: u64 = 5;
/// How long a device waits before it asks again for a page that memory hasn't, in milliseconds.
const PAUSE_MS: u64 = 10;

/// Calls memory. One that was restarted has what this VM needs: it enumerates the kernel's tables, and knows the
/// one slot that this vmm uses. One that is `Busy` has
/// enough as soon as other CPUs have written back what they owe.
///
/// # Errors
/// What it answered.
pub fn call_memory<R: Request>(memory: u16, request: &R) -> Result<R::Reply, Status> {
    call_memory_for(PATIENCE_MS, memory, request)
}

/// The same, for so many milliseconds at the most.
fn call_memory_for<R: Request>(patience: u64, memory: u16, request: &R) -> Result<R::Reply, Status> {
    let mut retries = 0;
    let until = time::now().0.saturating_add(time::ticks(patience));
    loop {
        match caisson_rt::call(memory, request) {
            Err(Status::Dead | Status::Died) if retries < RETRIES => retries += 1,
            Err(Status::Busy) if time::now().0 < until => core::hint::spin_loop(),
            result => return result,
        }
    }
}

/// Calls the switch, again where it was restarted before it had the message. What it died of it is not given once more: the
/// frames are lost, as on any wire.
fn call_switch<T>(mut call: impl FnMut() -> Result<T, Status>) -> Option<T> {
    (0..RETRIES).map(|_| call()).find(|result| !matches!(result, Err(Status::Dead)))?.ok()
}

/// The surroundings.
pub struct OnKernel {
    vm: VmId,
    memory: u16,
    /// The switch's slot, where there is one.
    switch: Option<u16>,
    guest: GuestWindow,
    states: [Option<StatePage>; MAX_VCPUS],
    output: Option<Outward>,
    /// Where the VM's statistics are read, if anybody does.
    share: ShareWindow,
    /// A page that isn't there yet isn't waited for.
    hurries: bool,
}

impl OnKernel {
    /// Those of VM `vm`, whose memory the service in slot `memory` has.
    pub fn new(vm: VmId, memory: u16, output: Option<Outward>) -> Self {
        let states = core::array::from_fn(|index| StatePage::new(index as u8));
        Self {
            vm,
            memory,
            switch: caisson_rt::slot_of(switch::NAME),
            guest: GuestWindow::new(layout::USER_END - layout::GUEST),
            states,
            output,
            share: ShareWindow::held(ShareUse::Stats).unwrap_or(ShareWindow::NONE),
            hurries: false,
        }
    }

    /// The doorbell that tells of room on the console.
    pub fn room_bit(&self) -> u64 {
        self.output.as_ref().map_or(0, Outward::room_bit)
    }

    fn populate_as(&self, gfn: Gfn, pages: u64, private: bool) -> Result<(), Status> {
        let patience = if self.hurries { HURRY_MS } else { PATIENCE_MS };
        call_memory_for(patience, self.memory, &Populate { vm: self.vm, gfn, pages, private }).map(|_| ())
    }

    fn id(&self, index: u8) -> VcpuId {
        VcpuId { vm: self.vm, index }
    }

    fn page(&self, vcpu: u8) -> Option<&StatePage> {
        self.states.get(usize::from(vcpu))?.as_ref()
    }

    fn ask<R: Request>(&self, what: &str, request: &R) {
        if let Err(status) = kernel(request) {
            defmt::error!("vmm: the kernel refused {=str}: status {=u8}", what, status as u8);
        }
    }
}

/// How many words there are in pieces of the state page, each with its first byte and the one after its last.
const fn count(pieces: &[(usize, usize)]) -> usize {
    let (mut at, mut words) = (0, 0);
    while at < pieces.len() {
        words += (pieces[at].1 - pieces[at].0) / WORD;
        at += 1;
    }
    words
}

/// Where they are.
const fn list<const WORDS: usize>(pieces: &[(usize, usize)]) -> [usize; WORDS] {
    let (mut at, mut word, mut list) = (0, 0, [0; WORDS]);
    while at < pieces.len() {
        let mut offset = pieces[at].0;
        while offset < pieces[at].1 {
            list[word] = offset;
            (word, offset) = (word + 1, offset + WORD);
        }
        at += 1;
    }
    list
}

/// Offsets of a group's words in the state page.
fn words(group: Groups) -> &'static [usize] {
    // From one field to before another one.
    macro_rules! words {
        ($($($first:ident).+ to $($next:ident).+),+) => {{
            const PIECES: &[(usize, usize)] =
                &[$((offset_of!(VcpuState, $($first).+), offset_of!(VcpuState, $($next).+))),+];
            const { &list::<{ count(PIECES) }>(PIECES) }
        }};
    }
    match group {
        Groups::CORE => words!(gpr to save, save.reserved_0c8 to save.efer, save.rflags to save.reserved_180),
        Groups::SEGMENTS => {
            words!(save.segments to save.gdtr, save.ldtr to save.idtr, save.tr to save.reserved_0a0)
        }
        Groups::TABLES => words!(save.gdtr to save.ldtr, save.idtr to save.tr),
        Groups::CONTROL => words!(save.efer to save.reserved_0d8, save.cr4 to save.dr7, save.cr2 to save.reserved_248),
        Groups::DEBUG => words!(save.dr7 to save.rflags, dr to shadow),
        Groups::SYSCALL => words!(save.star to save.cr2),
        Groups::PAT => words!(save.pat to dr),
        Groups::EVENTS => words!(shadow to tsc_offset),
        Groups::TSC => words!(tsc_offset to xcr0),
        Groups::XCR0 => words!(xcr0 to wbinvds),
        _ => &[],
    }
}

impl Platform for OnKernel {
    fn populate(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        self.populate_as(gfn, pages, false)
    }

    fn give_back(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        call_memory(self.memory, &GiveBack { vm: self.vm, gfn, pages }).map(|_| ())
    }

    fn hurry(&mut self, hurry: bool) {
        self.hurries = hurry;
    }

    fn pause(&mut self) {
        let until = time::now().0.saturating_add(time::ticks(PAUSE_MS));
        while time::now().0 < until {
            core::hint::spin_loop();
        }
    }

    fn promise(&mut self, pages: u64, more: bool) -> Result<(), Status> {
        let vm = self.vm;
        if more {
            call_memory(self.memory, &Promise { vm, pages }).map(|_| ())
        } else {
            call_memory(self.memory, &Unpromise { vm, pages }).map(|_| ())
        }
    }

    fn populate_private(&mut self, gfn: Gfn, pages: u64) -> Result<(), Status> {
        self.populate_as(gfn, pages, true)
    }

    fn convert(&mut self, gfn: Gfn, pages: u64, private: bool) -> Result<(), Status> {
        call_memory(self.memory, &Attribute { vm: self.vm, gfn, pages, private }).map(|_| ())
    }

    #[inline]
    fn read(&self, gpa: Gpa, into: &mut [u8]) -> bool {
        self.guest.read(gpa, into).is_ok()
    }

    #[inline]
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> bool {
        self.guest.write(gpa, from).is_ok()
    }

    #[inline]
    fn now(&self) -> u64 {
        time::now().0
    }

    fn kick(&mut self, vcpu: u8) {
        self.ask("a kick", &VcpuKick { vcpu: self.id(vcpu) });
    }

    fn run(&mut self, vcpu: u8) {
        self.ask("to run a vCPU", &VcpuRun { vcpu: self.id(vcpu) });
    }

    fn fill(&mut self, vcpu: u8, groups: Groups, current: Groups, state: &mut VcpuState) {
        let missing = groups.difference(current);
        if !missing.is_empty() {
            self.ask("registers", &VcpuRead { vcpu: self.id(vcpu), groups: missing });
        }
        let Some(page) = self.page(vcpu).copied() else { return };
        let bytes = state.as_mut_bytes();
        for &offset in groups.iter().flat_map(words) {
            if let (Some(target), Ok(word)) = (bytes.get_mut(offset..offset + WORD), page.get::<u64>(offset)) {
                target.copy_from_slice(&word.to_ne_bytes());
            }
        }
    }

    fn store(&mut self, vcpu: u8, groups: Groups, state: &VcpuState) {
        let Some(page) = self.page(vcpu).copied() else { return };
        let bytes = state.as_bytes();
        for &offset in groups.iter().flat_map(words) {
            if let Some(word) = bytes.get(offset..).and_then(|rest| rest.first_chunk()) {
                // The offset is inside the page.
                let _ = page.put(offset, &u64::from_ne_bytes(*word));
            }
        }
    }

    #[inline]
    fn gpr(&self, vcpu: u8, number: usize) -> u64 {
        let offset = offset_of!(VcpuState, gpr) + number % 16 * WORD;
        self.page(vcpu).and_then(|page| page.get(offset).ok()).unwrap_or(0)
    }

    #[inline]
    fn set_gpr(&mut self, vcpu: u8, number: usize, value: u64) {
        let offset = offset_of!(VcpuState, gpr) + number % 16 * WORD;
        if let Some(page) = self.page(vcpu) {
            // The offset is inside the page.
            let _ = page.put(offset, &value);
        }
    }

    fn load_cpuid(&mut self, vcpu: u8, entries: &[CpuidEntry]) -> Result<(), Status> {
        let mut page = LeasePage::zeroed();
        page.0.copy_from_slice(arrange(entries).ok_or(Status::Exhausted)?.as_bytes());
        kernel_lend(&CpuidLoad { vcpu: self.id(vcpu) }, &page).map(|_| ())
    }

    fn host_cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = core::arch::x86_64::__cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    fn console_out(&mut self, bytes: &[u8]) -> usize {
        let Some(ring) = &mut self.output else { return bytes.len() };
        let mut sent = ring.write(bytes);
        // Full: have its room told, unless some was made just now.
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            if ring.wait_room() {
                break;
            }
            sent += ring.write(rest);
        }
        sent
    }

    fn send_frames(&mut self, batch: &Area, bytes: usize) -> Option<u64> {
        let (slot, request) = (self.switch?, Send { bytes: bytes as u64 });
        call_switch(|| call_lend(slot, &request, batch, bytes)).map(|sent| sent.dropped)
    }

    fn fetch_frames(&mut self, batch: &mut Area) -> Option<(usize, bool)> {
        let slot = self.switch?;
        let fetched = call_switch(|| call_borrow(slot, &Fetch {}, batch))?;
        Some((usize::try_from(fetched.bytes).ok()?, fetched.more))
    }

    fn call_switch(&mut self) {
        if let Some(slot) = self.switch {
            let _ = call_switch(|| caisson_rt::call(slot, &Report {}));
        }
    }

    fn publish(&mut self, page: usize, word: usize, value: u64) {
        self.share.store(page * PAGE_WORDS + word, value);
    }

    #[inline(always)]
    fn count(&mut self, page: usize, word: usize, more: u64) {
        self.share.add(page * PAGE_WORDS + word, more);
    }

    fn wbinvds(&self, vcpu: u8) -> u64 {
        self.page(vcpu).and_then(|page| page.get(offset_of!(VcpuState, wbinvds)).ok()).unwrap_or(0)
    }

    fn end(&mut self, kind: ExitKind, [a, b, c, d]: [u64; 4]) {
        caisson_rt::exit(kind, [a, b, c, d, 0, 0]);
    }

    fn log(&mut self, event: Event) {
        events::log(event);
    }
}

const _: () = assert!(CpuidEntry::MAX * size_of::<CpuidEntry>() == PAGE_SIZE as usize);
