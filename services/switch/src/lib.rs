//! switch: passes Ethernet frames between the guests of a network.
//!
//! It is a bridge (IEEE 802.1Q, section 8) whose table can't be lied to: a port has one address, which the build gave it, and may
//! send from no other. So a frame for a port's address goes to that port once the port lives, and there is nothing to be learned
//! or to grow old. Frames for groups, and for addresses that no living port has, go to all other ports of the network.
//!
//! What a port is sent waits in a queue of its own until its vmm fetches it. A queue that is full takes no more: the frame is
//! dropped and counted, and nobody waits. The vmm's doorbell is rung when there is something and it wasn't told of that yet.
//!
//! Nothing that is kept here is missed when it is lost. A successor rings all ports, whose vmms call, and so live again.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

mod port;
mod queue;

use caisson_proto::abi::Status;
use caisson_proto::addr::ServiceId;
use caisson_proto::switch::{AREA, Fetched, HEADER, MAX_PORTS, PortRecord, Sent, SwitchCall, begin, count, split};
use caisson_proto::wire::{Reply, Words};
use zerocopy::FromBytes;

use port::Port;
pub use queue::FRAMES;

/// Whom frames are for, of their first six bytes: the bit of groups (IEEE 802.3, section 3.2.3).
const GROUP: u8 = 1;
/// Groups that no bridge passes on (IEEE 802.1Q, table 8-1), but for the last four bits.
const RESERVED: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];

/// Pages that a caller lent.
pub trait Lent {
    /// How many bytes.
    fn bytes(&self) -> usize;
    /// Whether they may be written.
    fn is_writable(&self) -> bool;
    /// Copies out; false past the end.
    fn read(&self, at: usize, into: &mut [u8]) -> bool;
    /// Copies in; false past the end.
    fn write(&mut self, at: usize, from: &[u8]) -> bool;
}

/// The doorbells of vmms.
pub trait Bells {
    /// Tells the service in this slot that frames wait. Whether anybody is there isn't known.
    fn ring(&mut self, slot: u16);
}

/// The service's state.
#[derive(Debug)]
pub struct Switch {
    ports: [Port; MAX_PORTS],
    /// A batch in hand.
    batch: [u8; AREA],
}

impl Switch {
    /// Without ports.
    pub const fn new() -> Self {
        Self { ports: [const { Port::new() }; MAX_PORTS], batch: [0; AREA] }
    }

    /// Takes the ports of its file. How many records it had no room for, or that contradict others: two ports of a network with
    /// one address, or an address of a group.
    pub fn configure(&mut self, file: &[u8]) -> usize {
        let Ok(records) = <[PortRecord]>::ref_from_bytes(file) else { return 1 };
        let mut refused = 0;
        for (slot, record) in (0..).zip(records).filter(|(_, record)| record.network != 0) {
            let is_taken = self.ports.iter().any(|port| port.is(record.network, &record.mac));
            let is_group = record.mac[0] & GROUP != 0;
            match self.ports.iter_mut().find(|port| port.is_unused()) {
                Some(port) if !is_taken && !is_group => port.configure(slot, record),
                _ => refused += 1,
            }
        }
        refused
    }

    /// How many ports there are.
    pub fn ports(&self) -> usize {
        self.ports.iter().filter(|port| !port.is_unused()).count()
    }

    /// Rings every port's vmm, so that it calls: this life knows none of them yet.
    pub fn call_in(&mut self, bells: &mut impl Bells) {
        self.ports.iter().filter(|port| !port.is_unused()).for_each(|port| bells.ring(port.slot()));
    }

    /// Answers one request.
    pub fn handle(
        &mut self, caller: ServiceId, words: &Words, lent: Option<&mut impl Lent>, bells: &mut impl Bells,
    ) -> (Status, Words) {
        let Ok(call) = SwitchCall::decode(words) else { return (Status::Malformed, [0; 8]) };
        let Some(at) = self.ports.iter().position(|port| port.is_of(caller)) else { return (Status::NotFound, [0; 8]) };
        if let Some(port) = self.ports.get_mut(at) {
            port.live(caller);
        }
        let answer = match (call, lent) {
            (SwitchCall::Send(send), Some(lent)) => self.send(at, send.bytes, lent, bells).map(|sent| sent.encode()),
            (SwitchCall::Fetch(_), Some(lent)) => self.fetch(at, lent).map(|fetched| fetched.encode()),
            (SwitchCall::Report(_), _) => self.ports.get(at).map(|port| port.report().encode()).ok_or(Status::NotFound),
            (_, None) => Err(Status::BadLease),
        };
        match answer {
            Ok(words) => (Status::Ok, words),
            Err(status) => (status, [0; 8]),
        }
    }

    fn send(&mut self, from: usize, bytes: u64, lent: &impl Lent, bells: &mut impl Bells) -> Result<Sent, Status> {
        let length = usize::try_from(bytes).map_err(|_| Status::Malformed)?;
        let batch = self.batch.get_mut(..length).ok_or(Status::Malformed)?;
        if length > lent.bytes() || !lent.read(0, batch) {
            return Err(Status::BadLease);
        }
        // Only the copy is looked at from here on.
        count(batch).ok_or(Status::Malformed)?;
        let (mut rest, mut dropped) = (&*batch, 0);
        while let Some((frame, later)) = split(rest) {
            dropped += u64::from(!pass(&mut self.ports, from, frame));
            rest = later;
        }
        for port in &mut self.ports {
            if port.must_ring() {
                bells.ring(port.slot());
            }
        }
        Ok(Sent { dropped })
    }

    fn fetch(&mut self, at: usize, lent: &mut impl Lent) -> Result<Fetched, Status> {
        if !lent.is_writable() || lent.bytes() == 0 {
            return Err(Status::BadLease);
        }
        let room = lent.bytes().min(AREA);
        let batch = self.batch.get_mut(..room).ok_or(Status::BadLease)?;
        let port = self.ports.get_mut(at).ok_or(Status::NotFound)?;
        let mut end = 0;
        while let Some(frame) = port.first() {
            let Some((place, next)) = begin(batch, end, frame.len()) else { break };
            place.copy_from_slice(frame);
            end = next;
            port.taken();
        }
        let more = port.fetched();
        let filled = batch.get(..end).unwrap_or_default();
        if !lent.write(0, filled) {
            return Err(Status::BadLease);
        }
        Ok(Fetched { bytes: end as u64, more })
    }
}

/// Passes a frame on; whether any port took it.
fn pass(ports: &mut [Port], from: usize, frame: &[u8]) -> bool {
    let Some((to, source)) = frame.get(..HEADER).and_then(|header| header.split_first_chunk::<6>()) else {
        return false;
    };
    let Some(sender) = ports.get_mut(from) else { return false };
    let network = sender.network();
    if !sender.sends(source, frame.len()) || is_reserved(to) {
        return false;
    }
    let is_known = to[0] & GROUP == 0 && ports.iter().any(|port| port.is(network, to) && port.is_live());
    let others = ports.iter_mut().enumerate().filter(|(at, port)| *at != from && port.network() == network);
    let wanted = others.filter(|(_, port)| port.is_live() && (!is_known || port.is(network, to)));
    wanted.fold(false, |taken, (_, port)| port.put(frame) | taken)
}

/// Whether a frame is for bridges only.
fn is_reserved(to: &[u8; 6]) -> bool {
    let [head @ .., last] = to;
    let [group @ .., _] = &RESERVED;
    head == group && *last < 16
}

impl Default for Switch {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
