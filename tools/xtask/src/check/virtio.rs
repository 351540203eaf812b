//! Linux's own virtio drivers on a guest's disk, balloon, plugged memory and console: what the disk has is what its file has, what is written is
//! read again, the file stays as it is, and memory that the guest doesn't need leaves it while it lives on.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::{Outcome, machines};
use crate::paths::Paths;

/// Bytes of the disk; the last piece of the overlay isn't whole.
const DISK: usize = (8 << 20) + 1536;
/// What is written: bytes, and from which page of the disk on.
const WRITTEN: usize = 1 << 20;
const FROM: usize = 100;
/// Pages that the balloon wants.
const TARGET: u64 = 48 << 8;
/// Seconds for one guest.
const SECONDS: &str = "240";

/// Kernels, vCPUs, and whether the shell is on a virtio console. One kernel has its modules packed, the other not.
const GUESTS: [(&str, u8, bool); 3] = [
    ("debian:linux-image-cloud-amd64", 1, false),
    ("debian:linux-image-cloud-amd64", 2, true),
    ("debian:linux-image-6.12.*-cloud-amd64", 2, true),
];

/// What is typed. The answers are told from it by what is computed.
const SCRIPT: &str = "\
    echo kept=$(sha256sum < /dev/vda)\n\
    yes caisson | dd of=/dev/vda bs=4096 count=256 seek=100 iflag=fullblock conv=fsync 2>/dev/null\n\
    echo 3 > /proc/sys/vm/drop_caches\n\
    echo changed=$(sha256sum < /dev/vda)\n\
    echo plugged=$(grep -c 'virtio_mem)' /proc/iomem)\n\
    tty\n\
    seq 1 2000\n\
    echo 3 > /proc/sys/vm/drop_caches\n\
    head -c 64000000 /dev/zero > /tmp/big && sync && rm /tmp/big\n\
    sleep 4\n\
    head -c 64000000 /dev/zero > /tmp/big && echo alive=$(wc -c < /tmp/big)\n";

/// A check for each guest.
pub fn run(paths: &Paths) -> Outcome {
    let mut outcome = Outcome::default();
    for (kernel, vcpus, console) in GUESTS {
        match lived(paths, kernel, vcpus, console) {
            Ok(()) => outcome.passed += 1,
            Err(why) => outcome.failed.push(format!("{kernel}: {why}")),
        }
    }
    match full(paths) {
        Ok(()) => outcome.passed += 1,
        Err(why) => outcome.failed.push(format!("a full overlay: {why}")),
    }
    outcome
}

/// The same bytes each time, no two pages alike.
fn contents() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..DISK).map(|_| next()).collect()
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs a guest with this file and these lines; its console and the log.
fn guest(paths: &Paths, folder: &Path, file: &str, script: &str) -> Result<(String, String), String> {
    let say = |error: std::io::Error| error.to_string();
    fs::write(folder.join("vm.toml"), file).map_err(say)?;
    fs::write(folder.join("script"), script).map_err(say)?;
    let mut command = Command::new(machines::program()?);
    command.current_dir(&paths.root).args(["run", "--timeout", SECONDS, "--log", "info", "--vm"]);
    command.arg(folder.join("vm.toml")).arg("--script").arg(folder.join("script"));
    let output = command.stdin(Stdio::null()).output().map_err(say)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        return Ok((stdout, stderr));
    }
    println!("--- standard output\n{stdout}\n--- standard error\n{stderr}\n---");
    Err(format!("{} ({})", output.status, stderr.lines().last().unwrap_or_default()))
}

fn lived(paths: &Paths, kernel: &str, vcpus: u8, has_console: bool) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (disk, before) = (folder.path().join("disk"), contents());
    fs::write(&disk, &before).map_err(|error| error.to_string())?;
    let target = TARGET >> 8;
    let file = format!(
        "name = \"virtio\"\nkernel = \"{kernel}\"\nvcpus = {vcpus}\nmemory = \"256M\"\ndisk = \"disk\"\nballoon = true\n\
         balloon-target = \"{target}M\"\nmemory-max = \"384M\"\nmemory-plugged = \"32M\"\nvirtio-console = {has_console}\n"
    );
    let (console, log) = guest(paths, folder.path(), &file, SCRIPT)?;
    let mut after = before.clone();
    let written = b"caisson\n".iter().copied().cycle().take(WRITTEN);
    after.iter_mut().skip(FROM * 4096).zip(written).for_each(|(to, from)| *to = from);
    let given = given_back(&log);
    let counted: String = (1..=2000).map(|number| format!("{number}\n")).collect();
    let checks = [
        (console.contains(&format!("kept={}", sum(&before))), "the disk isn't what its file is"),
        (console.contains(&format!("changed={}", sum(&after))), "the disk doesn't have what was written"),
        (console.contains("plugged=1"), "no memory was plugged"),
        (console.contains("/dev/hvc0") == has_console, "the shell is on another console"),
        (console.replace('\r', "").contains(&counted), "the console lost something"),
        (console.contains("alive=64000000"), "the guest has no use of its memory"),
        (fs::read(&disk).is_ok_and(|now| now == before), "the disk's file was written to"),
        // The balloon, and as free what the big file had: less than that stays with the guest.
        (given >= TARGET + (32 << 8), "the guest gave too little back"),
        (log.contains(", 0 leaked"), "memory doesn't add up"),
        (!log.contains("WARN") && !log.contains("ERROR"), "something is wrong in the log"),
    ];
    let wrong: Vec<&str> = checks.iter().filter(|(holds, _)| !holds).map(|(_, what)| *what).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    println!("--- console\n{console}\n--- log\n{log}\n---");
    Err(format!("{} ({given} pages given back)", wrong.join("; ")))
}

/// Pages that the log says were given back.
fn given_back(log: &str) -> u64 {
    let counts = log.lines().filter_map(|line| line.split_once("pages that the guest gave back: "));
    counts.filter_map(|(_, count)| count.trim().parse().ok()).max().unwrap_or(0)
}

/// A disk of which little may be changed: what is too much fails in the guest, and the guest lives on.
fn full(paths: &Paths) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    fs::write(folder.path().join("disk"), contents()).map_err(|error| error.to_string())?;
    let file = "name = \"full\"\nvcpus = 1\nmemory = \"256M\"\ndisk = \"disk\"\ndisk-overlay = \"64K\"\n";
    let script = "dd if=/dev/zero of=/dev/vda bs=4096 count=64 conv=fsync || echo refused=$((6*7))\n";
    let (console, log) = guest(paths, folder.path(), file, script)?;
    match (console.contains("refused=42"), log.contains("the disk's overlay is full")) {
        (true, true) => Ok(()),
        (refused, told) => {
            println!("--- console\n{console}\n--- log\n{log}\n---");
            Err(format!("the write failed: {refused}; it was told: {told}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_count_of_the_log_is_taken() {
        let log = "a: pages that the guest gave back: 12\nb\nc: pages that the guest gave back: 300\n";
        assert_eq!((given_back(log), given_back("")), (300, 0));
    }
}
