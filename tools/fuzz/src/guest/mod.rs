//! A guest that does anything: whatever leaves it, the vmm answers or ends the VM, and never panics, overflows, or
//! replies what the kernel would refuse.

pub mod act;
mod arithmetic;
mod boot;
pub mod fake;
mod instructions;
pub mod machine;
mod perform;
mod tables;

pub use arithmetic::arithmetic;
pub use boot::{linux, multiboot};
pub use instructions::instructions;
pub use tables::tables;

use arbitrary::Unstructured;
use caisson_proto::vmm::{Balloon, Disk, Net, Virtio, VmConfig};

use act::{Act, Msr, Port, Strings};
use machine::{Machine, config};

/// How much an input may ask for.
const MAX_ACTS: usize = 200;

/// Lets two vCPUs do what the input says; a VM that ended is started anew.
fn run<'a, A>(data: &'a [u8], act: impl Fn(A) -> Act)
where
    A: arbitrary::Arbitrary<'a>,
{
    let mut input = Unstructured::new(data);
    let virtio = Virtio {
        disk: Some(Disk { overlay: 8192 }),
        balloon: Some(Balloon { target: 0 }),
        plug: None,
        console: true,
        net: Some(Net { mac: [2; 6] }),
    };
    let config = VmConfig { test_devices: true, virtio, ..config(2) };
    let mut machine = Machine::of(&config);
    for _ in 0..MAX_ACTS {
        if input.is_empty() {
            return;
        }
        let Ok((vcpu, next)) = input.arbitrary::<(bool, A)>() else { return };
        machine.perform(vcpu.into(), act(next));
        if machine.vmm.is_over() {
            machine = Machine::of(&config);
        }
    }
}

/// Everything.
pub fn anything(data: &[u8]) {
    run(data, |act: Act| act);
}

/// Ports only.
pub fn ports(data: &[u8]) {
    run(data, |port: Port| Act::Port(port));
}

/// String instructions on ports and devices.
pub fn strings(data: &[u8]) {
    run(data, |strings: Strings| Act::Strings(strings));
}

/// Model-specific registers only.
pub fn msrs(data: &[u8]) {
    run(data, |msr: Msr| Act::Msr(msr));
}
