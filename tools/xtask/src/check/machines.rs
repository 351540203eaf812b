//! Machines that must behave: each boots in QEMU as a user would boot it, through `cargo xtask run` itself.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use super::{Outcome, tiny};
use crate::paths::Paths;

/// A machine and what must come of it.
struct Machine {
    name: &'static str,
    about: &'static str,
    /// Arguments of `run`; `@` stands for the folder of `files`.
    arguments: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
    /// There is `@/image`, a Multiboot program that ends its test with this.
    image: Option<u8>,
    /// What of the board's manifest is replaced by what.
    manifest: Option<(&'static str, &'static str)>,
    /// Lines for the guests' prompts.
    script: Option<&'static str>,
    status: i32,
    /// Each must be on standard output.
    stdout: &'static [&'static str],
    /// Each must be in the last line of standard error.
    last: &'static [&'static str],
    /// Seconds until `run` itself must give up.
    seconds: &'static str,
}

const DEFAULT: Machine = Machine {
    name: "",
    about: "",
    arguments: &[],
    files: &[],
    image: None,
    manifest: None,
    script: None,
    status: 0,
    stdout: &[],
    last: &["exit status 0", "powered off"],
    seconds: "120",
};

/// What a guest is that is larger than its promise and gives back what it doesn't need.
macro_rules! overcommitted {
    () => {
        "vcpus = 1\nmemory = \"768M\"\npromised = \"128M\"\nballoon = true\n"
    };
}

