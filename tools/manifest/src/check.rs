//! The rules that a manifest must keep, each with an error that says what is wrong and what to do.

use std::collections::HashMap;

use caisson_proto::abi::MAX_SERVICES;
use caisson_proto::bundle::MAX_PORT_RANGES;
use caisson_proto::info::NAME;
use caisson_proto::kernel::Caps;
use caisson_proto::layout;

use crate::parse::suggestion;
use crate::system::{Carries, KERNEL, Ring, Service, Share, System};
use crate::vm::MAX_NAME;
use crate::{Error, wrong};

/// Checks everything that doesn't depend on which VMs there are.
///
/// # Errors
/// [`Error`]: the first rule that is broken.
pub fn system(system: &System) -> Result<(), Error> {
    names(system)?;
    for service in &system.services {
        targets(system, service)?;
        resources(system, service)?;
    }
    cycles(system)?;
    for service in &system.services {
        ranks(system, service)?;
    }
    owners(system)?;
    for ring in &system.rings {
        ring_ends(system, ring)?;
    }
    for (at, share) in system.shares.iter().enumerate() {
        share_ends(system, share, &system.shares[..at])?;
    }
    roles(system)
}

fn names(system: &System) -> Result<(), Error> {
    let count = system.services.len();
    if count > MAX_SERVICES {
        return Err(wrong!("{count} services; at most {MAX_SERVICES} fit. Remove some"));
    }
    for (at, service) in system.services.iter().enumerate() {
        let name = &service.name;
        let longest = if service.per_vm { NAME - 1 - MAX_NAME } else { NAME };
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if name.is_empty() || name.len() > longest || !plain || name == KERNEL {
            return Err(wrong!(
                "service name \"{name}\" can't be used: give 1 to {longest} lower-case letters, digits or \"-\", \
                 and not \"{KERNEL}\""
            ));
        }
        if system.services[..at].iter().any(|other| other.name == *name) {
            return Err(wrong!("two services are named \"{name}\"; rename one of them"));
        }
    }
    Ok(())
}

/// The service of this name, or an error that says who names it and what there is.
fn find<'a>(system: &'a System, name: &str, who: &str) -> Result<&'a Service, Error> {
    system.service(name).ok_or_else(|| {
        let known: Vec<&str> = system.services.iter().map(|service| service.name.as_str()).collect();
        wrong!("{who} names service \"{name}\", which doesn't exist{}", suggestion(name, &known))
    })
}

fn targets(system: &System, service: &Service) -> Result<(), Error> {
    for target in service.call.iter().chain(&service.ring) {
        find(system, target, &format!("service \"{}\"", service.name))?;
    }
    caps(service).map(|_| ())
}

/// The capabilities of a service.
///
/// # Errors
/// [`Error`] for a name that is none.
pub fn caps(service: &Service) -> Result<Caps, Error> {
    service.kernel.iter().try_fold(Caps::empty(), |caps, name| {
        let lower = name.to_lowercase();
        let known: Vec<String> = Caps::all().iter_names().map(|(name, _)| name.to_lowercase()).collect();
        match Caps::from_name(&name.to_uppercase()) {
            Some(cap) if lower == *name => Ok(caps | cap),
            _ => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                Err(wrong!(
                    "service \"{}\" asks for the kernel capability \"{name}\", which doesn't exist{}",
                    service.name,
                    suggestion(name, &known)
                ))
            }
        }
    })
}

