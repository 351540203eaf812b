//! The kernel's state: one instance a machine.

use caisson_proto::mailbox;

use crate::prelude::*;

initial! {
    /// What other CPUs may touch of a CPU.
    pub struct Shared {
        /// Contexts that became ready here.
        pub woken: Woken = Woken::new(),
        /// VMs that ran here since this CPU last wrote back, by slot. Only this CPU clears its row.
        pub ran: AtomicU64 = AtomicU64::new(0),
        /// Somebody wants this CPU to write back.
        pub flush_wanted: Atomic<bool> = Atomic::new(0),
        /// And to do so by WBINVD.
        pub invalidate_wanted: Atomic<bool> = Atomic::new(0),
        /// WBINVDs that it completed.
        pub wbinvds: AtomicU64 = AtomicU64::new(0),
    }
}

const _: () = assert!(MAX_VMS <= 64, "a CPU's row is one word");

initial! {
    /// What changes under the table lock.
    pub struct Tables {
        /// Frames; none until boot has declared memory.
        pub frames: FrameTable = FrameTable::new(&[]),
        /// Batches.
        pub batches: Batches = Batches::new(),
        /// ASIDs of encrypted VMs.
        pub asids: Asids = Asids::new(),
        /// The secure processor's mailbox: the command that was rung last, and for which VM.
        pub mailbox: MailboxReport =
            MailboxReport { state: MailboxState::Idle, command: 0, status: 0, vm: VmId::new(0, 0) },
        /// Tickets that were given before that.
        pub rung: u64 = 0,
        /// Whether SEV-SNP is initialised, so that what the processor writes must be its own by the RMP.
        pub snp: bool = false,
        /// Frames after the mailbox's first that are the processor's until they are reclaimed.
        pub lent: u64 = 0,
        /// VMs, by slot.
        pub books: [Books; MAX_VMS] = array![Books::new(); MAX_VMS],
        /// Tickets given so far.
        pub tickets: u64 = 0,
        /// Batch that each of the last tickets is for: number of the ticket and batch.
        pub open_tickets: heapless::Vec<(u64, BatchId), 64> = heapless::Vec::new(),
    }
}

impl Tables {
    /// Whether the secure processor may be at work on this encrypted VM.
    pub(crate) fn is_in_command(&self, vm: VmId) -> bool {
        let MailboxReport { state, command, vm: of, .. } = self.mailbox;
        state != MailboxState::Idle && (of == vm && mailbox::names_guest(command) || mailbox::ends_all(command))
    }

    /// Whether it may be at ending it.
    pub(crate) fn is_ending(&self, vm: VmId) -> bool {
        self.is_in_command(vm) && mailbox::ends(self.mailbox.command)
    }

    /// The books of the VM in a slot, beside frames and batches.
    pub(crate) fn of(&mut self, slot: usize) -> Result<(&FrameTable, &mut Batches, &mut Books), Status> {
        Ok((&self.frames, &mut self.batches, self.books.get_mut(slot).ok_or(Status::Dead)?))
    }
}

initial! {
    /// Everything.
    pub struct Kernel {
        /// Services, by slot.
        pub services: [Service; MAX_SERVICES] = array![Service::new(); MAX_SERVICES],
        /// Contexts, by number.
        pub contexts: [ContextState; CONTEXTS] = array![ContextState::new(); CONTEXTS],
        /// CPUs.
        pub cpus: [Shared; MAX_CPUS] = array![Shared::new(); MAX_CPUS],
        /// VMs, by slot.
        pub vms: [Vm; MAX_VMS] = array![Vm::new(); MAX_VMS],
        pub(crate) tables: Mutex<Tables> = Mutex::new(Tables::new()),
        service_count: AtomicU32 = AtomicU32::new(0),
        cpu_count: AtomicU32 = AtomicU32::new(1),
    }
}

impl Kernel {
    /// Boot: takes the services' authority from the bundle, and the frame table.
    pub fn configure<'a>(&self, records: impl Iterator<Item = &'a ServiceRecord>, cpus: usize, frames: FrameTable) {
        for (slot, (service, record)) in self.services.iter().zip(records).enumerate() {
            service.configure(slot, record);
            self.service_count.store(slot as u32 + 1, Ordering::Release);
        }
        self.cpu_count.store(cpus as u32, Ordering::Release);
        self.tables.lock().frames = frames;
    }

    /// For boards that watch over the rules: looks at the tables, unless somebody is changing them.
    #[cfg(not(target_os = "none"))]
    pub fn inspect<R>(&self, look: impl FnOnce(&mut Tables) -> R) -> Option<R> {
        Some(look(&mut *self.tables.try_lock()?))
    }

    /// Services in the manifest.
    pub fn service_count(&self) -> usize {
        self.service_count.load(Ordering::Acquire) as usize
    }

    /// CPUs that run.
    pub fn cpu_count(&self) -> usize {
        self.cpu_count.load(Ordering::Acquire) as usize
    }

    /// The shared part of a context.
    pub fn context(&self, context: Context) -> &ContextState {
        &self.contexts[context.index()]
    }

    /// The service in a slot; slots come from the kernel's own records. Out of range it is slot 0's.
    pub fn service(&self, slot: usize) -> &Service {
        &self.services[slot % MAX_SERVICES]
    }
}
