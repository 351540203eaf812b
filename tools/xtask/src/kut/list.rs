//! unittests.cfg: which tests there are and what machine each wants.

use std::path::{Path, PathBuf};

use crate::failure::{Context, Failure};

/// Bytes of memory of a machine if an entry says nothing: QEMU's default.
const MEMORY: u64 = 128 << 20;
/// Seconds that a test has if its entry says nothing.
const SECONDS: u64 = 90;

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// The image.
    pub file: PathBuf,
    /// CPUs.
    pub cpus: u16,
    /// Memory in bytes.
    pub memory: u64,
    /// The test's arguments, as the list has them.
    arguments: String,
    /// Seconds that it may take.
    pub seconds: u64,
    /// Why it isn't run.
    pub skipped: Option<&'static str>,
}

impl Entry {
    /// The test's arguments for a boot now.
    pub fn arguments(&self) -> String {
        // The one thing that lists leave to a shell: a test that is given the time compares it with its clock.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.arguments.replace("`date +%s`", &now.to_string())
    }
}

/// What a list's section says.
#[derive(Default)]
struct Section<'a> {
    file: &'a str,
    smp: &'a str,
    arguments: &'a str,
    qemu: &'a str,
    arch: &'a str,
    timeout: &'a str,
    groups: &'a str,
    check: &'a str,
}

/// Finds the list in a folder and reads it.
pub fn read(folder: &Path) -> Result<Vec<Entry>, Failure> {
    let places = [folder.join("x86"), folder.to_owned()];
    let Some(place) = places.iter().find(|place| place.join("unittests.cfg").is_file()) else {
        return Err(Failure::setup(format!(
            "{} has no unittests.cfg, nor x86/ in it: give the folder in which kvm-unit-tests were built",
            folder.display()
        )));
    };
    let path = place.join("unittests.cfg");
    let text = std::fs::read_to_string(&path).about("read", &path)?;
    Ok(parse(&text, place))
}

/// The entries of a list whose images are in `place`.
pub fn parse(text: &str, place: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut section: Option<(&str, Section)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            entries
                .extend(section.replace((name, Section::default())).map(|(name, section)| entry(name, section, place)));
            continue;
        }
        let (Some((_, section)), Some((key, value))) = (&mut section, line.split_once('=')) else { continue };
        let value = unquote(value.trim());
        match key.trim() {
            "file" => section.file = value,
            "smp" => section.smp = value,
            "test_args" => section.arguments = value,
            "qemu_params" | "extra_params" => section.qemu = value,
            "arch" => section.arch = value,
            "timeout" => section.timeout = value,
            "groups" => section.groups = value,
            "check" => section.check = value,
            _ => {}
        }
    }
    entries.extend(section.map(|(name, section)| entry(name, section, place)));
    entries
}

fn unquote(value: &str) -> &str {
    let within = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    within('\'').or(within('"')).unwrap_or(value)
}

fn entry(name: &str, section: Section, place: &Path) -> Entry {
    let file = place.join(section.file);
    let skipped = inapplicable(&section).or_else(|| (!file.is_file()).then_some("no image was built"));
    Entry {
        name: name.to_owned(),
        cpus: section.smp.parse().unwrap_or(1),
        memory: memory(section.qemu).unwrap_or(MEMORY),
        arguments: section.arguments.to_owned(),
        seconds: section.timeout.parse().unwrap_or(SECONDS),
        file,
        skipped,
    }
}

/// What of a test Caisson doesn't have at all, or no machine under TCG.
fn inapplicable(section: &Section) -> Option<&'static str> {
    let group = |name: &str| section.groups.split_whitespace().any(|group| group == name);
    let file = |prefix: &str| section.file.starts_with(prefix);
    Some(match () {
        () if group("vmx") || file("vmx") => "Intel's VMX",
        () if group("svm") || file("svm") => "nested virtualisation",
        () if group("pmu") || file("pmu") => "performance counters",
        () if group("pcid") => "PCID",
        () if group("hyperv") => "Hyper-V's interface",
        () if file("intel-iommu") => "Intel's IOMMU",
        () if group("nodefault") => "needs KVM's forced emulation",
        () if !section.check.is_empty() => "needs a parameter of KVM's module",
        () if section.arch == "i386" => "32-bit build",
        () => return None,
    })
}

/// The memory in QEMU's arguments.
fn memory(qemu: &str) -> Option<u64> {
    let mut words = qemu.split_whitespace();
    words.find(|word| *word == "-m")?;
    let size = words.next()?.to_ascii_uppercase();
    match size.strip_suffix('G') {
        Some(size) => size.parse::<u64>().ok()?.checked_mul(1 << 30),
        None => size.trim_end_matches('M').parse::<u64>().ok()?.checked_mul(1 << 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# comment\n[apic]\nfile = apic.flat\nsmp = 2\ntimeout = 30\n\n[vmexit_ipi]\nfile = vmexit.flat\n\
                        test_args = 'ipi halt'\nqemu_params = -cpu max -m 2048\n[nested]\nfile = svm.flat\n\
                        groups = svm nodefault\n[big]\nfile=apic.flat\nqemu_params = -m 4g\ntest_args = \"a b\"\n";

    #[test]
    fn a_list_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("apic.flat"), "").unwrap();
        let all = parse(LIST, folder.path());
        let brief: Vec<_> = all.iter().map(|it| (it.name.as_str(), it.cpus, it.memory >> 20, it.seconds)).collect();
        assert_eq!(
            brief,
            [("apic", 2, 128, 30), ("vmexit_ipi", 1, 2048, 90), ("nested", 1, 128, 90), ("big", 1, 4096, 90)]
        );
        assert_eq!((all[1].arguments().as_str(), all[3].arguments().as_str()), ("ipi halt", "a b"));
        let skipped: Vec<_> = all.iter().map(|it| it.skipped).collect();
        assert_eq!(skipped, [None, Some("no image was built"), Some("nested virtualisation"), None]);
    }

    #[test]
    fn a_folder_without_a_list_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().text.contains("unittests.cfg"));
    }
}
