//! Whatever clients ask in whatever order, whatever the processor refuses, and whenever the service dies: no ASID is lost or
//! doubled, and what can't be used again is what was counted.

use caisson_proto::abi::Status;
use caisson_proto::addr::{Gfn, Gpa, VmId};
use caisson_proto::firmware::*;
use caisson_proto::kernel::{AsidState, VmKind, VmState};
use caisson_proto::mailbox::{self, COMMANDS};
use caisson_qemu_psp::rmp::State;
use proptest::prelude::*;

use crate::kernel::{CONTEXTS, Fault, GONE};
use crate::world::*;

/// VM slots in play: more than there are ASIDs.
const SLOTS: u16 = 12;

/// What happens.
#[derive(Clone, Debug)]
enum Act {
    /// A VM is made in a slot without one, and its launch started.
    Launch(VmKind),
    /// A step of the launch, the right one or not.
    Step(u8),
    /// The guest is ended, with its VM or without.
    End(bool),
    /// Its VM goes without anybody ending its guest.
    Vanish,
    Flush,
    Status,
    /// So many events come to pass.
    Ticks(u8),
    /// The next such command fails, unexecuted.
    Fault(usize, u16),
    Restart,
}

fn act() -> impl Strategy<Value = (u16, Act)> {
    let kind = prop::sample::select(vec![VmKind::Sev, VmKind::Sev, VmKind::SevEs, VmKind::SevSnp]);
    let status = prop::sample::select(vec![0x01, 0x0a, 0x0e, 0x0f, 0x13, 0x14, 0x17, 0xff]);
    let act = prop_oneof![
        6 => kind.prop_map(Act::Launch),
        6 => (0..8u8).prop_map(Act::Step),
        4 => any::<bool>().prop_map(Act::End),
        1 => Just(Act::Vanish),
        1 => Just(Act::Flush),
        1 => Just(Act::Status),
        8 => (1..12u8).prop_map(Act::Ticks),
        3 => (0..COMMANDS.len(), status).prop_map(|(command, status)| Act::Fault(command, status)),
        1 => Just(Act::Restart),
    ];
    (0..SLOTS, act)
}

/// Commands whose failure may cost an ASID.
const ENDS: [u16; 3] = [mailbox::DEACTIVATE, mailbox::DECOMMISSION, mailbox::SNP_DECOMMISSION];

struct Play {
    world: World,
    /// The VM in each slot.
    vms: Vec<Option<VmId>>,
    /// Failures of such commands, and VMs that vanished.
    excuses: u32,
}

impl Play {
    fn new() -> Self {
        Self { world: World::snp(), vms: vec![None; usize::from(SLOTS)], excuses: 0 }
    }

    fn kind(&self, vm: VmId) -> VmKind {
        self.world.fake.vms.iter().find(|other| other.id == vm).expect("a VM").kind
    }

    fn act(&mut self, slot: u16, act: &Act) {
        let world = &mut self.world;
        let vm = self.vms[usize::from(slot)];
        match (act, vm) {
            (Act::Launch(kind), None) => {
                let vm = world.fake.vm(slot, vmm(slot), *kind, 16);
                self.vms[usize::from(slot)] = Some(vm);
                self.launch(vm);
            }
            (Act::Launch(_), Some(vm)) => self.launch(vm),
            (Act::Step(step), Some(vm)) => self.step(vm, *step),
            (Act::End(whole), Some(vm)) => {
                if *whole {
                    world.fake.vm_mut(vm).expect("a VM").state = VmState::Dying;
                }
                let queued = world.send(MEMORY, &Decommission { vm }, &[]);
                if *whole && queued.is_ok() {
                    world.pump();
                    world.fake.release(vm);
                    self.vms[usize::from(slot)] = None;
                }
            }
            (Act::Vanish, Some(vm)) => {
                world.fake.vm_mut(vm).expect("a VM").state = VmState::Dying;
                world.fake.release(vm);
                self.vms[usize::from(slot)] = None;
                self.excuses += 1;
            }
            (Act::Flush, _) => drop(world.send(MEMORY, &PlatformDo { command: PlatformCommand::Flush }, &[])),
            (Act::Status, _) => drop(world.send(vmm(slot), &PlatformRead { fact: PlatformFact::Status }, &[])),
            (Act::Ticks(count), _) => (0..*count).for_each(|_| _ = world.tick()),
            (Act::Fault(command, status), _) => {
                let number = COMMANDS[*command].number;
                world.fake.fault(number, Fault::Fails(*status));
                self.excuses += u32::from(ENDS.contains(&number));
            }
            (Act::Restart, _) => world.restart(),
            _ => {}
        }
        self.fetch();
        self.world.check();
    }

    fn launch(&mut self, vm: VmId) {
        let client = vmm(vm.index() as u16);
        let policy = if self.kind(vm) == VmKind::SevEs { ES_POLICY } else { 0 };
        let _ = match self.kind(vm) {
            VmKind::SevSnp => self.world.send(client, &snp_start(vm), &[]),
            _ => self.world.send(client, &LaunchStart { vm, policy, owner: false }, &[]),
        };
    }

