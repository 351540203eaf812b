//! The two sides: guests on Caisson, and the same guests bare, each in a QEMU of its own.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use caisson_manifest::Size;
use caisson_manifest::system::System;

use super::scripts::{DISK, Work};
use crate::channels::Demux;
use crate::cli::{DEFAULT_CMDLINE, LogLevel, MachineArgs};
use crate::debian;
use crate::failure::{Context, Failure, Status};
use crate::image::{self, Programs};
use crate::paths::Paths;
use crate::qemu::Qemu;
use crate::{guests, initramfs, machine};

/// A run that takes longer than this has failed.
const LONGEST: Duration = Duration::from_secs(300);
/// Memory of each guest, in MiB.
const MEMORY: u64 = 256;

/// What a run found out, by name. Of what was done twice, the last time.
pub type Found = BTreeMap<String, u64>;

/// What machines are made of.
pub struct Lab {
    paths: Paths,
    folder: tempfile::TempDir,
    system: System,
    programs: Programs,
    kernel: PathBuf,
    initramfs: Vec<u8>,
}

/// A machine, or as many as there are guests, that is ready to be started.
pub struct Ready {
    arguments: Vec<Vec<String>>,
    is_caisson: bool,
    clock: Clock,
}

/// Whose clock says what something took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The guest's: instructions, where QEMU counts them.
    Guest,
    /// This program's: from when the guest says that it begins until it says that it is done.
    Host,
}

impl Lab {
    /// Builds everything.
    pub fn new(paths: &Paths) -> Result<Self, Failure> {
        let system = image::manifest(paths, None)?;
        let programs = image::programs(paths, &system, LogLevel::Info)?;
        let files = debian::guest_files(paths, debian::KERNEL)?;
        let initramfs = std::fs::read(&files.initramfs).about("read", &files.initramfs)?;
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let disk = folder.path().join("disk");
        let content: Vec<u8> = (0..DISK).map(|at| (at / 512 * 7 + at) as u8).collect();
        std::fs::write(&disk, content).about("write", &disk)?;
        Ok(Self { paths: paths.clone(), folder, system, programs, kernel: files.kernel, initramfs })
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<PathBuf, Failure> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).about("write", &path)?;
        Ok(path)
    }

    fn initrd(&self, name: &str, script: &str) -> Result<PathBuf, Failure> {
        self.file(name, &initramfs::with_start(self.initramfs.clone(), script)?)
    }

    /// Guests on Caisson that run a script. With `counts` QEMU counts instructions, on one CPU.
    pub fn caisson(&self, work: Work, script: &str, counts: bool) -> Result<Ready, Failure> {
        let name = format!("{work:?}-{counts}").to_lowercase();
        let initrd = self.initrd(&format!("{name}.cpio"), script)?;
        let devices = match work {
            Work::Disk => "disk = \"disk\"\ndisk-overlay = \"32M\"\n",
            Work::Network => "network = \"lan\"\n",
        };
        let mut vms = Vec::new();
        for guest in 1..=work.guests() {
            let text =
                format!("name = \"g{guest}\"\nvcpus = 1\nmemory = \"{MEMORY}M\"\ninitrd = {initrd:?}\n{devices}");
            vms.push(self.file(&format!("{name}-{guest}.toml"), text.as_bytes())?);
        }
        let args = MachineArgs {
            cpus: Some(if counts { 1 } else { work.guests() as u64 }),
            vcpus: 1,
            memory: Size(MEMORY << 20),
            machine_memory: None,
            kernel: Some(self.kernel.clone()),
            initrd: None,
            disk: None,
            cmdline: DEFAULT_CMDLINE.into(),
            vms,
            log: LogLevel::Info,
            manifest: None,
            icount: counts,
        };
        let machine = guests::resolve(&self.paths, &self.system, &args)?;
        let built = image::assemble(&self.system, &machine, &self.programs)?;
        let bundle = self.file(&format!("{name}.bundle"), &built.bundle)?;
        let arguments = vec![machine::arguments(&machine, &built.kernel, &bundle)];
        Ok(Ready { arguments, is_caisson: true, clock: if counts { Clock::Guest } else { Clock::Host } })
    }

    /// The same guests, each on a machine whose virtio devices are like those: behind registers in memory. Those of a network
    /// have a socket between them.
    pub fn bare(&self, work: Work, script: &str) -> Result<Ready, Failure> {
        let initrd = self.initrd(&format!("{work:?}-bare.cpio").to_lowercase(), script)?;
        let one = |guest: usize| {
            let fixed = "-machine microvm,acpi=on,pit=on,pic=on -cpu max -accel tcg -nodefaults -no-user-config -display none -no-reboot \
                         -global virtio-mmio.force-legacy=false -smp 1";
            let mut arguments: Vec<String> = fixed.split_whitespace().map(String::from).collect();
            let mut add = |option: &str, value: String| arguments.extend([option.into(), value]);
            add("-m", format!("{MEMORY}M"));
            add("-kernel", self.kernel.display().to_string());
            add("-initrd", initrd.display().to_string());
            add("-append", format!("{DEFAULT_CMDLINE} tsc_early_khz={}", host_khz()));
            match work {
                Work::Disk => {
                    let disk = self.folder.path().join("disk");
                    add("-drive", format!("id=disk,file={},format=raw,if=none,snapshot=on", disk.display()));
                    add("-device", "virtio-blk-device,drive=disk".into());
                }
                Work::Network => {
                    let end = |number: usize| self.folder.path().join(format!("end-{number}")).display().to_string();
                    let (own, other) = (end(guest), end(3 - guest));
                    let line =
                        "local.type=unix,local.path=".to_owned() + &own + ",remote.type=unix,remote.path=" + &other;
                    add("-netdev", format!("dgram,id=lan,{line}"));
                    add("-device", format!("virtio-net-device,netdev=lan,mac=02:00:00:00:00:{guest:02x}"));
                }
            }
            arguments
        };
        Ok(Ready { arguments: (1..=work.guests()).map(one).collect(), is_caisson: false, clock: Clock::Host })
    }

    /// One run, until the first guest has said everything.
    pub fn run(&self, ready: &Ready) -> Result<Found, Failure> {
        let mut machines = Vec::new();
        for (number, arguments) in ready.arguments.iter().enumerate() {
            let folder = self.folder.path().join(format!("machine-{number}"));
            std::fs::create_dir_all(&folder).about("make", &folder)?;
            machines.push(start(&folder, arguments, ready.is_caisson)?);
        }
        let heard = listen(&mut machines, ready.is_caisson, ready.clock);
        let errors: Vec<String> = machines.into_iter().map(|mut machine| machine.end()).collect();
        for number in 1..=2 {
            // A socket that is still there can't be bound again.
            let _ = std::fs::remove_file(self.folder.path().join(format!("end-{number}")));
        }
        heard.map_err(|why| Failure::new(Status::Failed, format!("{why} {}", errors.join(" ").trim())))
    }
}

