//! sev-firmware, on a kernel and a processor whose answers are any.

use arbitrary::{Arbitrary, Unstructured};
use caisson_proto::abi::Status;
use caisson_proto::addr::{ServiceId, Tsc};
use caisson_proto::firmware::FirmwareCall;
use caisson_proto::kernel::{Features, Machine};
use caisson_proto::wire::{Request, Words};
use caisson_sev_firmware::{Firmware, Lent, Note, Pages};

use super::manage::{Kernel, fields};

/// The service that speaks for the platform.
const PLATFORM: u16 = 3;

impl caisson_sev_firmware::Kernel for Kernel<'_, '_> {
    fn ask<R: Request>(&mut self, _: &R) -> Result<R::Reply, Status> {
        self.answer::<R>()
    }

    fn lend<R: Request>(&mut self, _: &R, pages: &mut Lent, count: usize) -> Result<R::Reply, Status> {
        assert!(count > 0 && count * 4096 <= pages.0.len());
        // The answer's beginning, where states and lengths are.
        for byte in pages.0.iter_mut().take(16) {
            *byte = self.0.arbitrary().unwrap_or(0);
        }
        self.answer::<R>()
    }

    fn bell(&mut self, _: ServiceId) {}

    fn again(&mut self) -> bool {
        self.0.arbitrary().unwrap_or(true)
    }

    fn note(&mut self, _: Note) {}
}

/// Pages of a client.
struct Client {
    bytes: Vec<u8>,
    writable: bool,
}

impl Pages for Client {
    fn count(&self) -> u64 {
        self.bytes.len() as u64 / 4096
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let from = self.bytes.get(offset..offset + into.len());
        from.map(|from| into.copy_from_slice(from)).is_some()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        assert!(self.writable, "it was lent for reading");
        let into = self.bytes.get_mut(offset..offset + bytes.len());
        into.map(|into| into.copy_from_slice(bytes)).is_some()
    }
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// A request, with an operation that may exist, and so many pages.
    Call {
        platform: bool,
        op: u8,
        #[arbitrary(with = fields)]
        fields: [u64; 7],
        pages: u8,
        writable: bool,
    },
    /// Any words.
    Words(Words),
    Doorbell(u64),
    /// Time goes by.
    Elapse(u16),
    Restart,
}

fn machine(asids: u16) -> Machine {
    Machine {
        cpus: 2,
        tsc_khz: 1,
        features: Features::SEV,
        frames: 1 << 20,
        asids: 16,
        services: 8,
        // Few or many, in any order.
        sev_asids: u32::from(asids & 0x3f) << 16 | u32::from(asids >> 6 & 0x3f),
    }
}

/// sev-firmware: what is no message is called that, and nothing that is told of the kernel or the processor breaks it.
pub fn firmware(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let machine = machine(input.arbitrary().unwrap_or(0));
    let mut now = 1;
    let mut firmware = Box::<Firmware>::default();
    firmware.start(&machine, &[PLATFORM], Tsc(now), &mut Kernel(&mut input));
    for _ in 0..200 {
        let Ok(step) = input.arbitrary::<Step>() else { return };
        let (sender, words, mut client) = match step {
            Step::Call { platform, op, fields, pages, writable } => {
                let mut words: Words = [0; 8];
                words[0] = u64::from(op % 50);
                words[1..].copy_from_slice(&fields);
                let bytes = vec![0; usize::from(pages % 17) * 4096];
                (ServiceId::new(if platform { PLATFORM } else { 0 }, 0), words, Client { bytes, writable })
            }
            Step::Words(words) => (ServiceId::new(1, 0), words, Client { bytes: Vec::new(), writable: false }),
            Step::Doorbell(bits) => {
                firmware.doorbell(bits, Tsc(now), &mut Kernel(&mut input));
                continue;
            }
            Step::Elapse(ms) => {
                now += u64::from(ms);
                firmware.doorbell(u64::MAX, Tsc(now), &mut Kernel(&mut input));
                continue;
            }
            Step::Restart => {
                *firmware = Firmware::new();
                firmware.start(&machine, &[PLATFORM], Tsc(now), &mut Kernel(&mut input));
                continue;
            }
        };
        let known = FirmwareCall::decode(&words).is_ok();
        let lease = (client.count() > 0).then_some(&mut client as &mut dyn Pages);
        let (status, reply) = firmware.handle(sender, &words, lease, Tsc(now), &mut Kernel(&mut input));
        assert!(known || status == Status::Malformed);
        assert!(status == Status::Ok || reply == [0; 8], "{status:?} with {reply:?}");
        if input.is_empty() {
            return;
        }
    }
}
