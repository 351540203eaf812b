//! A service in sev-firmware's place, with its capability and nothing good in mind: it names frames, ASIDs, guests and memory
//! that aren't there for it, in every command and operation that it may use, at each point of a guest's launch. When a vmm first
//! asks it for something, it begins; it logs what came of each part.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
mod image {
    use caisson_guest_intruder::Report;
    use caisson_proto::abi::{Lease, Status, doorbell};
    use caisson_proto::addr::{BatchId, CpuId, Frame, Gfn, PAGE_SIZE, ServiceId, Ticket, Tsc, VcpuId, VmId};
    use caisson_proto::kernel::{
        Access, AsidBind, CpuidLoad, FrameCount, FrameDonate, FrameRuns, GuestConvert, GuestMap, GuestUnmap,
        InvalidateBegin, MailboxRing, MailboxState, MailboxTake, PowerOff, SiliconCpu, TablesDonate, TicketCheck,
        TimerSet, VcpuCreate, VcpuKick, VcpuRun, VmCreate, VmDestroy, VmInfo, VmKind, VmRelease, VmReport, WriteBack,
        WriteBackInvalidate,
    };
    use caisson_proto::mailbox::{self, COMMANDS};
    use caisson_proto::wire::{Request, Words};
    use caisson_rt::{LeasePage, Server, info, kernel, kernel_borrow, kernel_lend, time};

    /// An ASID for the victim, of its class: the lowest of SEV's, or of SEV-SNP's.
    const SEV_ASID: u32 = 3;
    const SNP_ASID: u32 = 1;
    /// Past the last of either.
    const END: u32 = 7;
    /// No VM has this id.
    const NOBODY: VmId = VmId::new(u16::MAX, 0x7fff);
    /// What every 8 bytes of a command hold that names what it mustn't: as an address 1 MiB, as a length 1 MiB or 4 KiB.
    const FOREIGN: u64 = 0x1000_0010_0000;
    /// Guest-physical addresses.
    const ADDRESSES: [u64; 6] = [0, 0x1000, 0x10_0000, (64 << 20) - 16, 64 << 20, u64::MAX - 0xfff];
    /// Milliseconds until it looks for them again.
    const SOON_MS: u64 = 5;
    /// Where the victim has memory, at the latest.
    const SEARCHED: u64 = 1024;

