//! Which functions of the linked kernel call a panic function: what the compiler couldn't prove away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use serde::Serialize;

use crate::failure::{Context, Failure};

/// Calls of panic functions.
#[derive(Debug, Default, Serialize)]
pub struct Panics {
    /// How many there are.
    pub calls: usize,
    /// By function.
    pub callers: Vec<Caller>,
}

/// A function that may panic.
#[derive(Debug, Serialize)]
pub struct Caller {
    /// Its name.
    pub function: String,
    /// Calls in it.
    pub calls: usize,
    /// The panic functions that it calls.
    pub panics: Vec<String>,
}

/// A function that ends in a panic and returns to nobody. Names are demangled.
fn is_panic(name: &str) -> bool {
    ["core::panicking::", "core::option::unwrap_failed", "core::option::expect_failed", "core::result::unwrap_failed"]
        .iter()
        .chain(&["core::slice::index::slice_", "core::str::slice_error_fail", "core::cell::panic_already"])
        .any(|part| name.contains(part))
}

/// Disassembles the kernel's code and lists calls of and jumps to panic functions.
pub fn reachable(kernel: &Path) -> Result<Panics, Failure> {
    let bytes = std::fs::read(kernel).about("read", kernel)?;
    let file = object::File::parse(bytes.as_slice()).about("understand", kernel)?;
    let mut functions: BTreeMap<u64, String> = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let name = symbol.name().unwrap_or_default();
        functions.insert(symbol.address(), format!("{:#}", rustc_demangle::demangle(name)));
    }
    let mut found: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().about("read the code of", kernel)?;
        let mut decoder = Decoder::with_ip(64, code, section.address(), DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let direct = matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
            );
            if !direct {
                continue;
            }
            let Some(target) = functions.get(&instruction.near_branch_target()).filter(|name| is_panic(name)) else {
                continue;
            };
            let caller = functions.range(..=instruction.ip()).next_back().map_or("?", |(_, name)| name);
            // A panic function that calls the next one is the same panic.
            if !is_panic(caller) {
                let entry = found.entry(caller.to_owned()).or_default();
                entry.0 += 1;
                entry.1.insert(target.rsplit("::").next().unwrap_or(target).to_owned());
            }
        }
    }
    let callers: Vec<Caller> = found
        .into_iter()
        .map(|(function, (calls, panics))| Caller { function, calls, panics: panics.into_iter().collect() })
        .collect();
    Ok(Panics { calls: callers.iter().map(|caller| caller.calls).sum(), callers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_functions_are_known_by_name() {
        assert!(is_panic("core::panicking::panic_bounds_check") && is_panic("core::option::unwrap_failed"));
        assert!(!is_panic("caisson_core::frames::take") && !is_panic("caisson_kernel::panic_count"));
    }
}
