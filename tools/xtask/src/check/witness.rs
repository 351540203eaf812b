//! A machine with an agent in it, whose guests' shells witness that they go on.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use caisson_guest_intruder::order;
use caisson_manifest::Size;
use caisson_manifest::system::System;
use caisson_proto::console::Knob;

use crate::channels::{Demux, Mux};
use crate::cli::{LogLevel, MachineArgs};
use crate::failure::{Context, Failure};
use crate::guests;
use crate::image;
use crate::logs::{Line, Logs};
use crate::machine;
use crate::paths::Paths;
use crate::qemu::Qemu;
use crate::script::Prompt;
use crate::stats;
use crate::verdict::Notices;

/// How long a guest may take to come to its shell.
pub const BOOT: Duration = Duration::from_secs(360);
/// How long anything else may take.
pub const SOON: Duration = Duration::from_secs(30);
/// How long one look for news takes at the most, per stream.
const LOOK: Duration = Duration::from_millis(2);
/// How often a line is typed at the most.
const TRIES: u32 = 6;
/// The socket of QEMU's monitor, and what it is asked when something is wrong: three times, to tell who goes on from who
/// doesn't.
const MONITOR: &str = "monitor";
const ASKED: &str = "info registers -a\n";
/// How long it may answer.
const ANSWER: Duration = Duration::from_millis(500);
/// Log lines that are shown when something is wrong.
const TOLD: usize = 60;

/// A guest.
struct Guest {
    name: String,
    /// All that it wrote.
    text: String,
    prompt: Prompt,
    /// It comes to a shell: its file names no kernel, or one of Debian's.
    has_shell: bool,
}

/// The machine.
pub struct Witness {
    qemu: Qemu,
    agent: UnixStream,
    logs: Logs,
    /// Everything that was logged.
    pub lines: Vec<Line>,
    notices: Notices,
    /// What the supervisor told of, in words.
    pub heard: Vec<String>,
    /// The services' names, by slot.
    services: Vec<String>,
    demux: Demux,
    mux: Mux,
    guests: Vec<Guest>,
    folder: tempfile::TempDir,
}

/// Takes what has arrived; none at the stream's end.
fn take(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 16384];
    match stream.read(&mut buffer) {
        Ok(0) => None,
        Ok(count) => {
            buffer.truncate(count);
            Some(buffer)
        }
        // It timed out.
        Err(_) => Some(Vec::new()),
    }
}

/// Whether the kernel says by this that a life of a service begins.
fn begins(what: &str, name: &str) -> bool {
    what.strip_prefix("Started(")
        .and_then(|rest| rest.strip_prefix(name))
        .is_some_and(|rest| rest.starts_with(", life "))
}

impl Witness {
    /// Boots the machine of the tests' manifest, of which something may be replaced by something else, with these VMs:
    /// names and the contents of their files.
    pub fn boot(paths: &Paths, change: Option<(&str, &str)>, vms: &[(&str, &str)]) -> Result<Self, Failure> {
        Self::boot_in(paths, None, change, vms)
    }

    /// The same in a machine with so much memory, or just enough.
    pub fn boot_in(
        paths: &Paths, memory: Option<Size>, change: Option<(&str, &str)>, vms: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let folder = tempfile::tempdir().context("no folder for temporary files")?;
        let board = paths.root.join("board/qemu/hostile.toml");
        let mut text = std::fs::read_to_string(&board).about("read", &board)?;
        if let Some((from, to)) = change {
            if !text.contains(from) {
                return Err(Failure::setup(format!("{}: {from:?} isn't there", board.display())));
            }
            text = text.replacen(from, to, 1);
        }
        let system = System::parse(&board, &text)?;
        let mut files = Vec::new();
        for (name, text) in vms {
            let file = folder.path().join(format!("{name}.toml"));
            std::fs::write(&file, text).about("write", &file)?;
            files.push(file);
        }
        let args = MachineArgs {
            cpus: Some(2),
            vcpus: 2,
            memory: Size(512 << 20),
            machine_memory: memory,
            kernel: None,
            initrd: None,
            disk: None,
            cmdline: crate::cli::DEFAULT_CMDLINE.into(),
            vms: files,
            log: LogLevel::Debug,
            manifest: None,
            icount: false,
        };
        let machine = guests::resolve(paths, &system, &args)?;
        let built = image::build(paths, &system, &machine, args.log)?;
        let bundle = folder.path().join("bundle");
        std::fs::write(&bundle, &built.bundle).about("write", &bundle)?;
        let mut arguments = machine::arguments(&machine, &built.kernel, &bundle);
        let line = folder.path().join("agent");
        let listener = UnixListener::bind(&line).about("make socket", &line)?;
        arguments.extend(["-chardev".into(), format!("socket,id=agent,path={}", line.display())]);
        arguments.extend(["-device", "isa-serial,index=1,chardev=agent"].map(String::from));
        let monitor = folder.path().join(MONITOR);
        arguments.extend(["-monitor".into(), format!("unix:{},server=on,wait=off", monitor.display())]);
        let qemu = Qemu::start(folder.path(), &arguments, true)?;
        // QEMU connects to its lines in the order in which they were named, and to the console after this one.
        let (agent, _) = listener.accept().context("no connection to the agent's line")?;
        for stream in [Some(&qemu.console), qemu.log.as_ref(), qemu.kernel_log.as_ref()].into_iter().flatten() {
            stream.set_read_timeout(Some(LOOK)).context("stream")?;
        }
        let now = Instant::now();
        let guests = machine.guests.iter().zip(vms).map(|(guest, (_, file))| Guest {
            name: guest.name.clone(),
            text: String::new(),
            prompt: Prompt::new(now),
            has_shell: !file.contains("kernel") || file.contains("debian:"),
        });
        let guests = guests.collect();
        let services: Vec<String> = built.services.iter().map(|service| service.name.clone()).collect();
        let of_guests = built.services.iter().map(|service| service.vm.map(|vm| machine.guests[vm].name.clone()));
        Ok(Self {
            qemu,
            agent,
            logs: Logs::new(&built, args.log)?,
            lines: Vec::new(),
            notices: Notices::new(services.clone(), of_guests.collect()),
            heard: Vec::new(),
            services,
            demux: Demux::default(),
            mux: Mux::default(),
            guests,
            folder,
        })
    }