/// Ticks of this host's TSC in a millisecond, which the bare guest's are, too. It has nothing to find that out by when the host is
/// busy, and gets no further then.
fn host_khz() -> u64 {
    const USUAL: f64 = 2000.0;
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": "));
    (line.and_then(|(_, mhz)| mhz.trim().parse().ok()).unwrap_or(USUAL) * 1000.0) as u64
}

fn start(folder: &Path, arguments: &[String], is_caisson: bool) -> Result<Qemu, Failure> {
    for name in ["console", "log", "kernel-log"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    let mut qemu = Qemu::start(folder, arguments, is_caisson)?;
    for mut log in [qemu.log.take(), qemu.kernel_log.take()].into_iter().flatten() {
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }
    qemu.console.set_read_timeout(Some(Duration::from_millis(5))).context("console")?;
    Ok(qemu)
}

/// Hears the first guest until it has said everything.
fn listen(machines: &mut [Qemu], is_caisson: bool, clock: Clock) -> Result<Found, String> {
    let (mut demux, mut text, mut heard) = (Demux::default(), Vec::new(), Heard::new(clock));
    let mut buffer = [0; 4096];
    loop {
        for (number, qemu) in machines.iter_mut().enumerate() {
            if qemu.started.elapsed() > LONGEST {
                return Err(format!(
                    "not everything came in {} s; the guest said: {}",
                    LONGEST.as_secs(),
                    shown(&text)
                ));
            }
            let bytes = match qemu.console.read(&mut buffer) {
                Ok(0) => return Err(format!("QEMU ended before everything came; the guest said: {}", shown(&text))),
                Ok(count) => buffer.get(..count).unwrap_or_default(),
                // It timed out.
                Err(_) => continue,
            };
            if is_caisson {
                demux.feed(bytes, |channel, bytes| {
                    if channel == 1 {
                        text.extend_from_slice(bytes);
                    }
                });
            } else if number == 0 {
                text.extend_from_slice(bytes);
            }
        }
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            if heard.takes(&String::from_utf8_lossy(&line), Instant::now())? {
                return Ok(heard.found);
            }
        }
    }
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// What a guest has said.
struct Heard {
    clock: Clock,
    begun: Option<Instant>,
    found: Found,
}

impl Heard {
    fn new(clock: Clock) -> Self {
        Self { clock, begun: None, found: Found::new() }
    }

    /// Takes a line that has come now; whether it was the last one.
    fn takes(&mut self, line: &str, now: Instant) -> Result<bool, String> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["bench", "end"] => return Ok(true),
            ["bench", "failed:", what] => return Err(format!("the guest couldn't do \"{what}\"")),
            ["bench", "begin", _] => self.begun = Some(now),
            ["bench", name, number] => {
                let number: u64 = number.parse().map_err(|_| format!("no figure: {line}"))?;
                let took = match (self.clock, self.begun.take()) {
                    (Clock::Guest, _) => number,
                    (Clock::Host, Some(begun)) => (now - begun).as_nanos() as u64,
                    (Clock::Host, None) => return Err(format!("it ended before it began: {line}")),
                };
                self.found.insert(name.into(), took);
            }
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_name_counts() {
        let (mut heard, now) = (Heard::new(Clock::Guest), Instant::now());
        for line in ["bench begin a", "bench a 1\r\n", "x y\n", "bench b 2\n", "bench a 3\n"] {
            assert_eq!(heard.takes(line, now), Ok(false));
        }
        assert_eq!(heard.found, Found::from([("a".into(), 3), ("b".into(), 2)]));
        assert_eq!(heard.takes("bench end\r\n", now), Ok(true));
        assert!(heard.takes("bench failed: read", now).unwrap_err().contains("\"read\""));
        assert!(heard.takes("bench a b", now).is_err());
    }

    #[test]
    fn by_the_hosts_clock_it_is_the_time_between() {
        let (mut heard, now) = (Heard::new(Clock::Host), Instant::now());
        assert_eq!(heard.takes("bench begin a", now), Ok(false));
        assert_eq!(heard.takes("bench a 1", now + Duration::from_micros(7)), Ok(false));
        assert_eq!(heard.found, Found::from([("a".into(), 7000)]));
        assert!(heard.takes("bench a 1", now).unwrap_err().contains("before it began"));
    }
}