fn resources(system: &System, service: &Service) -> Result<(), Error> {
    let name = &service.name;
    let caps = caps(service)?;
    if caps.contains(Caps::SILICON) && !system.emulating {
        return Err(wrong!(
            "service \"{name}\" asks for \"silicon\", but board \"{}\" doesn't emulate hardware: only a manifest \
             with `emulating = true` may give it",
            system.board
        ));
    }
    let room = layout::STACK_TOP - layout::INFO - 2 * 4096;
    if service.stack.0 == 0 || !service.stack.0.is_multiple_of(4096) || service.stack.0 > room {
        return Err(wrong!("stack of \"{name}\" is {}: give a multiple of 4K up to {}K", service.stack, room >> 10));
    }
    let room = layout::RINGS - layout::HEAP;
    if !service.heap.0.is_multiple_of(4096) || service.heap.0 > room {
        return Err(wrong!("heap of \"{name}\" is {}: give a multiple of 4K up to {}M", service.heap, room >> 20));
    }
    if service.heap.0 > 0 && !service.per_vm && !caps.contains(Caps::SILICON) {
        return Err(wrong!("\"{name}\" has a heap: only a service per VM or one with \"silicon\" may; remove `heap`"));
    }
    if service.budget_ms == 0 {
        return Err(wrong!("`budget-ms` of \"{name}\" is 0: give the milliseconds that one request may take"));
    }
    if service.ports.len() > MAX_PORT_RANGES {
        return Err(wrong!("\"{name}\" has {} port ranges; at most {MAX_PORT_RANGES} fit", service.ports.len()));
    }
    for ports in &service.ports {
        if ports.count == 0 || ports.first.checked_add(ports.count - 1).is_none() {
            return Err(wrong!("\"{name}\": {} ports from {:#x} on are no range", ports.count, ports.first));
        }
    }
    if service.interrupt.is_some_and(|line| line > 15 || line == 2) {
        return Err(wrong!("`interrupt` of \"{name}\" is no ISA line: give 0 to 15, but not 2, the cascade"));
    }
    if service.per_vm && (!service.ports.is_empty() || service.interrupt.is_some()) {
        return Err(wrong!("\"{name}\" is there once for each VM, so it can't own ports or an interrupt"));
    }
    if caps.contains(Caps::VCPUS) != service.per_vm {
        return Err(wrong!("\"{name}\": `per-vm = true` and the capability \"vcpus\" belong together; give both"));
    }
    Ok(())
}

/// Calls in a circle are named as a circle, which says more than the one call in it that goes downhill.
fn cycles(system: &System) -> Result<(), Error> {
    fn visit<'a>(system: &'a System, name: &'a str, path: &mut Vec<&'a str>) -> Result<(), Error> {
        if let Some(start) = path.iter().position(|&seen| seen == name) {
            let circle = [&path[start..], &[name]].concat().join(" → ");
            return Err(wrong!("calls go in a circle: {circle}. A wait could never end; remove one of these calls"));
        }
        path.push(name);
        for target in system.service(name).map(|service| &service.call).into_iter().flatten() {
            visit(system, target, path)?;
        }
        path.pop();
        Ok(())
    }
    system.services.iter().try_for_each(|service| visit(system, &service.name, &mut Vec::new()))
}

fn ranks(system: &System, service: &Service) -> Result<(), Error> {
    for target in &service.call {
        let target = find(system, target, &service.name)?;
        if target.rank <= service.rank {
            return Err(wrong!(
                "\"{}\" (rank {}) calls \"{}\" (rank {}): calls go to a higher rank only. Post to a ring or ring a \
                 doorbell instead, or change the ranks",
                service.name,
                service.rank,
                target.name,
                target.rank
            ));
        }
    }
    Ok(())
}

fn owners(system: &System) -> Result<(), Error> {
    let mut lines: HashMap<u16, &str> = HashMap::new();
    let mut taken: Vec<(u16, u16, &str)> = Vec::new();
    for service in &system.services {
        if let Some(line) = service.interrupt
            && let Some(other) = lines.insert(line, &service.name)
        {
            return Err(wrong!("interrupt {line} has two owners, \"{other}\" and \"{}\"; one must go", service.name));
        }
        for ports in &service.ports {
            let last = ports.first + (ports.count - 1);
            if let Some(other) = taken.iter().find(|(first, end, _)| *first <= last && ports.first <= *end) {
                return Err(wrong!(
                    "ports {:#x} to {last:#x} of \"{}\" overlap {:#x} to {:#x} of \"{}\"; a port has one owner",
                    ports.first,
                    service.name,
                    other.0,
                    other.1,
                    other.2
                ));
            }
            taken.push((ports.first, last, &service.name));
        }
    }
    Ok(())
}