/// What a script's line prints must be told from the line as it was typed, so it is computed.
const MACHINES: &[Machine] = &[
    Machine {
        name: "boot",
        about: "a guest boots, runs a script and powers off",
        script: Some("# a comment\n\nuname -s -m\necho sum=$((40+2))\nnproc\n"),
        stdout: &["Linux x86_64\n", "sum=42\n", "\n2\n"],
        ..DEFAULT
    },
    Machine {
        name: "one-cpu",
        about: "the same with one CPU",
        arguments: &["--cpus", "1", "--vcpus", "1"],
        script: Some("nproc"),
        stdout: &["\n1\n"],
        ..DEFAULT
    },
    Machine {
        name: "smp-8-on-2",
        about: "eight vCPUs on two CPUs",
        arguments: &["--vcpus", "8"],
        script: Some("nproc\nfor i in 1 2 3 4 5 6 7 8; do sh -c 'echo w$((i*111))' & done; wait"),
        stdout: &["\n8\n"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "smp-8-on-8",
        about: "eight vCPUs on eight CPUs",
        arguments: &["--cpus", "8", "--vcpus", "8"],
        script: Some("nproc"),
        stdout: &["\n8\n"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "debian-generic",
        about: "Debian's generic kernel, eight vCPUs",
        arguments: &["--kernel", "debian:linux-image-amd64", "--vcpus", "8"],
        script: Some("nproc\nuname -r | grep -v cloud"),
        stdout: &["\n8\n", "-amd64\n"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "debian-6.12",
        about: "Debian's newer cloud kernel, without KASLR",
        arguments: &[
            "--kernel",
            "debian:linux-image-6.12.*-cloud-amd64",
            "--cmdline",
            "console=ttyS0 quiet nokaslr reboot=k panic=-1",
        ],
        script: Some("nproc\nuname -r"),
        stdout: &["\n2\n", "6.12."],
        ..DEFAULT
    },
    Machine {
        name: "two-guests",
        about: "two guests side by side, each with its own files",
        arguments: &["--vm", "@/a.toml", "--vm", "@/b.toml"],
        files: &[
            ("a.toml", "vcpus = 1\nmemory = \"256M\"\ncmdline = \"console=ttyS0 quiet reboot=k panic=-1 who=first\"\n"),
            ("b.toml", "vcpus = 2\nmemory = \"384M\"\n"),
        ],
        script: Some("cat /proc/cmdline\nnproc\necho end=$((20+3))"),
        stdout: &["a| end=23\n", "b| end=23\n", "who=first\n", "a| 1\n", "b| 2\n"],
        last: &["exit status 0", "\"a\" powered off", "\"b\" powered off"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "panic",
        about: "a guest whose kernel panics",
        script: Some("echo c > /proc/sysrq-trigger"),
        status: 2,
        stdout: &["sysrq triggered crash"],
        last: &["exit status 2", "\"guest\" crashed: kernel panic"],
        ..DEFAULT
    },
    Machine {
        name: "triple-fault",
        about: "a guest that ends in a triple fault",
        arguments: &["--cmdline", "console=ttyS0 quiet reboot=t"],
        script: Some("reboot -f"),
        status: 2,
        last: &["exit status 2", "triple fault"],
        ..DEFAULT
    },
    Machine {
        name: "one-crashes",
        about: "a guest crashes beside another, which goes on",
        arguments: &["--vm", "@/bad.toml", "--vm", "@/good.toml"],
        files: &[
            ("bad.toml", "vcpus = 1\nmemory = \"256M\"\ncmdline = \"console=ttyS0 quiet panic=-1 bad\"\n"),
            ("good.toml", "vcpus = 1\nmemory = \"256M\"\n"),
        ],
        script: Some("grep -q bad /proc/cmdline && echo c > /proc/sysrq-trigger\nsleep 3\necho alive=$((5*5))"),
        status: 2,
        stdout: &["good| alive=25\n"],
        last: &["exit status 2", "\"bad\" crashed"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "overcommit",
        about: "two guests want more than both were promised and more than there is: what one gives back the other one gets",
        arguments: &["--vm", "@/first.toml", "--vm", "@/second.toml"],
        files: &[
            ("first.toml", concat!("cmdline = \"console=ttyS0 quiet panic=-1 first\"\n", overcommitted!())),
            ("second.toml", concat!("cmdline = \"console=ttyS0 quiet panic=-1 second\"\n", overcommitted!())),
        ],
        script: Some(
            "fill() { head -c 180000000 /dev/zero > /big && echo full=$(wc -c < /big); }\n\
             grep -q first /proc/cmdline && fill && rm /big && sleep 60\n\
             grep -q second /proc/cmdline && sleep 45 && fill\n",
        ),
        stdout: &["first| full=180000000\n", "second| full=180000000\n"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "overcommit-follows",
        about: "a guest wants what another has free in small pieces, which only its balloon finds",
        arguments: &["--vm", "@/first.toml", "--vm", "@/second.toml", "--machine-memory", "592M"],
        files: &[
            ("first.toml", concat!("cmdline = \"console=ttyS0 quiet panic=-1 first\"\n", overcommitted!())),
            ("second.toml", concat!("cmdline = \"console=ttyS0 quiet panic=-1 second\"\n", overcommitted!())),
        ],
        script: Some(
            "pieces() { for i in $(seq 400); do head -c 524288 /dev/zero > /p$i; done; for i in $(seq 2 2 400); do rm /p$i; done; }\n\
             grep -q first /proc/cmdline && pieces && sleep 60 && echo kept=$(cat /p* | wc -c)\n\
             grep -q second /proc/cmdline && sleep 25 && head -c 250000000 /dev/zero > /big && echo full=$(wc -c < /big)\n",
        ),
        stdout: &["first| kept=104857600\n", "second| full=250000000\n"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "overcommit-fails",
        about: "a guest wants more than it was promised, and nothing is left",
        arguments: &["--vm", "@/greedy.toml"],
        files: &[("greedy.toml", "vcpus = 1\nmemory = \"1G\"\npromised = \"128M\"\n")],
        script: Some("head -c 900000000 /dev/zero > /big"),
        status: 2,
        last: &["exit status 2", "\"greedy\" crashed: it wanted more memory than it was promised, and none is left"],
        ..DEFAULT
    },
    Machine {
        name: "reset-restarts",
        about: "a guest that resets itself starts anew",
        script: Some("reboot -f\necho again=$((3*7))"),
        stdout: &["again=21\n"],
        seconds: "240",
        ..DEFAULT
    },
    Machine {
        name: "reset-stops",
        about: "a guest that resets itself is over, if its file says so",
        arguments: &["--vm", "@/stop.toml"],
        files: &[("stop.toml", "on-reset = \"stop\"\n")],
        script: Some("reboot -f"),
        last: &["exit status 0"],
        ..DEFAULT
    },
    Machine {
        name: "multiboot",
        about: "a Multiboot guest ends its test well",
        arguments: &["--kernel", "@/image", "--vm", "@/test.toml"],
        files: &[("test.toml", "test-devices = true\n")],
        image: Some(0),
        stdout: &["ok\n"],
        last: &["exit status 0", "\"test\" ended its test with 0"],
        ..DEFAULT
    },
    Machine {
        name: "test-fails",
        about: "a guest whose test fails",
        arguments: &["--vm", "@/test.toml", "--cpus", "1"],
        files: &[("test.toml", "test-devices = true\nvcpus = 1\nmemory = \"64M\"\nkernel = \"image\"\n")],
        image: Some(3),
        status: 6,
        stdout: &["ok\n"],
        last: &["exit status 6", "\"test\" ended its test with 3"],
        ..DEFAULT
    },
    Machine {
        name: "timeout",
        about: "a guest that takes too long",
        script: Some("sleep 1000"),
        status: 4,
        last: &["exit status 4", "time ran out after 20 s"],
        seconds: "20",
        ..DEFAULT
    },
    Machine {
        name: "service-faults",
        about: "a service with too small a stack runs into its guard page, and its guest ends with it",
        manifest: Some(("stack = \"128K\"", "stack = \"4K\"")),
        status: 3,
        last: &["exit status 3", "service \"vmm-guest\" faulted: exception 14"],
        ..DEFAULT
    },
    Machine {
        name: "bad-manifest",
        about: "a manifest with a call that goes downhill",
        manifest: Some(("rank = 40", "rank = 25")),
        status: 5,
        last: &["exit status 5", "\"notifier\" (rank 30) calls \"sev-firmware\" (rank 25)"],
        ..DEFAULT
    },
    Machine {
        name: "qemu-dies",
        about: "QEMU ends by itself",
        arguments: &["--machine-memory", "900000G"],
        status: 3,
        last: &["exit status 3", "QEMU ended"],
        ..DEFAULT
    },
    refused("bad-cpus", "nine CPUs", &["--cpus", "9"], &["1 to 8 CPUs"]),
    refused("bad-vcpus", "nine vCPUs", &["--vcpus", "9"], &["1 to 8"]),
    refused("bad-icount", "--icount with two CPUs", &["--icount", "--cpus", "2"], &["one CPU only"]),
    refused("bad-memory", "a guest with too little memory", &["--memory", "32M"], &["at least 64M"]),
    refused("bad-fit", "a guest that its kernel doesn't fit", &["--memory", "64M"], &["too little for its kernel"]),
    refused("bad-machine", "a VM that can't fit the machine", &["--machine-memory", "512M"], &["can't hold VM"]),
    refused("bad-kernel", "a kernel that is none", &["--kernel", "@/text"], &["no bzImage"]),
    refused("no-kernel", "a kernel that isn't there", &["--kernel", "@/nothing"], &["No such file"]),
    refused(
        "bad-key",
        "an unknown key",
        &["--vm", "@/key.toml"],
        &["key.toml:2:1: unknown key \"memry\"", "\"memory\""],
    ),
    refused("no-disk", "a disk that isn't there", &["--disk", "@/nothing"], &["No such file"]),
    refused("bad-disk", "a disk that is no whole sectors", &["--disk", "@/text"], &["whole sectors of 512 bytes"]),
    refused("bad-option", "an unknown option", &["--nonsense"], &["--nonsense"]),
];

const fn refused(
    name: &'static str, about: &'static str, arguments: &'static [&'static str], last: &'static [&'static str],
) -> Machine {
    let files: &[(&str, &str)] = &[("text", "no kernel"), ("key.toml", "vcpus = 1\nmemry = \"1G\"\n")];
    Machine { name, about, arguments, last, status: 5, files, ..DEFAULT }
}

/// Names and purposes.
pub fn list() -> impl Iterator<Item = (&'static str, &'static str)> {
    MACHINES.iter().map(|machine| (machine.name, machine.about))
}

/// All of them.
pub fn run(paths: &Paths) -> Outcome {
    let outcomes = MACHINES.iter().map(|machine| check(paths, machine));
    outcomes.fold(Outcome::default(), |mut all, one| {
        all.passed += one.passed;
        all.failed.extend(one.failed);
        all
    })
}

/// The one of this name.
pub fn one(paths: &Paths, name: &str) -> Outcome {
    match MACHINES.iter().find(|machine| machine.name == name) {
        Some(machine) => check(paths, machine),
        None => Outcome::failed("no such machine"),
    }
}

fn check(paths: &Paths, machine: &Machine) -> Outcome {
    match attempt(paths, machine) {
        Ok(()) => Outcome::passed(1),
        Err(why) => Outcome::failed(why),
    }
}

/// This program, copied: building tests may replace the original.
pub fn program() -> Result<&'static tempfile::TempPath, String> {
    static PROGRAM: OnceLock<Result<tempfile::TempPath, String>> = OnceLock::new();
    let copy = || {
        let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?.into_temp_path();
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        fs::copy(own, &file).map_err(|error| error.to_string())?;
        Ok(file)
    };
    PROGRAM.get_or_init(copy).as_ref().map_err(Clone::clone)
}

fn attempt(paths: &Paths, machine: &Machine) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let at = |name: &str| folder.path().join(name);
    for (name, content) in machine.files {
        fs::write(at(name), content).map_err(|error| error.to_string())?;
    }
    if let Some(status) = machine.image {
        fs::write(at("image"), tiny::image(status)).map_err(|error| error.to_string())?;
    }
    let mut command = Command::new(program()?);
    command.current_dir(&paths.root).arg("run").args(["--timeout", machine.seconds]);
    let here = folder.path().display().to_string();
    command.args(machine.arguments.iter().map(|argument| argument.replace('@', &here)));
    if let Some((from, to)) = machine.manifest {
        let board = fs::read_to_string(paths.manifest()).map_err(|error| error.to_string())?;
        fs::write(at("system.toml"), board.replacen(from, to, 1)).map_err(|error| error.to_string())?;
        command.arg("--manifest").arg(at("system.toml"));
    }
    if let Some(script) = machine.script {
        fs::write(at("script"), script).map_err(|error| error.to_string())?;
        command.arg("--script").arg(at("script"));
    }
    let output = command.stdin(std::process::Stdio::null()).output().map_err(|error| error.to_string())?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    let mut wrong = Vec::new();
    if output.status.code() != Some(machine.status) {
        wrong.push(format!("{} instead of exit status {}", output.status, machine.status));
    }
    let missing = |text: &str, parts: &[&'static str]| -> Vec<&'static str> {
        parts.iter().filter(|part| !text.contains(**part)).copied().collect()
    };
    wrong.extend(missing(&stdout, machine.stdout).iter().map(|part| format!("{part:?} isn't in the output")));
    wrong.extend(missing(last, machine.last).iter().map(|part| format!("{part:?} isn't in the last line")));
    if stdout.contains("booting:") {
        wrong.push("standard output has more than the guest's console".into());
    }
    if wrong.is_empty() {
        return Ok(());
    }
    println!("--- standard output of {}\n{stdout}\n--- standard error\n{stderr}\n---", machine.name);
    Err(format!("{} (it said: {last})", wrong.join("; ")))
}