    /// What the processor answers next, or which ticket is awaited.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Waits {
        Nothing,
        Init,
        Ticket(Ticket),
        Flush,
        Launch,
    }

    struct Impostor {
        waits: Waits,
        begun: bool,
        /// An encrypted VM, and a plain one that isn't to notice.
        victim: VmId,
        other: VmId,
        /// The victim is an SNP VM.
        snp: bool,
        page: LeasePage,
        report: Report,
    }

    impl Impostor {
        /// One that must be refused for this.
        fn refused<R: Request>(&mut self, request: &R, why: &[Status]) {
            let status = kernel(request).err().unwrap_or(Status::Ok);
            self.report.case(why.contains(&status), status as u64 | request.encode()[0] << 8);
        }

        /// One that is allowed.
        fn allowed<R: Request>(&mut self, request: &R) {
            let status = kernel(request).err().unwrap_or(Status::Ok);
            self.report.case(status == Status::Ok, status as u64 | request.encode()[0] << 8);
        }

        fn ring(&mut self, command: u16, vm: VmId) -> Status {
            kernel_lend(&MailboxRing { command, vm }, &self.page).err().unwrap_or(Status::Ok)
        }

        fn fill(&mut self, word: u64) {
            self.page.0.chunks_exact_mut(8).for_each(|place| place.copy_from_slice(&word.to_le_bytes()));
        }

        fn put(&mut self, at: usize, bytes: &[u8]) {
            if let Some(place) = self.page.0.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }

        /// Rings a command that mustn't reach the processor.
        fn kept(&mut self, command: u16, vm: VmId) {
            let status = self.ring(command, vm);
            self.report.case(status != Status::Ok, status as u64 | u64::from(command) << 8);
        }

        fn sent(&mut self, command: u16, vm: VmId, then: Waits) {
            let status = self.ring(command, vm);
            self.report.case(status == Status::Ok, status as u64 | u64::from(command) << 8);
            self.waits = then;
        }

        /// Logs a part.
        fn end(&mut self, part: &str) {
            let Report { cases, wrong, got } = core::mem::take(&mut self.report);
            defmt::info!("impostor: {=str}: {=u64} cases, {=u64} wrong, got {=u64:#x}", part, cases, wrong, got);
        }

        fn find(&mut self) {
            let mut slot = 0;
            while let Ok(VmReport { vm, kind, next, .. }) = kernel(&VmInfo { slot }) {
                *if kind == VmKind::Plain { &mut self.other } else { &mut self.victim } = vm;
                self.snp |= kind == VmKind::SevSnp;
                slot = next;
            }
        }

        /// What names memory or guests, in each command, for each VM and one that never was.
        fn commands(&mut self) {
            let nobody = VmId::new(self.victim.index() as u16, self.victim.generation() + 1);
            for command in COMMANDS.iter().filter(|command| !command.fields.is_empty()) {
                for vm in [self.victim, self.other, nobody] {
                    self.fill(FOREIGN);
                    self.kept(command.number, vm);
                }
            }
            let known = |number: &u16| COMMANDS.iter().any(|command| command.number == *number);
            for number in (0..0x200).chain([u16::MAX]).filter(|number| !known(number)) {
                self.kept(number, self.victim);
            }
            let unlent = MailboxRing { command: mailbox::INIT, vm: self.victim };
            self.refused(&unlent, &[Status::BadLease]);
        }

        /// Operations that others have the capability for.
        fn operations(&mut self) {
            let (vm, gfn, frame, pages) = (self.victim, Gfn(0), Frame(0x100), 1);
            let vcpu = VcpuId { vm, index: 0 };
            let denied = &[Status::Denied];
            self.refused(&FrameRuns { from: frame, most: 1 }, denied);
            self.refused(&FrameCount {}, denied);
            self.refused(
                &VmCreate { handler: ServiceId::from_bits(info().head.id), kind: VmKind::Sev, root: frame },
                denied,
            );
            self.refused(&VmDestroy { vm }, denied);
            self.refused(&VmRelease { vm }, denied);
            self.refused(&TablesDonate { vm, frame, count: 1 }, denied);
            self.refused(&VcpuCreate { vcpu, cpu: CpuId(0), frame }, denied);
            let (access, sequence) = (Access::READ, Default::default());
            self.refused(&GuestMap { vm, view: 0, gfn, frame, pages, access, sequence }, denied);
            self.refused(&GuestUnmap { vm, view: 0, gfn, pages, more: false, broken: false }, denied);
            self.refused(&FrameDonate { frame, pages }, denied);
            self.refused(&InvalidateBegin { vm, start: gfn, end: Gfn(1) }, denied);
            self.refused(&WriteBack { batch: BatchId(0) }, denied);
            self.refused(&SiliconCpu { cpu: CpuId(0) }, denied);
            self.refused(&VcpuRun { vcpu }, denied);
            self.refused(&VcpuKick { vcpu }, denied);
            self.refused(&CpuidLoad { vcpu }, denied);
            self.refused(&PowerOff { status: 0 }, denied);
        }

        /// ASIDs that aren't the victim's, memory that isn't its own.
        fn names(&mut self) {
            let (vm, other, asid) = (self.victim, self.other, self.asid());
            let others = if self.snp { SEV_ASID } else { SNP_ASID };
            for asid in [0, others, END, 15, 1023, u32::MAX] {
                self.refused(&AsidBind { vm, asid }, &[Status::Range]);
            }
            self.refused(&AsidBind { vm: other, asid }, &[Status::State]);
            let far = [(other, 0, 1), (vm, 0, 0), (vm, 0, 513), (vm, 1 << 35, 1), (vm, 1 << 20, 1)];
            for ((vm, gfn, pages), private) in far.into_iter().flat_map(|far| [(far, true), (far, false)]) {
                self.refused(
                    &GuestConvert { vm, gfn: Gfn(gfn), pages, private, large: false },
                    &[Status::Range, Status::State],
                );
            }
        }

        fn asid(&self) -> u32 {
            if self.snp { SNP_ASID } else { SEV_ASID }
        }

        /// The same for an SNP guest, and pages that the processor doesn't have.
        fn launched_snp(&mut self) {
            for address in ADDRESSES {
                for (command, at, more) in
                    [(mailbox::SNP_LAUNCH_UPDATE, 16, 0), (mailbox::SNP_PAGE_RECLAIM, 0, mailbox::RECLAIM_GUEST)]
                {
                    self.fill(0);
                    self.put(at, &(address | more).to_le_bytes());
                    for vm in [self.victim, self.other] {
                        self.kept(command, vm);
                    }
                }
            }
            let only_one = [mailbox::SNP_GCTX_CREATE, mailbox::LAUNCH_START, mailbox::ACTIVATE, mailbox::DECOMMISSION];
            for command in only_one {
                self.fill(0);
                self.kept(command, self.victim);
            }
            let for_others =
                [mailbox::SNP_GCTX_CREATE, mailbox::SNP_LAUNCH_START, mailbox::SNP_ACTIVATE, mailbox::SNP_DECOMMISSION];
            for command in for_others {
                self.kept(command, self.other);
            }
            for given in [mailbox::RECLAIM_CONTEXT, mailbox::RECLAIM_MAILBOX, FOREIGN, 3] {
                self.fill(0);
                self.put(0, &given.to_le_bytes());
                self.kept(mailbox::SNP_PAGE_RECLAIM, self.other);
            }
            let private = self.one_private();
            self.fill(0);
            self.put(16, &(private * PAGE_SIZE).to_le_bytes());
            self.kept(mailbox::SNP_LAUNCH_UPDATE, self.other);
            self.put(16, &(private * PAGE_SIZE + 1).to_le_bytes());
            self.kept(mailbox::SNP_LAUNCH_UPDATE, self.victim);
        }

        /// The first page of the victim's that it can turn private.
        fn one_private(&mut self) -> u64 {
            let vm = self.victim;
            let private = (0..SEARCHED).find(|gfn| {
                kernel(&GuestConvert { vm, gfn: Gfn(*gfn), pages: 1, private: true, large: false }).is_ok()
            });
            self.report.case(private.is_some(), 0);
            let gfn = private.unwrap_or(0);
            self.refused(&GuestConvert { vm, gfn: Gfn(gfn), pages: 1, private: true, large: false }, &[Status::State]);
            // Nor does it turn shared under another VM's name.
            let vm = self.other;
            self.refused(&GuestConvert { vm, gfn: Gfn(gfn), pages: 1, private: false, large: false }, &[Status::State]);
            gfn
        }

        /// Memory that isn't private, or not the guest's, in commands for a guest that is being launched.
        fn launched(&mut self) {
            for command in [mailbox::LAUNCH_UPDATE_DATA, mailbox::LAUNCH_UPDATE_VMSA] {
                for address in ADDRESSES {
                    for bytes in [0u32, 16, 0x1000, u32::MAX] {
                        self.fill(0);
                        self.put(8, &address.to_le_bytes());
                        self.put(16, &bytes.to_le_bytes());
                        for vm in [self.victim, self.other] {
                            self.kept(command, vm);
                        }
                    }
                }
            }
            self.fill(0);
            self.kept(mailbox::LAUNCH_START, self.victim);
            for command in [mailbox::ACTIVATE, mailbox::DEACTIVATE, mailbox::DECOMMISSION, mailbox::LAUNCH_FINISH] {
                self.kept(command, self.other);
            }
            // One page of the victim's is private; beside it lies one that isn't, and for others there is none.
            let private = self.one_private();
            self.fill(0);
            self.put(8, &(private * PAGE_SIZE).to_le_bytes());
            self.put(16, &(2 * PAGE_SIZE as u32).to_le_bytes());
            self.kept(mailbox::LAUNCH_UPDATE_DATA, self.victim);
            self.put(16, &(PAGE_SIZE as u32).to_le_bytes());
            self.kept(mailbox::LAUNCH_UPDATE_DATA, self.other);
        }

        /// Begins when both VMs are there.
        fn begin(&mut self) {
            self.find();
            if [self.victim, self.other].contains(&NOBODY) {
                let at = Tsc(time::now().0 + time::ticks(SOON_MS));
                self.allowed(&TimerSet { at });
                return;
            }
            self.begun = true;
            self.report = Report::default();
            self.commands();
            self.operations();
            self.names();
            self.end("before");
            self.fill(0);
            if self.snp {
                // What its RMP says is the processor's to begin with.
                self.put(0, &1u32.to_le_bytes());
            }
            self.sent(if self.snp { mailbox::SNP_INIT_EX } else { mailbox::INIT }, self.victim, Waits::Init);
            self.kept_busy();
        }

        /// While a command is under way.
        fn kept_busy(&mut self) {
            let status = self.ring(mailbox::DF_FLUSH, self.victim);
            self.report.case(status == Status::Busy, status as u64);
        }

        fn answered(&mut self) {
            let done = match kernel_borrow(&MailboxTake {}, &mut self.page) {
                Ok(report) if report.state == MailboxState::Done => report,
                _ => return,
            };
            self.report.case(done.status == 0, u64::from(done.status) | u64::from(done.command) << 16);
            let (vm, asid) = (self.victim, self.asid());
            match self.waits {
                Waits::Init => {
                    self.refused(&AsidBind { vm, asid }, &[Status::TooWeak]);
                    let status = self.ring(mailbox::DF_FLUSH, vm);
                    self.report.case(status == Status::TooWeak, status as u64);
                    match kernel(&WriteBackInvalidate {}) {
                        Ok(accepted) => self.waits = Waits::Ticket(accepted.ticket),
                        Err(status) => self.report.case(false, status as u64),
                    }
                }
                Waits::Flush => {
                    self.fill(0);
                    let (start, activate) = match self.snp {
                        true => (mailbox::SNP_GCTX_CREATE, mailbox::SNP_ACTIVATE),
                        false => (mailbox::LAUNCH_START, mailbox::ACTIVATE),
                    };
                    self.kept(start, vm);
                    self.allowed(&AsidBind { vm, asid });
                    self.refused(&AsidBind { vm, asid }, &[Status::State]);
                    self.kept(activate, vm);
                    self.sent(start, vm, Waits::Launch);
                }
                Waits::Launch => {
                    self.waits = Waits::Nothing;
                    if self.snp {
                        self.launched_snp()
                    } else {
                        self.launched()
                    }
                    self.end("launched");
                    defmt::info!("impostor: over");
                }
                Waits::Nothing | Waits::Ticket(_) => self.report.case(false, 0),
            }
        }

        fn flushed(&mut self, ticket: Ticket) {
            if !kernel(&TicketCheck { ticket }).is_ok_and(|state| state.done) {
                return;
            }
            self.refused(&AsidBind { vm: self.victim, asid: self.asid() }, &[Status::TooWeak]);
            self.fill(0);
            let flush = if self.snp { mailbox::SNP_DF_FLUSH } else { mailbox::DF_FLUSH };
            self.sent(flush, self.victim, Waits::Flush);
        }
    }

    impl Server for Impostor {
        fn call(&mut self, sender: ServiceId, _: &Words, _: Option<Lease>) -> (Status, Words) {
            if info().is_vmm.get(sender.index()) != Some(&1) {
                return (Status::Unsupported, [0; 8]);
            }
            if !self.begun {
                self.begin();
            }
            // A job that never ends.
            (Status::Ok, [0; 8])
        }

        fn doorbell(&mut self, bits: u64) {
            if bits & doorbell::TIMER != 0 && !self.begun {
                self.begin();
            }
            if bits & doorbell::INTERRUPT != 0 {
                self.answered();
            }
            if let Waits::Ticket(ticket) = self.waits {
                self.flushed(ticket);
            }
        }
    }

    fn start() -> ! {
        let (victim, other) = (NOBODY, NOBODY);
        let (page, report) = (LeasePage::zeroed(), Report::default());
        let mut impostor = Impostor { waits: Waits::Nothing, begun: false, victim, other, snp: false, page, report };
        caisson_rt::serve(&mut impostor)
    }

    caisson_rt::entry!(start);
}

#[cfg(not(target_os = "none"))]
fn main() {}