fn ring_ends(system: &System, ring: &Ring) -> Result<(), Error> {
    let what = format!("a ring that carries {:?}", ring.carries.ring_use());
    let to = find(system, &ring.to, &what)?;
    if ring.from.is_empty() {
        return Err(wrong!("{what} has no writer; name it in `from`"));
    }
    let again = ring.from.iter().enumerate().find(|(at, name)| ring.from[..*at].contains(name));
    if let Some((_, name)) = again {
        return Err(wrong!("{what} to \"{}\" names \"{name}\" twice", ring.to));
    }
    for name in &ring.from {
        if name == KERNEL {
            return Err(wrong!(
                "{what} can't come from the kernel: it writes to no ring, and its log goes to the board's device by \
                 itself. Remove \"{KERNEL}\" from `from`"
            ));
        }
        let from = find(system, name, &what)?;
        if from.name == to.name {
            return Err(wrong!("{what} goes from \"{name}\" to itself"));
        }
        let vms_end = match ring.carries {
            Carries::ConsoleOut => Some(from),
            Carries::ConsoleIn | Carries::Resize => Some(to),
            _ => None,
        };
        if let Some(end) = vms_end.filter(|end| !end.per_vm) {
            return Err(wrong!("{what} belongs to a VM, but \"{}\" isn't `per-vm`", end.name));
        }
        if from.per_vm && to.per_vm {
            return Err(wrong!("{what} joins \"{}\" and \"{}\", but VMs share no ring", from.name, to.name));
        }
    }
    Ok(())
}

fn share_ends(system: &System, share: &Share, before: &[Share]) -> Result<(), Error> {
    let what = format!("a share of {:?}", share.carries.share_use());
    let holder = find(system, &share.holder, &what)?;
    let reader = find(system, &share.reader, &what)?;
    if holder.name == reader.name {
        return Err(wrong!("{what} has \"{}\" at both ends; name another `reader`", holder.name));
    }
    if !holder.per_vm {
        return Err(wrong!("{what} belongs to a VM, but its holder \"{}\" isn't `per-vm`", holder.name));
    }
    if reader.per_vm {
        return Err(wrong!("{what} would be read by \"{}\", but VMs share no pages", reader.name));
    }
    if before.iter().any(|other| other.carries == share.carries) {
        return Err(wrong!("{what} is there twice; each VM's have one reader. Remove one"));
    }
    Ok(())
}

/// Some capabilities have one holder on any board, some one at the most.
fn roles(system: &System) -> Result<(), Error> {
    let one = [(Caps::SUPERVISE, "supervise"), (Caps::FRAMES, "frames")].map(|(cap, duty)| (cap, duty, true));
    let at_most_one = [(Caps::FIRMWARE, "firmware"), (Caps::SILICON, "silicon")].map(|(cap, duty)| (cap, duty, false));
    for (cap, duty, needed) in one.into_iter().chain(at_most_one) {
        let mut holders = system.services.iter().filter(|s| caps(s).is_ok_and(|caps| caps.contains(cap)));
        match (holders.next(), holders.next()) {
            (None, _) if needed => {
                return Err(wrong!("no service has the kernel capability \"{duty}\"; give it to one"));
            }
            (Some(a), Some(b)) => {
                return Err(wrong!("\"{}\" and \"{}\" both have \"{duty}\"; only one may", a.name, b.name));
            }
            _ => {}
        }
    }
    if system.services.iter().filter(|service| service.per_vm).count() != 1 {
        return Err(wrong!("exactly one service must be `per-vm = true`: the one that handles VMs"));
    }
    Ok(())
}
