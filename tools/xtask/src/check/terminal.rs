//! `cargo xtask run` at a terminal, as a person uses it: a pseudo-terminal takes the person's place.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::{Outcome, machines};
use crate::paths::Paths;

/// How long a guest may take to come to its shell.
const BOOT: Duration = Duration::from_secs(180);
/// How long anything else may take.
const SOON: Duration = Duration::from_secs(30);
/// How often it is looked whether the program still runs.
const LOOK: Duration = Duration::from_millis(200);
/// How much of the screen is told when something is missing, in characters.
const TOLD: usize = 600;
/// The prompt of our initramfs.
const PROMPT: &str = "guest:/root# ";

/// The person's side.
struct Person {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    terminal: OwnedFd,
    child: Child,
}

/// All sessions.
pub fn run(paths: &Paths) -> Outcome {
    let mut outcome = Outcome::default();
    let sessions = [
        ("one guest", one as fn(&Paths) -> Result<(), String>),
        ("two guests", two),
        ("interrupted", interrupted),
        ("debugger", debugger),
    ];
    for (name, done) in sessions.map(|(name, session)| (name, session(paths))) {
        match done {
            Ok(()) => outcome.passed += 1,
            Err(why) => outcome.failed.push(format!("{name}: {why}")),
        }
    }
    outcome
}

/// Types, interrupts a command, asks for help, leaves.
fn one(paths: &Paths) -> Result<(), String> {
    let mut person = Person::sits_down(paths, &[])?;
    person.sees(PROMPT, BOOT)?;
    if person.echoes()? {
        return Err("the terminal isn't raw while the guest has it".into());
    }
    person.types("echo sum=$((40+2))\r")?;
    person.sees("sum=42", SOON)?;
    person.sees(PROMPT, SOON)?;
    person.types("sleep 1000\r")?;
    person.sees("sleep 1000\r\n", SOON)?;
    std::thread::sleep(Duration::from_millis(500));
    person.types("\x03")?;
    person.sees(PROMPT, SOON)?;
    person.types("\x01h")?;
    person.sees("Ctrl-A X: leave", SOON)?;
    person.types("\x01x")?;
    person.sees("caisson: exit status 0: you left", SOON)?;
    person.ends(0)
}

/// Switches between guests and powers both off.
fn two(paths: &Paths) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let files = ["first.toml", "second.toml"].map(|name| folder.path().join(name));
    for file in &files {
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let text = format!("vcpus = 1\nmemory = \"256M\"\ncmdline = \"console=ttyS0 quiet pci=off i-am-{name}\"\n");
        std::fs::write(file, text).map_err(|error| error.to_string())?;
    }
    let [first, second] = files.map(|file| file.display().to_string());
    let mut person = Person::sits_down(paths, &["--vm", &first, "--vm", &second])?;
    person.sees(PROMPT, BOOT)?;
    for (keys, name) in [("", "first"), ("\x01n", "second"), ("\x01n", "first")] {
        person.types(keys)?;
        if !keys.is_empty() {
            person.sees(PROMPT, BOOT)?;
        }
        person.types("tr ' ' '\\n' < /proc/cmdline | grep i-am\r")?;
        person.sees(&format!("\r\ni-am-{name}"), SOON)?;
        person.sees(PROMPT, SOON)?;
    }
    person.types("poweroff -f\r")?;
    person.sees("guest \"first\" powered off", SOON)?;
    person.types("\x01n")?;
    person.sees(PROMPT, SOON)?;
    person.types("poweroff -f\r")?;
    person.sees("caisson: exit status 0", SOON)?;
    person.ends(0)
}

/// Somebody ends it by a signal.
fn interrupted(paths: &Paths) -> Result<(), String> {
    let mut person = Person::sits_down(paths, &[])?;
    person.sees(PROMPT, BOOT)?;
    kill_process(Pid::from_child(&person.child), Signal::TERM).map_err(|error| error.to_string())?;
    person.sees("caisson: exit status 143: interrupted by SIGTERM", SOON)?;
    person.ends(143)
}

/// The debugger's command, as it is told, stops the kernel at its start.
fn debugger(paths: &Paths) -> Result<(), String> {
    if crate::paths::program("gdb").is_none() {
        return Ok(());
    }
    let mut person = Person::sits_down(paths, &["--gdb"])?;
    person.sees("QEMU waits for a debugger: gdb", BOOT)?;
    let command = person.sees("\n", SOON)?;
    let output =
        Command::new("sh").arg("-c").arg(format!("gdb -nx -batch {}", command.trim())).stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !said.contains("hit Breakpoint 1") {
        return Err(format!("gdb says {said}{}", String::from_utf8_lossy(&output.stderr)));
    }
    person.types("\x01x")?;
    person.ends(0)
}

impl Person {
    fn sits_down(paths: &Paths, arguments: &[&str]) -> Result<Self, String> {
        let say = |error: rustix::io::Errno| error.to_string();
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).map_err(say)?;
        grantpt(&master).map_err(say)?;
        unlockpt(&master).map_err(say)?;
        let name = ptsname(&master, Vec::new()).map_err(say)?;
        let terminal = open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).map_err(say)?;
        let end = || terminal.try_clone().map_err(|error| error.to_string());
        let program: &Path = machines::program()?.as_ref();
        let child = Command::new(program)
            .current_dir(&paths.root)
            .arg("run")
            .args(["--timeout", "400"])
            .args(arguments)
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().map_err(|error| error.to_string())?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { keyboard, screen, seen: Vec::new(), terminal, child })
    }

    /// Waits until `text` is on the screen, after what was seen before; returns what came in between.
    fn sees(&mut self, text: &str, within: Duration) -> Result<String, String> {
        let start = Instant::now();
        let mut ended = false;
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                let mut between: Vec<u8> = self.seen.drain(..at + text.len()).collect();
                between.truncate(at);
                return Ok(String::from_utf8_lossy(&between).into_owned());
            }
            match self.screen.recv_timeout(LOOK) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(_) if ended || start.elapsed() > within => {
                    let seen = String::from_utf8_lossy(&self.seen).into_owned();
                    let last = seen.char_indices().rev().nth(TOLD).map_or(seen.as_str(), |(at, _)| &seen[at..]);
                    let seconds = start.elapsed().as_secs();
                    return Err(format!("{text:?} didn't come in {seconds} s; the screen has {last:?}"));
                }
                Err(_) => ended = self.child.try_wait().is_ok_and(|status| status.is_some()),
            }
        }
    }

    fn types(&mut self, keys: &str) -> Result<(), String> {
        self.keyboard.write_all(keys.as_bytes()).map_err(|error| error.to_string())
    }

    fn echoes(&self) -> Result<bool, String> {
        let settings = tcgetattr(&self.terminal).map_err(|error| error.to_string())?;
        Ok(settings.local_modes.contains(LocalModes::ECHO))
    }

    /// It ended with this status and left the terminal as it was.
    fn ends(mut self, status: i32) -> Result<(), String> {
        let ended = self.child.wait().map_err(|error| error.to_string())?;
        if ended.code() != Some(status) {
            return Err(format!("{ended} instead of exit status {status}"));
        }
        if self.echoes()? { Ok(()) } else { Err("the terminal stayed raw".into()) }
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
