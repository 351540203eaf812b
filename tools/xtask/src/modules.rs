//! The order in which a guest loads its kernel's modules: each after those whose symbols it uses, which differs from one version
//! of the kernel to the next.

use std::collections::BTreeSet;

use object::Endianness;
use object::read::elf::ElfFile64;
use object::read::{Object, ObjectSymbol};

/// Begins the symbol by which a module exports another.
const EXPORT: &str = "__ksymtab_";

/// A module's name and file.
pub type Module = (&'static str, Vec<u8>);

/// The symbols that a module has from others, and those that it exports.
fn symbols(file: &[u8]) -> (BTreeSet<String>, BTreeSet<String>) {
    // What is no ELF file the guest's kernel refuses by itself.
    let Ok(file) = ElfFile64::<Endianness>::parse(file) else { return Default::default() };
    let (mut uses, mut exports) = (BTreeSet::new(), BTreeSet::new());
    for (symbol, name) in file.symbols().filter_map(|symbol| Some((symbol.is_undefined(), symbol.name().ok()?))) {
        match name.strip_prefix(EXPORT) {
            Some(exported) => _ = exports.insert(exported.to_owned()),
            None if symbol => _ = uses.insert(name.to_owned()),
            None => {}
        }
    }
    (uses, exports)
}

/// The modules, each after those that it needs; else as they were. Those that need each other stay as they were, too.
pub fn in_order(modules: Vec<Module>) -> Vec<Module> {
    let mut left: Vec<_> = modules.into_iter().map(|module| (symbols(&module.1), module)).collect();
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let ready = |((uses, _), (name, _)): &((BTreeSet<String>, BTreeSet<String>), Module)| {
            let mut others = left.iter().filter(|(_, other)| other.0 != *name);
            others.all(|((_, exports), _)| uses.is_disjoint(exports))
        };
        let next = left.iter().position(ready).unwrap_or(0);
        ordered.push(left.remove(next).1);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: usize = 64;
    const SECTION: usize = 64;
    const SYMBOL: usize = 24;

    /// A relocatable file with a table of these symbols; those that begin with `?` are undefined.
    fn module(symbols: &[&str]) -> Vec<u8> {
        let mut names = vec![0_u8];
        let mut table = vec![0_u8; SYMBOL];
        for symbol in symbols {
            let (undefined, name) = symbol.strip_prefix('?').map_or((false, *symbol), |name| (true, name));
            table.extend((names.len() as u32).to_le_bytes());
            // Global; of section 1 or of none.
            table.extend([0x10, 0, u8::from(!undefined), 0]);
            table.extend([0; 16]);
            names.extend(name.as_bytes());
            names.push(0);
        }
        let (strings, end) = (HEADER + table.len(), HEADER + table.len() + names.len());
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([1, 0, 62, 0, 1, 0, 0, 0]);
        file.extend([0; 16]);
        file.extend((end as u64).to_le_bytes());
        file.extend([0, 0, 0, 0, HEADER as u8, 0, 0, 0, 0, 0, SECTION as u8, 0, 3, 0, 2, 0]);
        file.extend(&table);
        file.extend(&names);
        file.extend([0; SECTION]);
        for (kind, at, bytes, link, entry) in
            [(2_u32, HEADER, table.len(), 2_u32, SYMBOL), (3, strings, names.len(), 0, 0)]
        {
            file.extend(0_u32.to_le_bytes());
            file.extend(kind.to_le_bytes());
            file.extend([0; 16]);
            [at, bytes].iter().for_each(|value| file.extend((*value as u64).to_le_bytes()));
            file.extend(link.to_le_bytes());
            file.extend(1_u32.to_le_bytes());
            file.extend(8_u64.to_le_bytes());
            file.extend((entry as u64).to_le_bytes());
        }
        file
    }

    fn names(modules: Vec<Module>) -> Vec<&'static str> {
        in_order(modules).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn who_uses_comes_after_who_exports() {
        let user = || ("user", module(&["?ring_new", "?printk"]));
        let core = || ("core", module(&["__ksymtab_core_add", "?ring_new"]));
        let ring = || ("ring", module(&["__ksymtab_ring_new", "ring_new"]));
        assert_eq!(names(vec![user(), core(), ring()]), ["ring", "user", "core"]);
        assert_eq!(names(vec![ring(), core(), user()]), ["ring", "core", "user"]);
    }

    #[test]
    fn what_has_no_order_stays() {
        let a = ("a", module(&["__ksymtab_a", "?b"]));
        let b = ("b", module(&["__ksymtab_b", "?a"]));
        assert_eq!(names(vec![b, a, ("none", b"no file".to_vec())]), ["none", "b", "a"]);
    }
}
