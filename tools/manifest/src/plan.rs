//! From the manifest and the list of VMs to the kernel's records: who has which slot, who may call and ring whom,
//! which rings there are.

use caisson_proto::abi::{MAX_SERVICES, MAX_VMS};
use caisson_proto::bundle::{MAX_RINGS, PortRange, ServiceRecord};
use caisson_proto::console::MAX_CHANNELS;
use caisson_proto::info::{RingInfo, RingUse, ServiceInfo};
use caisson_proto::kernel::Caps;
use caisson_proto::layout;
use zerocopy::FromZeros;

use crate::share::{self, PlannedShare};
use crate::system::{Ring, Service, System};
use crate::{Error, check, vm, wrong};

/// VMs at the most: the kernel's bound and the console's.
pub const MAX_GUESTS: usize = if MAX_VMS < MAX_CHANNELS - 1 { MAX_VMS } else { MAX_CHANNELS - 1 };

/// Services in the order of their slots, and their rings.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The services.
    pub services: Vec<Planned>,
    /// The rings.
    pub rings: Vec<PlannedRing>,
    /// Pages that are shared for good.
    pub shares: Vec<PlannedShare>,
}

/// Who is at the ends of a ring.
#[derive(Clone, Copy, Debug)]
pub struct RingEnds {
    /// Slot of the producer.
    pub producer: u16,
    /// Slot of the consumer.
    pub consumer: u16,
    /// The ring's number in the producer's list: page [`RINGS`](caisson_proto::layout::RINGS) + number.
    pub producer_number: u16,
    /// The ring's number in the consumer's list.
    pub consumer_number: u16,
}

/// A ring between two services.
#[derive(Clone, Copy, Debug)]
pub struct PlannedRing {
    /// Its ends.
    pub ends: RingEnds,
    /// What it carries.
    pub purpose: RingUse,
    /// For a console ring: the channel.
    pub channel: u16,
}

/// A service in its slot.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Package of its program.
    pub package: String,
    /// Binary of its program.
    pub bin: String,
    /// For a vmm: the index of its VM.
    pub vm: Option<usize>,
    /// Its record, without what it sees.
    pub record: ServiceRecord,
    /// Stack in pages.
    pub stack_pages: u32,
    /// Heap in pages.
    pub heap_pages: u32,
    /// Its info page, but for its files and the kernel's part.
    pub info: ServiceInfo,
}

/// Lays out a machine with these VMs.
///
/// # Errors
/// [`Error`] if a VM's name can't be used or is there twice, or something doesn't fit.
pub fn plan(system: &System, vms: &[&str]) -> Result<Plan, Error> {
    check_vms(vms)?;
    let mut order: Vec<&Service> = system.services.iter().collect();
    order.sort_by_key(|service| service.rank);
    let slots: Vec<(&Service, Option<usize>)> = order
        .into_iter()
        .flat_map(|service| {
            let instances = if service.per_vm { vms.len() } else { 1 };
            (0..instances).map(move |at| (service, service.per_vm.then_some(at)))
        })
        .collect();
    if slots.len() > MAX_SERVICES {
        return Err(wrong!("{} services with one for each VM; at most {MAX_SERVICES} fit", slots.len()));
    }
    let rings = rings(system, &slots)?;
    let shares = share::plan(system, &slots)?;
    let mut services = slots
        .iter()
        .enumerate()
        .map(|(slot, &(service, vm))| {
            let name = vm.map_or_else(|| service.name.clone(), |vm| format!("{}-{}", service.name, vms[vm]));
            let mut record = record(service, slot, &slots, &rings)?;
            record.may_ring |= share::may_ring(&shares, slot);
            let (package, bin) = (service.package.clone(), service.bin().to_owned());
            let (stack_pages, heap_pages) = (pages(service.stack.0), pages(service.heap.0));
            let info = ServiceInfo::new_zeroed();
            Ok(Planned { name, package, bin, vm, record, stack_pages, heap_pages, info })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    fill_info(&mut services, &rings);
    share::fill_info(&mut services, &shares);
    Ok(Plan { services, rings, shares })
}

impl Plan {
    /// Gives the vmm of VM `vm` so many bytes of heap beside what the manifest says.
    ///
    /// # Errors
    /// [`Error`] if there is no room for so much.
    pub fn add_heap(&mut self, vm: usize, bytes: u64) -> Result<(), Error> {
        const ROOM: u64 = layout::RINGS - layout::HEAP;
        for service in self.services.iter_mut().filter(|service| service.vm == Some(vm)) {
            let all = (u64::from(service.heap_pages) * 4096).saturating_add(bytes);
            if all > ROOM {
                return Err(wrong!("\"{}\" would need a heap of {} MiB; {} fit", service.name, all >> 20, ROOM >> 20));
            }
            service.heap_pages = pages(all);
            service.info.heap_bytes = u64::from(service.heap_pages) * 4096;
        }
        Ok(())
    }
}

/// What the services are told of each other.
fn fill_info(services: &mut [Planned], rings: &[PlannedRing]) {
    let mut all = ServiceInfo::new_zeroed();
    all.services = services.len() as u32;
    for ((service, name), is_vmm) in services.iter().zip(&mut all.names).zip(&mut all.is_vmm) {
        name.iter_mut().zip(service.name.bytes()).for_each(|(to, from)| *to = from);
        *is_vmm = u8::from(service.record.is_vmm == 1);
    }
    for (slot, service) in services.iter_mut().enumerate() {
        let mut info = all;
        info.heap_bytes = u64::from(service.heap_pages) * 4096;
        for &PlannedRing { ends: ring, purpose, channel } in rings {
            let (role, number, peer, peer_number) = if usize::from(ring.producer) == slot {
                (1, ring.producer_number, ring.consumer, ring.consumer_number)
            } else if usize::from(ring.consumer) == slot {
                (2, ring.consumer_number, ring.producer, ring.producer_number)
            } else {
                continue;
            };
            info.ring[usize::from(number)] = RingInfo { role, purpose: purpose as u8, channel, peer, peer_number };
            info.rings = info.rings.max(u32::from(number) + 1);
        }
        service.info = info;
    }
}

fn check_vms(vms: &[&str]) -> Result<(), Error> {
    if vms.len() > MAX_GUESTS {
        return Err(wrong!("{} VMs; at most {MAX_GUESTS} fit, one for each channel of the console", vms.len()));
    }
    for (at, name) in vms.iter().enumerate() {
        vm::check_name(name)?;
        if vms[..at].contains(name) {
            return Err(wrong!("two VMs are named \"{name}\"; give each its own `name`"));
        }
    }
    Ok(())
}

pub(crate) type Slots<'a> = [(&'a Service, Option<usize>)];

