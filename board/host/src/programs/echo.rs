//! Services that send back what they get, so that a message which is lost, changed or mixed up with another is seen.

use std::rc::Rc;

use caisson_proto::abi::{Lease, Status};
use caisson_proto::addr::ServiceId;
use caisson_proto::wire::Words;

use super::{Server, serve};
use crate::service::Sys;
use crate::world::World;

/// What a page holds that is lent with a message.
pub fn page_value(words: &Words, page: u64) -> u64 {
    words[0].rotate_left(7) ^ page
}

/// The right answer.
pub fn answer(words: &Words, sender: ServiceId) -> Words {
    let mut reply = words.map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    reply[7] ^= u64::from(sender.bits());
    reply
}

struct Echo<'a, 'b> {
    sys: &'a Sys<'b>,
    asks: bool,
}

/// Looks at pages lent to a service.
fn check_lease(world: &Rc<World>, slot: usize, words: &Words, lease: Option<Lease>) {
    let lent = world.lent.borrow().get(&slot).copied();
    match (lease, lent) {
        (None, None) => {}
        (Some(lease), Some((from, of))) if (lease.pages, lease.write) == (of.pages, of.write) => {
            for page in 0..lease.pages {
                let holds = world.pages.borrow().get(&(from, of.page.0 + page)).copied();
                world.check(holds == Some(page_value(words, page)), || {
                    format!("page {page} lent by slot {from} to slot {slot} holds {holds:x?}")
                });
            }
        }
        (seen, real) => world.fail(|| format!("slot {slot} sees the lease {seen:?}, and it is {real:?}")),
    }
}

impl Server for Echo<'_, '_> {
    fn call(&mut self, sender: ServiceId, words: &Words, lease: Option<Lease>) -> (Status, Words) {
        let sys = self.sys;
        check_lease(sys.world, sys.slot, words, lease);
        if words[1].is_multiple_of(3) {
            sys.null();
        }
        if self.asks && words[1].is_multiple_of(2) {
            let deep = sys.world.manifest.deep;
            let mut question = *words;
            question[2] = sys.world.rng.next();
            let (status, reply) = sys.call_raw(deep, &question, None);
            let expected = answer(&question, sys.id);
            sys.world.check(status != Status::Ok || reply == expected, || {
                format!("the deep one answers {reply:x?} instead of {expected:x?}")
            });
        }
        check_lease(sys.world, sys.slot, words, lease);
        (Status::Ok, answer(words, sender))
    }
}

/// Runs one of them; `asks`: with the help of the deep one.
pub fn main(sys: &Sys<'_>, asks: bool) {
    serve(sys, &mut Echo { sys, asks });
}
