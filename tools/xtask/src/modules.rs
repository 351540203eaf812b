//! The order in which a guest loads its kernel's modules: each after those that it depends on, which differ from one version of
//! the kernel to the next.

use object::Endianness;
use object::read::elf::ElfFile64;
use object::read::{Object, ObjectSection};

/// A module's name and file.
pub type Module = (&'static str, Vec<u8>);

/// The names of the modules that a file says it depends on. What is no module the guest's kernel refuses by itself.
fn depends(file: &[u8]) -> Vec<String> {
    let parsed = ElfFile64::<Endianness>::parse(file).ok();
    let section = parsed.as_ref().and_then(|file| file.section_by_name(".modinfo"));
    section.and_then(|section| section.data().ok()).map(named).unwrap_or_default()
}

/// The same by the words of its `.modinfo`, each of which ends with a zero.
fn named(modinfo: &[u8]) -> Vec<String> {
    let words = modinfo.split(|byte| *byte == 0).filter_map(|word| str::from_utf8(word).ok());
    let lists = words.filter_map(|word| word.strip_prefix("depends="));
    lists.flat_map(|list| list.split(',')).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The modules, each after those that it needs; else as they were.
pub fn in_order(modules: Vec<Module>) -> Vec<Module> {
    sorted(modules.into_iter().map(|module| (depends(&module.1), module)).collect())
}

/// Those that need each other stay as they were.
fn sorted(mut left: Vec<(Vec<String>, Module)>) -> Vec<Module> {
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let waits = |needs: &[String]| left.iter().any(|(_, (name, _))| needs.iter().any(|need| need == name));
        let next = left.iter().position(|(needs, _)| !waits(needs)).unwrap_or(0);
        ordered.push(left.remove(next).1);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(modules: &[(&'static str, &[u8])]) -> Vec<&'static str> {
        let modules = modules.iter().map(|(name, modinfo)| (named(modinfo), (*name, Vec::new()))).collect();
        sorted(modules).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn who_depends_comes_later() {
        let user = ("user", &b"license=GPL\0depends=ring,core,elsewhere\0name=user\0"[..]);
        let (core, ring) = (("core", &b"depends=ring\0"[..]), ("ring", &b"depends=\0"[..]));
        assert_eq!(order(&[user, core, ring]), ["ring", "core", "user"]);
        assert_eq!(order(&[ring, user, core]), ["ring", "core", "user"]);
    }

    #[test]
    fn what_has_no_order_stays() {
        assert_eq!(order(&[("b", b"depends=a\0"), ("a", b"depends=b\0"), ("c", b"")]), ["c", "b", "a"]);
        assert!(depends(b"no file").is_empty());
    }
}
