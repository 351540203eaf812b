//! Manifests and VMs' files.

use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use caisson_manifest::plan::plan;
use caisson_manifest::system::System;
use caisson_manifest::vm::{VmFile, check_memory, check_name, check_vcpus};

use crate::edit::{Edit, edit};

/// The board's own.
const QEMU: &str = include_str!("../../../../board/qemu/system.toml");
const VM: &str = "name = \"web\"\nvcpus = 4\nmemory = \"1G\"\nkernel = \"bzImage\"\ninitrd = \"/initrd\"\n\
                  cmdline = \"console=ttyS0\"\non-reset = \"restart\"\nfirst-cpu = 1\ntest-devices = true\n";

#[derive(Debug, Arbitrary)]
enum Change<'a> {
    Edit(Edit),
    /// A word of it becomes another word of it.
    Swap(u16, u16),
    Put(u16, &'a str),
}

/// The text with the input's changes, as far as it still is one.
fn changed(data: &[u8], base: &str) -> String {
    let mut text = base.to_owned();
    for change in Unstructured::new(data).arbitrary::<Vec<Change>>().unwrap_or_default() {
        let words: Vec<&str> = text.split_inclusive([' ', '\n', '"']).collect();
        let place = |at: u16| usize::from(at).checked_rem(words.len()).unwrap_or(0);
        text = match change {
            Change::Edit(one) => {
                let mut bytes = text.into_bytes();
                edit(&mut bytes, &[one]);
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Change::Swap(from, to) => {
                let (from, to) = (place(from), place(to));
                let swapped = words.iter().enumerate().map(|(at, word)| if at == to { words[from] } else { word });
                swapped.collect()
            }
            Change::Put(at, word) => {
                let at = place(at);
                words.iter().enumerate().map(|(n, old)| if n == at { word } else { old }).collect()
            }
        };
    }
    text
}

/// The manifest: what is accepted can be planned, or the plan says what doesn't fit.
pub fn system(data: &[u8]) {
    let text = changed(data, QEMU);
    match System::parse(Path::new("system.toml"), &text) {
        Ok(system) => {
            for vms in [&[][..], &["a"], &["a", "b", "c"], &["a", "a"], &["Bad Name"]] {
                if let Ok(plan) = plan(&system, vms) {
                    for planned in &plan.services {
                        let targets = (0..64).filter(|target| planned.record.may_call >> target & 1 == 1);
                        for target in targets {
                            assert!(plan.services[target].record.rank > planned.record.rank, "a call downhill");
                        }
                    }
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A VM's file: what is accepted is a number that the rest of the build can use.
pub fn vm(data: &[u8]) {
    let text = changed(data, VM);
    let Ok(file) = VmFile::parse(Path::new("vm.toml"), &text) else { return };
    let name = file.name.unwrap_or_default();
    if check_name(&name).is_ok() {
        assert!((1..=12).contains(&name.len()));
    }
    if let Some(vcpus) = file.vcpus
        && let Ok(vcpus) = check_vcpus(&name, vcpus.into())
    {
        assert!((1..=8).contains(&vcpus));
    }
    if let Some(memory) = file.memory
        && let Ok(bytes) = check_memory(&name, memory)
    {
        assert!(bytes >= 64 << 20 && bytes.is_multiple_of(2 << 20));
    }
}