    fn step(&mut self, vm: VmId, step: u8) {
        let (client, snp) = (vmm(vm.index() as u16), self.kind(vm) == VmKind::SevSnp);
        let world = &mut self.world;
        let gfn = Gfn(u64::from(step));
        let finish = SnpLaunchFinish { vm, flags: SnpFinish::empty(), host_0: 0, host_1: 0, host_2: 0, host_3: 0 };
        let page_type = SnpPageType::Zero;
        let _ = match (step, snp) {
            (0 | 1, _) => world.send(client, &RegisterRegion { vm, gfn, pages: 8, known: false }, &[]),
            (2 | 3, false) => world.send(client, &LaunchUpdate { vm, gpa: Gpa(0x1000), bytes: 0x2000 }, &[]),
            (2 | 3, true) => world.send(client, &SnpLaunchUpdate { vm, gfn, pages: 2, page_type, permissions: 0 }, &[]),
            (4, _) => world.send(client, &LaunchMeasure { vm }, &[]),
            (5 | 6, false) => world.send(client, &LaunchFinish { vm }, &[]),
            (5 | 6, true) => world.send(client, &finish, &[]),
            _ => world.send(client, &GuestStatus { vm }, &[]),
        };
    }

    /// Everybody who was rung takes what has ended.
    fn fetch(&mut self) {
        let world = &mut self.world;
        for client in std::mem::take(&mut world.fake.bells) {
            (1..400).for_each(|job| drop(world.result(client, JobId(job))));
        }
    }

    /// Nothing goes wrong any more. What was lost by then is what was counted, and for a reason; then everybody goes.
    fn end(mut self) {
        self.world.fake.faults.clear();
        self.world.pump();
        let world = &mut self.world;
        let counted = world.platform().leaked_asids;
        assert!(counted <= self.excuses, "{counted} lost for {} reasons", self.excuses);
        // A successor finds guests whose VM vanished.
        world.restart();
        world.pump();
        world.check_quiet();
        for vm in self.vms.iter().flatten() {
            assert!(world.fake.vms.iter().any(|other| other.id == *vm && other.handler != GONE));
            world.fake.vm_mut(*vm).expect("a VM").state = VmState::Dying;
            assert_eq!(world.ok(MEMORY, &Decommission { vm: *vm }).status, Status::Ok);
            world.fake.release(*vm);
        }
        world.check_quiet();
        if world.fake.rows.iter().any(|row| row.state != AsidState::Free) {
            assert_eq!(world.ok(MEMORY, &PlatformDo { command: PlatformCommand::Flush }).status, Status::Ok);
        }
        // Every ASID is free, every page the host's that wasn't counted, and the processor knows nobody.
        let free = world.fake.rows.iter().all(|row| (row.state, row.handle) == (AsidState::Free, 0));
        assert!(free, "{:?}", world.fake.rows);
        assert_eq!(world.platform().leaked_asids, 0);
        let contexts = &world.fake.board.rmp[CONTEXTS as usize / 4096..];
        let kept = contexts.iter().filter(|entry| entry.state() != State::Hypervisor).count() as u64;
        assert_eq!(kept, world.fake.leaked_pages);
        let (_, status) = world.job(NOTIFIER, &PlatformRead { fact: PlatformFact::Status }, &[]).expect("it is queued");
        assert_eq!(status[8], 0, "guests that nobody knows");
        let (_, status) =
            world.job(NOTIFIER, &PlatformRead { fact: PlatformFact::SnpStatus }, &[]).expect("it is queued");
        assert!(u64::from(status[12]) <= world.fake.leaked_pages, "contexts that nobody knows");
        // And all of a class can be used at once, twice over.
        for _ in 0..2 {
            let launched = (20..24).map(|slot| world.launch(slot, VmKind::Sev)).collect::<Vec<_>>();
            for (vm, report) in launched {
                assert_eq!(report.status, Status::Ok, "{report:?}");
                assert_eq!(world.bury(vm).status, Status::Ok);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn nothing_is_lost_and_nothing_doubled(acts in prop::collection::vec(act(), 1..120)) {
        let mut play = Play::new();
        for (slot, act) in &acts {
            play.act(*slot, act);
        }
        play.end();
    }

    /// Where only flushes fail, nobody can tell afterwards that any did.
    #[test]
    fn failed_flushes_leave_no_trace(failures in prop::collection::vec(1..0x28u16, 1..6), ended in 0..4usize) {
        let mut world = World::sev();
        let vms: Vec<_> = (0..4).map(|slot| world.run_guest(slot, VmKind::Sev)).collect();
        world.bury(vms[ended]);
        let account = world.firmware.account().clone();
        for (slot, status) in (4..).zip(failures) {
            world.fake.fault(mailbox::DF_FLUSH, Fault::Fails(status));
            let (vm, report) = world.launch(slot, VmKind::Sev);
            prop_assert_eq!((report.status, report.firmware), (Status::Busy, status));
            prop_assert_eq!(world.firmware.account(), &account);
            world.fake.release(vm);
        }
        let (vm, report) = world.launch(20, VmKind::Sev);
        prop_assert_eq!((report.status, world.fake.asid_of(vm)), (Status::Ok, Some(5 + ended as u32)));
    }
}
