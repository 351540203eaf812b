//! Keys for guests (56860 section 7.2): the same for the same guest on the same chip, or for the same guest anywhere.
//!
//! What is mixed into a key is the specification's; how, is ours, as that isn't public.

use super::{Guest, Message};
use crate::buffer::{field, put};
use crate::config::Tcb;
use crate::crypto;
use crate::processor::Processor;
use crate::status::Status;

const REQUEST: u16 = 0x20;
const RESPONSE: usize = 0x40;
const VMPLS: u32 = 4;

// GUEST_FIELD_SELECT.
const POLICY: u64 = 1 << 0;
const IMAGE: u64 = 1 << 1;
const FAMILY: u64 = 1 << 2;
const MEASUREMENT: u64 = 1 << 3;
const SVN: u64 = 1 << 4;
const TCB: u64 = 1 << 5;
const ALL: u64 = (1 << 6) - 1;

impl Processor {
    /// MSG_KEY_REQ: root key, fields to mix in, VMPL, SVN, TCB version. The response is in the request's place; its length.
    pub(super) fn key_request(&self, guest: &Guest, message: &Message, payload: &mut [u8]) -> Result<usize, Status> {
        if message.length != REQUEST {
            return Err(Status::InvalidLength);
        }
        let request: [u8; REQUEST as usize] = field(payload, 0);
        payload.fill(0);
        match self.derived_key(guest, message, &request) {
            Some(key) => put(payload, 0x20, &key),
            None => put(payload, 0, &(Status::InvalidParam as u32).to_le_bytes()),
        }
        Ok(RESPONSE)
    }

    fn derived_key(&self, guest: &Guest, message: &Message, request: &[u8; 32]) -> Option<[u8; 32]> {
        let root = u32::from_le_bytes(field(request, 0));
        let fields = u64::from_le_bytes(field(request, 8));
        let (vmpl, svn) = (u32::from_le_bytes(field(request, 16)), u32::from_le_bytes(field(request, 20)));
        let tcb = Tcb::from_bytes(field(request, 24))?;
        let reserved: [u8; 4] = field(request, 4);
        let refused = root > 1
            || reserved != [0; 4]
            || fields & !ALL != 0
            || vmpl >= VMPLS
            || vmpl < u32::from(message.key)
            || svn > guest.vouched.svn
            || !tcb.within(self.snp.committed);
        if refused {
            return None;
        }
        let chip: [u8; 32] = crypto::derive(&self.config.chip.secret, "caisson-guest-root", &self.config.chip.id);
        let root = if root == 0 { chip } else { guest.root_key };
        let mut mixed = [0; 160];
        put(&mut mixed, 0, request);
        let mut mix = |field: u64, at: usize, bytes: &[u8]| {
            if fields & field != 0 {
                put(&mut mixed, at, bytes);
            } else if field & (SVN | TCB) != 0 {
                // The request's own values, already there, don't count.
                put(&mut mixed, at, &[0; 8][..bytes.len()]);
            }
        };
        mix(SVN, 20, &svn.to_le_bytes());
        mix(TCB, 24, &tcb.bytes());
        mix(POLICY, 32, &guest.policy.bits().to_le_bytes());
        mix(IMAGE, 40, &guest.vouched.image);
        mix(FAMILY, 56, &guest.vouched.family);
        mix(MEASUREMENT, 72, &guest.digest);
        put(&mut mixed, 120, &guest.host_data);
        Some(crypto::derive(&root, "gmsg-keyreq", &mixed))
    }
}
