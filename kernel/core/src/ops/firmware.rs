//! Operations on ASIDs and the secure processor's mailbox.
//!
//! The kernel writes every address and every handle into a command itself, and records what a command that succeeded
//! changed. So a service can't name a frame, an ASID or a guest that isn't there for it.

use caisson_proto::mailbox::{self, COMMANDS, DATA_BYTES, Kind, Length};

use super::{Answer, Call, ok};
use crate::prelude::*;

/// The words of a command's buffer.
type Buffer = [u64; mailbox::BUFFER_BYTES / 8];

/// The 4 bytes at an offset that is a multiple of 4.
fn half(buffer: &Buffer, at: u8) -> u64 {
    buffer[usize::from(at) / 8 % 8] >> (at % 8 * 8) & 0xffff_ffff
}

impl<M: Machine> Call<'_, M> {
    pub(super) fn asid_bind(&self, request: &AsidBind) -> Answer {
        let (low, high) = self.sev_asids();
        let mut tables = self.tables();
        let (slot, _) = self.alive(request.vm)?;
        let Tables { asids, books, .. } = &mut *tables;
        let books = books.get_mut(slot).ok_or(Status::Dead)?;
        ensure(books.kind != VmKind::Plain && books.asid == 0 && self.vcpus_idle(slot), Status::State)?;
        let class = if books.kind == VmKind::Sev { low..high + 1 } else { 1..low };
        ensure(class.contains(&request.asid), Status::Range)?;
        asids.bind(request.asid, request.vm, books.kind)?;
        books.asid = request.asid;
        let made = (0..MAX_VCPUS).filter(|index| books.vcpus[*index].is_some());
        made.for_each(|index| self.machine.vcpu_asid(Context::vcpu(slot, index), request.asid));
        ok(Done {})
    }

    /// The lowest ASID of a SEV VM and the highest.
    pub(super) fn sev_asids(&self) -> (u32, u32) {
        let asids = self.machine.asids().1;
        (asids >> 16, asids & 0xffff)
    }

    pub(super) fn asid_info(&self, request: &AsidInfo) -> Answer {
        ensure(request.asid <= self.sev_asids().1, Status::NotFound)?;
        let mut tables = self.tables();
        let Asid { state, vm, kind, handle, .. } = *tables.asids.get(request.asid).ok_or(Status::NotFound)?;
        ok(AsidReport { state, vm, kind, handle })
    }

    pub(super) fn mailbox_ring(&self, request: &MailboxRing) -> Answer {
        let command = COMMANDS.iter().find(|command| command.number == request.command).ok_or(Status::NotFound)?;
        let mailbox = self.machine.mailbox().ok_or(Status::Unsupported)?;
        let mut tables = self.tables();
        ensure(tables.mailbox.state == MailboxState::Idle, Status::Busy)?;
        let recycles = matches!(command.number, mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH);
        ensure(!recycles || !tables.asids.any_dirty(), Status::TooWeak)?;
        // Lines that it dirties from now on would be paid for by nobody.
        let all = mailbox::ends_all(command.number);
        let ended = |(vm, books): (&Vm, &Books)| vm.id.get() == request.vm || all && books.kind != VmKind::Plain;
        let slots = self.vms.iter().zip(&tables.books).map(ended).zip(0..);
        ensure(
            !mailbox::ends(command.number) || slots.filter(|it| it.0).all(|(_, slot)| self.vcpus_idle(slot)),
            Status::Busy,
        )?;
        // What the processor writes must be its own, so the host can't write it until it was reclaimed.
        let writes = tables.snp && command.writes;
        let reclaims = command.number == mailbox::SNP_PAGE_RECLAIM && self.lease.is_some_and(|lease| lease.pages == 1);
        ensure(tables.lent == 0 || reclaims, Status::State)?;
        let pages = self.exchange(mailbox.first, writes, false)?;
        let (words, at) = (mailbox.command[usize::from(writes)], Frame(mailbox.first.0 + u64::from(writes)).spa());
        let mut buffer: Buffer = words.each_ref().map(|word| word.load(Ordering::Relaxed));
        for &(at, kind) in command.fields {
            let given = buffer[usize::from(at) / 8 % 8];
            let value = self.field(&mut tables, &buffer, request, mailbox.first, given, kind)?;
            buffer[usize::from(at) / 8 % 8] = match kind {
                Kind::Handle | Kind::Asid if at % 8 == 4 => given & 0xffff_ffff | value << 32,
                Kind::Handle | Kind::Asid => given & !0xffff_ffff | value,
                _ => value,
            };
        }
        words.iter().zip(buffer).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        if writes {
            let turn = |page: &u64| self.machine.rmp_update(Frame(mailbox.first.0 + page), Entry::FIRMWARE).is_ok();
            tables.lent = (1..=pages).take_while(turn).count() as u64;
            ensure(tables.lent == pages, Status::State)?;
        }
        tables.mailbox =
            MailboxReport { state: MailboxState::Busy, command: command.number, status: 0, vm: request.vm };
        tables.rung = tables.tickets;
        self.machine.log(Event::Rang(command.number, request.vm));
        let [register, low, high] = mailbox.registers;
        low.store(at.0 as u32, Ordering::Relaxed);
        high.store((at.0 >> 32) as u32, Ordering::Relaxed);
        register.store(u32::from(command.number) << 16 | 1, Ordering::Release);
        self.ring_all(Caps::SILICON, doorbell::MAILBOX);
        ok(Done {})
    }

    /// What the kernel puts into a field.
    fn field(
        &self, tables: &mut Tables, buffer: &Buffer, request: &MailboxRing, first: Frame, given: u64, kind: Kind,
    ) -> Answer<u64> {
        let length = |length| match length {
            Length::Bytes(bytes) => bytes.into(),
            Length::At(at) => half(buffer, at),
        };
        let end = |bytes| given.checked_add(bytes).ok_or(Status::Range);
        let Tables { asids, frames, batches, books, lent, snp, .. } = tables;
        match kind {
            // Only a VM that is there is activated, and once.
            Kind::Asid => {
                let (number, asid) = asids.of(request.vm).ok_or(Status::State)?;
                ensure(asid.state == AsidState::Bound, Status::State)?;
                Ok(number.into())
            }
            Kind::Handle | Kind::Context => {
                let (_, asid) = asids.of(request.vm).ok_or(Status::State)?;
                ensure((kind == Kind::Context) == (asid.kind == VmKind::SevSnp), Status::State)?;
                // A guest begins once.
                let begins = matches!(request.command, mailbox::LAUNCH_START | mailbox::SNP_GCTX_CREATE);
                ensure(if begins { asid.handle == 0 } else { asid.is_known() }, Status::State)?;
                if begins && kind == Kind::Context {
                    ensure(*snp, Status::State)?;
                    let books = books.get_mut(self.alive(request.vm)?.0).ok_or(Status::Dead)?;
                    let frame = books.stock.pop().ok_or(Status::Exhausted)?;
                    books.kernel_frames -= 1;
                    self.machine.disown(frame);
                    self.machine.flush_translations();
                    self.machine.flush_lines(frame, 1, 0);
                    frames.turn(frame, 1, FrameState::Kernel, Frames::of(FrameState::Firmware, request.vm));
                    asid.handle = frame.spa().0 | FORGOTTEN;
                    self.machine.rmp_update(frame, Entry::FIRMWARE)?;
                }
                Ok(asid.handle & !FORGOTTEN)
            }
            Kind::Guest(bytes) => {
                // A dying VM's page is taken back from the processor, too.
                let vm = if request.command == mailbox::SNP_PAGE_RECLAIM {
                    vms::find(&self.vms, request.vm)?.1
                } else {
                    self.alive(request.vm)?.1
                };
                let gfn = Gfn(given >> 12);
                let mapping =
                    self.machine.nested_look_up(vm.root(0).ok_or(Status::State)?, gfn).ok_or(Status::Range)?;
                let last = Frame(mapping.frame.0 + (end(length(bytes))?.saturating_sub(1) >> 12) - gfn.0);
                let inside = length(bytes) != 0 && (last.0 - mapping.frame.0) < mapping.pages - gfn.0 % mapping.pages;
                ensure(inside, Status::Range)?;
                let private =
                    |frame| frames.get(Frame(frame), batches) == Some(Frames::of(FrameState::Private, request.vm));
                ensure((mapping.frame.0..last.0 + 1).all(private), Status::State)?;
                if request.command == mailbox::SNP_LAUNCH_UPDATE {
                    let (asid, _) = asids.of(request.vm).ok_or(Status::State)?;
                    self.machine.rmp_update(mapping.frame, Entry::guest(asid, gfn, true))?;
                }
                Ok(mapping.frame.spa().0 + given % PAGE_SIZE)
            }
            Kind::Data(bytes) if length(bytes) == 0 => Ok(0),
            Kind::Data(bytes) => {
                ensure(end(length(bytes))? <= DATA_BYTES, Status::Range)?;
                Ok(Frame(first.0 + 2).spa().0 + given)
            }
            Kind::Firmware(bytes) => {
                let mut range = given >> 12..end(length(bytes))?.div_ceil(PAGE_SIZE);
                let firmware = |frame| frames.get(Frame(frame), batches) == Some(Frames::plain(FrameState::Firmware));
                ensure(length(bytes) == 0 && given == 0 || range.all(firmware), Status::State)?;
                Ok(given)
            }
            Kind::Reclaim if given == mailbox::RECLAIM_CONTEXT => {
                let (_, asid) = asids.of(request.vm).ok_or(Status::NotFound)?;
                ensure(asid.kind == VmKind::SevSnp && asid.handle != 0, Status::NotFound)?;
                Ok(asid.handle & !FORGOTTEN)
            }
            Kind::Reclaim if given == mailbox::RECLAIM_MAILBOX => {
                ensure(*lent > 0, Status::NotFound)?;
                Ok(Frame(first.0 + *lent).spa().0)
            }
            Kind::Reclaim => {
                ensure(given % PAGE_SIZE == mailbox::RECLAIM_GUEST, Status::Range)?;
                let page = Kind::Guest(Length::Bytes(PAGE_SIZE as u32));
                self.field(tables, buffer, request, first, given - mailbox::RECLAIM_GUEST, page)
            }
            Kind::Nothing => ensure(given == 0, Status::Range).map(|()| 0),
        }
    }

    /// Copies the leased pages, how many it tells, to the command and its data, or back.
    fn exchange(&self, first: Frame, writes: bool, out: bool) -> Answer<u64> {
        let fits = |lease: &Lease| lease.pages <= 1 + DATA_BYTES / PAGE_SIZE && (lease.write || !out);
        let lease = self.lease.filter(fits).ok_or(Status::BadLease)?;
        (0..lease.pages).try_for_each(|page| {
            let at = Frame(first.0 + page + u64::from(writes || page > 0)).spa();
            self.machine.copy((lease.page.0 + page) * PAGE_SIZE, at, PAGE_SIZE, out)
        })?;
        Ok(lease.pages)
    }

    pub(super) fn mailbox_take(&self, _: &MailboxTake) -> Answer {
        let mailbox = self.machine.mailbox().ok_or(Status::Unsupported)?;
        let mut tables = self.tables();
        let mut report = tables.mailbox;
        let answer = mailbox.registers[0].load(Ordering::Acquire);
        if report.state == MailboxState::Idle || answer >> 31 == 0 {
            return ok(report);
        }
        let writes = tables.lent > 0 && report.command != mailbox::SNP_PAGE_RECLAIM;
        self.exchange(mailbox.first, writes, true)?;
        (report.state, report.status) = (MailboxState::Done, answer as u16);
        tables.mailbox.state = MailboxState::Idle;
        self.machine.log(Event::Rung(report.command, report.status));
        // Whatever is said of a page: the RMP knows whether the processor has it.
        if report.status == 0 || report.command == mailbox::SNP_PAGE_RECLAIM {
            let word = mailbox.command[usize::from(writes)][0].load(Ordering::Relaxed);
            self.record(&mut tables, &report, word, mailbox.first);
        }
        ok(report)
    }

    /// Records what a command changed, whose buffer begins with `word`.
    fn record(&self, tables: &mut Tables, report: &MailboxReport, word: u64, first: Frame) {
        let (tickets, command) = (tables.tickets, report.command);
        match command {
            mailbox::DF_FLUSH | mailbox::SNP_DF_FLUSH => tables.asids.recycle(tables.rung),
            mailbox::INIT | mailbox::INIT_EX | mailbox::SNP_INIT_EX => tables.asids.doubt(tickets),
            mailbox::SHUTDOWN => tables.asids.shut_down(false, tickets),
            mailbox::SNP_SHUTDOWN_EX => tables.asids.shut_down(true, tickets),
            _ => {}
        }
        tables.snp = command == mailbox::SNP_INIT_EX || tables.snp && command != mailbox::SNP_SHUTDOWN_EX;
        // A guest's page stays the guest's.
        let page = Spa(word).frame();
        let returned = |frame| page == frame && self.machine.rmp_update(frame, Entry::SHARED).is_ok();
        if command == mailbox::SNP_PAGE_RECLAIM && tables.lent > 0 && returned(Frame(first.0 + tables.lent)) {
            tables.lent -= 1;
        }
        let Some((_, asid)) = tables.asids.of(report.vm) else { return };
        let active = asid.state == AsidState::Active;
        match command {
            mailbox::LAUNCH_START => asid.handle = word & 0xffff_ffff,
            mailbox::ACTIVATE | mailbox::SNP_ACTIVATE => asid.state = AsidState::Active,
            mailbox::DEACTIVATE if active => asid.deactivate(tickets),
            mailbox::SNP_GCTX_CREATE => asid.handle &= !FORGOTTEN,
            mailbox::SNP_DECOMMISSION => {
                asid.handle |= FORGOTTEN;
                if active {
                    asid.deactivate(tickets);
                }
            }
            mailbox::DECOMMISSION => asid.handle = 0,
            mailbox::SNP_PAGE_RECLAIM
                if asid.kind == VmKind::SevSnp
                    && asid.handle != 0
                    && returned(Spa(asid.handle & !FORGOTTEN).frame()) =>
            {
                self.machine.flush_lines(page, 1, 0);
                tables.frames.turn(page, 1, FrameState::Firmware, Frames::free(false));
                asid.handle = 0;
            }
            _ => {}
        }
    }

    pub(super) fn silicon_copy(&self, request: &SiliconCopy) -> Answer {
        let tables = self.tables();
        let SiliconCopy { at, bytes, write } = *request;
        ensure(bytes <= PAGE_SIZE - at.0 % PAGE_SIZE, Status::Range)?;
        let Mailbox { first, rmp: (rmp, table), .. } = self.machine.mailbox().ok_or(Status::Unsupported)?;
        let own = first.0..first.0 + 2 + DATA_BYTES / PAGE_SIZE;
        let entries = table.0..table.0 + (rmp.0.len() as u64 * 16).div_ceil(PAGE_SIZE);
        let frame = tables.frames.get(at.frame(), &tables.batches).ok_or(Status::Range)?;
        let its = own.contains(&at.frame().0) || entries.contains(&at.frame().0);
        ensure(its || !matches!(frame.state, FrameState::Kernel | FrameState::Leaked), Status::State)?;
        let lease = self.lease.filter(|lease| lease.write || write).ok_or(Status::BadLease)?;
        self.machine.copy(lease.page.0 * PAGE_SIZE, at, bytes, !write)?;
        ok(Done {})
    }

    pub(super) fn silicon_cpu(&self, request: &SiliconCpu) -> Answer {
        let cpu = self.cpus.get(usize::from(request.cpu.0)).ok_or(Status::Range)?;
        let rmp = self.machine.mailbox().filter(|mailbox| !mailbox.rmp.0.0.is_empty());
        ok(CpuReport {
            wbinvds: cpu.wbinvds.load(Ordering::SeqCst),
            rmp: rmp.map_or(Frame(0), |mailbox| mailbox.rmp.1),
        })
    }
}