/// The slots that a name stands for: several for a template.
pub(crate) fn slots_of<'a>(slots: &'a Slots<'_>, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    slots.iter().enumerate().filter(move |(_, (service, _))| service.name == name).map(|(slot, _)| slot)
}

fn mask(slots: &Slots<'_>, names: &[String]) -> u64 {
    names.iter().flat_map(|name| slots_of(slots, name)).fold(0, |mask, slot| mask | 1 << slot)
}

fn record(service: &Service, slot: usize, slots: &Slots<'_>, rings: &[PlannedRing]) -> Result<ServiceRecord, Error> {
    let mut record = ServiceRecord::new_zeroed();
    record.may_call = mask(slots, &service.call);
    record.may_ring = mask(slots, &service.ring);
    // Both ends of a ring ring each other: that there is something, or that there is room.
    for PlannedRing { ends: ring, .. } in rings {
        let (producer, consumer) = (usize::from(ring.producer), usize::from(ring.consumer));
        if producer == slot {
            record.may_ring |= 1 << consumer;
        }
        if consumer == slot {
            record.may_ring |= 1 << producer;
        }
    }
    let caps = check::caps(service)?;
    record.caps = caps.bits();
    record.rank = service.rank;
    record.interrupt = service.interrupt.unwrap_or(0xffff);
    record.budget_ms = service.budget_ms;
    record.is_vmm = u32::from(caps.contains(Caps::VCPUS));
    for (to, from) in record.ports.iter_mut().zip(&service.ports) {
        *to = PortRange { first: from.first, count: from.count };
    }
    Ok(record)
}

/// Bytes in pages; the manifest's check keeps sizes far below what overflows.
fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(4096)).unwrap_or(u32::MAX)
}

fn rings(system: &System, slots: &Slots<'_>) -> Result<Vec<PlannedRing>, Error> {
    let mut planned: Vec<PlannedRing> = Vec::new();
    let mut used = vec![0u16; slots.len()];
    for (ring, from) in system.rings.iter().flat_map(|ring| ring.from.iter().map(move |from| (ring, from))) {
        for (producer, consumer) in pairs(slots, ring, from) {
            let channel = slots[consumer].1.or(slots[producer].1).map_or(0, |vm| vm as u16 + 1);
            let mut next = |slot: usize| {
                used[slot] += 1;
                used[slot] - 1
            };
            let ends = RingEnds {
                producer: producer as u16,
                consumer: consumer as u16,
                producer_number: next(producer),
                consumer_number: next(consumer),
            };
            planned.push(PlannedRing { ends, purpose: ring.carries.ring_use(), channel });
        }
    }
    match used.iter().position(|&count| usize::from(count) > MAX_RINGS) {
        Some(slot) => Err(wrong!(
            "\"{}\" is at the end of {} rings; at most {MAX_RINGS} fit. Run fewer VMs",
            slots[slot].0.name,
            used[slot]
        )),
        None => Ok(planned),
    }
}

/// Every pair of slots that a ring's entry stands for: producer and consumer.
fn pairs<'a>(slots: &'a Slots<'_>, ring: &'a Ring, from: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    slots_of(slots, from).flat_map(|producer| slots_of(slots, &ring.to).map(move |consumer| (producer, consumer)))
}