    /// Takes in what came meanwhile. False at the end of the machine.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        let Some(console) = take(&mut self.qemu.console) else { return false };
        let (guests, notices, heard) = (&mut self.guests, &mut self.notices, &mut self.heard);
        self.demux.feed(&console, |channel, bytes| match channel.checked_sub(1) {
            None => heard.extend(notices.feed(bytes)),
            Some(guest) => {
                if let Some(guest) = guests.get_mut(guest) {
                    guest.text += &String::from_utf8_lossy(bytes);
                    guest.prompt.feed(bytes, now);
                }
            }
        });
        let log = self.qemu.log.as_mut().and_then(take).unwrap_or_default();
        self.lines.extend(self.logs.feed(&log));
        let log = self.qemu.kernel_log.as_mut().and_then(take).unwrap_or_default();
        self.lines.extend(self.logs.feed_kernel(&log));
        true
    }

    /// Looks on until something is so.
    pub fn until(&mut self, what: &str, within: Duration, mut so: impl FnMut(&mut Self) -> bool) -> Result<(), String> {
        let start = Instant::now();
        while !so(self) {
            if !self.look() {
                return Err(self.told(&format!("the machine ended before {what}")));
            }
            if start.elapsed() > within {
                return Err(self.told(&format!("after {} s: not {what}", within.as_secs())));
            }
        }
        Ok(())
    }

    /// Shows the end of the log and of the guests' output, for what went wrong.
    pub fn told(&self, why: &str) -> String {
        println!("--- {why}; the log ends with");
        self.lines.iter().skip(self.lines.len().saturating_sub(TOLD)).for_each(|line| println!("{}", line.text));
        for guest in &self.guests {
            let from = guest.text.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
            println!("--- guest {} wrote\n{}\n---", guest.name, &guest.text[from..]);
        }
        match self.registers() {
            Ok(registers) => println!("--- where the CPUs are\n{registers}\n---"),
            Err(error) => println!("--- QEMU doesn't tell where the CPUs are: {error}"),
        }
        why.into()
    }

    /// Where each CPU is, as QEMU's monitor has it.
    fn registers(&self) -> std::io::Result<String> {
        let mut monitor = UnixStream::connect(self.folder.path().join(MONITOR))?;
        monitor.set_read_timeout(Some(ANSWER))?;
        let mut said = Vec::new();
        for _ in 0..3 {
            monitor.write_all(ASKED.as_bytes())?;
            while let Some(bytes) = take(&mut monitor).filter(|bytes| !bytes.is_empty()) {
                said.extend(bytes);
            }
        }
        let shown = |line: &&str| ["CPU#", "RIP", "CS ", "CR0"].iter().any(|what| line.trim_start().starts_with(what));
        Ok(String::from_utf8_lossy(&said).lines().filter(shown).collect::<Vec<_>>().join("\n"))
    }

    /// Whether somebody logged a line that begins like this.
    pub fn logged(&self, who: &str, what: &str) -> bool {
        self.lines.iter().any(|line| line.who == who && line.what.starts_with(what))
    }

    /// Whether a guest wrote this.
    pub fn wrote(&self, guest: usize, what: &str) -> bool {
        self.guests.get(guest).is_some_and(|guest| guest.text.contains(what))
    }

    /// Waits until every guest that has a shell is at its prompt and the agent is ready.
    pub fn is_up(&mut self) -> Result<(), String> {
        self.until("all guests at their prompts", BOOT, |this| {
            let ready = |guest: &Guest| !guest.has_shell || guest.prompt.waits(Instant::now());
            this.guests.iter().all(ready) && this.logged("agent", "agent: ready")
        })
    }

    /// What a guest wrote.
    pub fn text(&self, guest: usize) -> &str {
        self.guests.get(guest).map_or("", |guest| &guest.text)
    }

    /// Sends the agent an order.
    pub fn orders(&mut self, order: u8) -> Result<(), String> {
        self.agent.write_all(&[order]).map_err(|error| error.to_string())
    }

    /// How many lives of a service have begun.
    pub fn lives(&self, name: &str) -> usize {
        self.lines.iter().filter(|line| line.who == "kernel" && begins(&line.what, name)).count()
    }

    /// Has the agent have a service ended.
    pub fn kill(&mut self, name: &str) -> Result<(), String> {
        let slot = self.slot(name)?;
        self.orders(order::END | slot)
    }

    /// Has the agent have a service's restarts forgotten.
    pub fn forgive(&mut self, name: &str) -> Result<(), String> {
        let slot = self.slot(name)?;
        self.orders(order::FORGIVE | slot)
    }

    fn slot(&self, name: &str) -> Result<u8, String> {
        let slot = self.services.iter().position(|service| service == name);
        Ok(slot.ok_or_else(|| format!("no service {name:?}"))? as u8)
    }

    /// Types a line at a guest's shell.
    pub fn types(&mut self, guest: usize, line: &str) {
        if let Some(guest) = self.guests.get_mut(guest) {
            guest.prompt.typed();
        }
        // Named each time: a console that was restarted doesn't know which channel it is.
        self.mux = Mux::default();
        let bytes = self.mux.wrap(guest + 1, format!("{line}\n").as_bytes());
        // If QEMU is gone, its end is noticed elsewhere.
        let _ = self.qemu.console.write_all(&bytes);
    }

    /// Orders how much memory a guest is to have.
    pub fn resizes(&mut self, guest: usize, knob: Knob, bytes: u64) {
        self.mux = Mux::default();
        let _ = self.qemu.console.write_all(&stats::collect::order(guest as u8 + 1, knob, bytes));
    }

    /// Looks on for a while.
    pub fn watches(&mut self, time: Duration) -> Result<(), String> {
        let start = Instant::now();
        self.until("the time is over", SOON, |_| start.elapsed() >= time)
    }

    /// Types a line and waits for this answer of the guest's.
    pub fn asks(&mut self, guest: usize, line: &str, answer: &str, within: Duration) -> Result<(), String> {
        let from = self.guests.get(guest).map_or(0, |guest| guest.text.len());
        self.types(guest, line);
        self.answers(guest, from, line, answer, within)
    }

    /// Waits for this answer of the guest's to a line that was typed already.
    pub fn sees_or_asks(&mut self, guest: usize, line: &str, answer: &str, within: Duration) -> Result<(), String> {
        self.answers(guest, 0, line, answer, within)
    }

    /// Where the guest is silent for a part of the time, the line is typed again: what a console had in hand when it died
    /// is lost. After Ctrl-C, as the shell may have half of the line and wait for the rest.
    fn answers(&mut self, guest: usize, from: usize, line: &str, answer: &str, within: Duration) -> Result<(), String> {
        let text = |this: &Self| this.guests.get(guest).map_or(0, |guest| guest.text.len());
        let came = |this: &Self| this.guests.get(guest).is_some_and(|guest| guest.text[from..].contains(answer));
        let (mut tries, mut last, mut quiet) = (1, text(self), Instant::now());
        self.until(&format!("{answer:?} of guest {guest}"), within * TRIES, |this| {
            if text(this) != last {
                (last, quiet) = (text(this), Instant::now());
            } else if quiet.elapsed() > within / TRIES && tries < TRIES {
                (tries, quiet) = (tries + 1, Instant::now());
                this.types(guest, &format!("\u{3}{line}"));
            }
            came(this)
        })
    }

    /// Waits for the end of the machine, and returns how it ended.
    pub fn ends(&mut self, within: Duration) -> Result<Failure, String> {
        let start = Instant::now();
        while self.look() {
            if start.elapsed() > within {
                return Err(self.told("the machine doesn't end"));
            }
        }
        let status = loop {
            match self.qemu.ended() {
                Some(status) => break status,
                None if start.elapsed() > within => return Err(self.told("QEMU doesn't end")),
                None => std::thread::sleep(LOOK),
            }
        };
        // What the log devices still had.
        for _ in 0..50 {
            let log = self.qemu.log.as_mut().and_then(take).unwrap_or_default();
            self.lines.extend(self.logs.feed(&log));
            let log = self.qemu.kernel_log.as_mut().and_then(take).unwrap_or_default();
            self.lines.extend(self.logs.feed_kernel(&log));
        }
        let errors = self.qemu.end();
        let last = self.lines.iter().rev().find(|line| line.error);
        Ok(self.notices.conclude(status, &errors, last))
    }

    /// Free frames when memory began, and when it had settled, with those that leaked.
    pub fn account(&self) -> Option<(u64, u64, u64)> {
        let number = |prefix: &str, line: &Line| -> Option<Vec<u64>> {
            let rest = line.what.strip_prefix(prefix).filter(|_| line.who == "memory")?;
            Some(rest.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        };
        let first = self.lines.iter().find_map(|line| number("memory: ", line))?;
        let last = self.lines.iter().rev().find_map(|line| number("memory: settled, ", line))?;
        Some((*first.first()?, *last.first()?, *last.get(1)?))
    }
}
