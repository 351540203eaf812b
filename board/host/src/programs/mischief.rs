//! What a vmm may not.

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::{Gfn, ServiceId, VPage, VcpuId, VmId};
use caisson_proto::kernel::{FrameCount, VcpuRead, VcpuRun};
use caisson_proto::memory::{GiveBack, Populate, SlotInfo};
use caisson_proto::slots::SlotId;
use caisson_proto::vcpu::Groups;

use crate::hardware::LENDABLE;
use crate::service::Sys;

/// Does what isn't allowed, and sees that it isn't.
pub fn mischief(sys: &Sys<'_>, vm: VmId, vcpus: u8, kind: u64) {
    let world = sys.world;
    let manifest = &world.manifest;
    let message = [world.rng.next(); 8];
    let lending = |page: u64, write: bool| {
        let lease = Lease { page: VPage(page), pages: 2, write };
        sys.call_raw(manifest.echo, &message, Some(lease)).0
    };
    let id = |slot: usize| ServiceId::new(slot as u16, 0);
    let foreign = VmId::new((vm.index() as u16 + 1) % 8, vm.generation());
    let (status, expected): (Status, &[Status]) = match kind {
        0 => (sys.call_raw(manifest.memory, &message, None).0, &[Status::Malformed]),
        1 => (sys.call_id(id(manifest.supervisor), &message, None).0, &[Status::Downhill]),
        2 => (sys.call_id(id(60), &message, None).0, &[Status::Denied]),
        3 => (sys.ask(&FrameCount {}).err().unwrap_or(Status::Ok), &[Status::Denied]),
        4 => {
            let run = VcpuRun { vcpu: VcpuId { vm: foreign, index: 0 } };
            (sys.ask(&run).err().unwrap_or(Status::Ok), &[Status::Denied, Status::Dead])
        }
        5 => (lending(LENDABLE.end - 1, false), &[Status::BadLease]),
        6 => {
            let known = sys.known(manifest.echo);
            let old = ServiceId::new(known.index() as u16, known.generation().wrapping_sub(1) & 0x7fff);
            (sys.call_id(old, &message, None).0, &[Status::Dead])
        }
        7 => (sys.ring(manifest.supervisor, 1).err().unwrap_or(Status::Ok), &[Status::Denied]),
        8 => {
            let (vm, gfn) = (foreign, Gfn(0));
            let refused = match world.rng.below(3) {
                0 => sys.call(manifest.memory, &Populate { vm, gfn, pages: 1, private: false }).err(),
                1 => sys.call(manifest.memory, &GiveBack { vm, gfn, pages: 1 }).err(),
                _ => sys.call(manifest.memory, &SlotInfo { vm, slot: SlotId(0) }).err(),
            };
            (refused.unwrap_or(Status::Ok), &[Status::Denied, Status::NotFound])
        }
        9 => (lending(LENDABLE.start, true), &[Status::BadLease]),
        10 => {
            let groups = Groups::all();
            let vcpu = VcpuId { vm, index: vcpus.saturating_sub(1) };
            let _ = sys.ask(&VcpuRead { vcpu, groups });
            return;
        }
        _ => {
            if world.deaths_left() > 0 && world.rng.chance(1, 4) {
                world.deaths.set(world.deaths.get() - 1);
                let _ = sys.ask_raw(&message, None);
                world.check(sys.stopped(), || format!("slot {} outlives a malformed message", sys.slot));
            }
            return;
        }
    };
    let excused = matches!(status, Status::Dead | Status::Died) || sys.stopped();
    world.check(expected.contains(&status) || excused, || {
        format!("mischief {kind} of slot {} is answered with {status:?}", sys.slot)
    });
}
