//! `cargo xtask run`: from the checks to the last line.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::cli::RunArgs;
use crate::failure::{Context, Failure, Status};
use crate::guests::{self, Machine};
use crate::image::{self, Built};
use crate::logs::{Line, Logs};
use crate::machine;
use crate::paths::Paths;
use crate::qemu::Qemu;
use crate::screen::Screen;
use crate::script::{self, Script};
use crate::stats::collect::Asked;
use crate::stats::serve::{Ask, Server};
use crate::terminal::{HELP, Keys, Raw, Typed};
use crate::verdict::Notices;
use crate::{channels, gdb, setup, signals};

/// How often QEMU's end and scripts are looked at.
const TICK: Duration = Duration::from_millis(10);
/// How long output may still come after QEMU's end.
const DRAIN: Duration = Duration::from_secs(2);

enum Event {
    Console(Vec<u8>),
    Log(Vec<u8>),
    /// Bytes of the kernel's log.
    KernelLog(Vec<u8>),
    Keys(Vec<u8>),
    Signal(Failure),
    /// Somebody reads statistics.
    Stats(Ask),
    Closed,
}

/// Checks, sets up, builds, boots, and stays until it is over.
pub fn run(paths: &Paths, args: &RunArgs) -> Result<Failure, Failure> {
    signals::watch()?;
    let system = image::manifest(paths, args.machine.manifest.as_deref())?;
    let lines = match &args.script {
        Some(path) => Some(script::lines(&std::fs::read_to_string(path).about("read script", path)?)),
        None => None,
    };
    let machine = guests::resolve(paths, &system, &args.machine)?;
    setup::qemu()?;
    let built = image::build(paths, &system, &machine, args.machine.log)?;
    let folder = tempfile::tempdir().context("no folder for temporary files")?;
    let bundle = folder.path().join("bundle");
    std::fs::write(&bundle, &built.bundle).about("write", &bundle)?;
    let mut arguments = machine::arguments(&machine, &built.kernel, &bundle);
    let debugger = if args.gdb { Some(gdb::wait(&built.kernel, gdb::USUAL)?) } else { None };
    arguments.extend(debugger.iter().flat_map(|(wait, _)| wait.clone()));
    let mut qemu = Qemu::start(folder.path(), &arguments, true)?;
    if let Some((_, command)) = &debugger {
        eprintln!("QEMU waits for a debugger: {command}");
    }
    announce(&machine, lines.is_some());
    let mut session = Session::new(&machine, &built, args, lines)?;
    let end = session.watch(paths, &mut qemu);
    drop(session);
    qemu.end();
    end
}

fn announce(machine: &Machine, scripted: bool) {
    let guests: Vec<String> =
        machine.guests.iter().map(|guest| format!("{} ({} vCPUs)", guest.name, guest.vcpus)).collect();
    eprintln!(
        "booting: {} CPUs, {} MiB, {}{}",
        machine.cpus,
        machine.memory >> 20,
        guests.join(", "),
        if scripted { "" } else { "; Ctrl-A H helps, Ctrl-A X leaves" }
    );
}

/// What xtask knows of a running machine.
struct Session<'a> {
    args: &'a RunArgs,
    raw: Option<Raw>,
    screen: Screen,
    logs: Logs,
    last_error: Option<Line>,
    notices: Notices,
    demux: channels::Demux,
    mux: channels::Mux,
    keys: Keys,
    scripts: Vec<Script>,
    names: Vec<String>,
    asked: Asked,
}

impl<'a> Session<'a> {
    fn new(machine: &Machine, built: &Built, args: &'a RunArgs, lines: Option<Vec<String>>) -> Result<Self, Failure> {
        let names: Vec<String> = machine.guests.iter().map(|guest| guest.name.clone()).collect();
        let now = Instant::now();
        let scripts = match &lines {
            Some(lines) => names.iter().map(|_| Script::new(lines, now)).collect(),
            None => Vec::new(),
        };
        let services: Vec<String> = built.services.iter().map(|service| service.name.clone()).collect();
        let guests = built.services.iter().map(|service| service.vm.map(|vm| names[vm].clone())).collect();
        let raw = if lines.is_some() { None } else { Raw::enter()? };
        Ok(Self {
            args,
            names: names.clone(),
            asked: Asked::default(),
            screen: Screen::new(names, lines.is_some() || !std::io::stdout().is_terminal()),
            logs: Logs::new(built, args.machine.log)?,
            last_error: None,
            notices: Notices::new(services, guests),
            demux: channels::Demux::default(),
            mux: channels::Mux::default(),
            keys: Keys::default(),
            scripts,
            raw,
        })
    }

    /// Moves everything that comes until QEMU ends, the time is over or the user leaves.
    fn watch(&mut self, paths: &Paths, qemu: &mut Qemu) -> Result<Failure, Failure> {
        let (events, _server) = self.sources(paths, qemu)?;
        let deadline = self.args.timeout.map(|seconds| qemu.started + Duration::from_secs(seconds));
        let mut ended = None;
        let mut open = 2;
        loop {
            match events.recv_timeout(TICK) {
                Ok(Event::Closed) => open -= 1,
                Ok(Event::Keys(bytes)) => {
                    if self.typed(qemu, &bytes) {
                        self.say("");
                        return Ok(Failure::new(Status::Clean, "you left"));
                    }
                }
                Ok(Event::Signal(end)) => {
                    let _ = self.screen.finish();
                    return Ok(end);
                }
                Ok(Event::Stats(ask)) => {
                    let bytes = self.asked.ask(ask, Instant::now());
                    self.request(qemu, &bytes);
                }
                Ok(Event::Console(bytes)) => self.console(&bytes)?,
                Ok(Event::Log(bytes)) => {
                    let lines = self.logs.feed(&bytes);
                    self.log(lines);
                }
                Ok(Event::KernelLog(bytes)) => {
                    let lines = self.logs.feed_kernel(&bytes);
                    self.log(lines);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.type_scripts(qemu);
            let now = Instant::now();
            let again = self.asked.tick(now);
            self.request(qemu, &again);
            match ended {
                None => ended = qemu.ended().map(|status| (status, now)),
                Some((status, since)) if open == 0 || now - since > DRAIN => {
                    self.screen.finish()?;
                    let errors = qemu.end();
                    return Ok(self.conclude(status, &errors));
                }
                Some(_) => {}
            }
            if ended.is_none() && deadline.is_some_and(|deadline| now >= deadline) {
                self.screen.finish()?;
                let seconds = self.args.timeout.unwrap_or(0);
                return Ok(Failure::new(Status::TimedOut, format!("time ran out after {seconds} s{}", self.left())));
            }
        }
    }

    fn conclude(&self, status: std::process::ExitStatus, errors: &str) -> Failure {
        let mut end = self.notices.conclude(status, errors, self.last_error.as_ref());
        if end.status == Status::Clean {
            end.text += &self.left();
        }
        end
    }

    /// What of the scripts wasn't typed.
    fn left(&self) -> String {
        match self.scripts.iter().map(Script::left).max() {
            None | Some(0) => String::new(),
            Some(left) => format!("; {left} lines of the script were not typed"),
        }
    }

    /// Starts a thread for each thing that can happen.
    fn sources(&self, paths: &Paths, qemu: &Qemu) -> Result<(Receiver<Event>, Option<Server>), Failure> {
        let (sender, events) = channel();
        let asks = sender.clone();
        let server = Server::start(paths, self.names.clone(), move |ask| asks.send(Event::Stats(ask)).is_ok());
        if let Err(failure) = &server {
            // A guest can do without being watched.
            self.say(&format!("no statistics: {}", failure.text));
        }
        let console = qemu.console.try_clone().context("console")?;
        listen(sender.clone(), console, Event::Console);
        if let Some(log) = &qemu.log {
            listen(sender.clone(), log.try_clone().context("log")?, Event::Log);
        }
        if let Some(log) = &qemu.kernel_log {
            listen(sender.clone(), log.try_clone().context("log")?, Event::KernelLog);
        }
        if self.scripts.is_empty() {
            let sender = sender.clone();
            std::thread::spawn(move || pump(std::io::stdin(), |bytes| sender.send(Event::Keys(bytes)).is_ok()));
        }
        signals::give(move |end| {
            let _ = sender.send(Event::Signal(end));
        });
        Ok((events, server.ok()))
    }

    fn console(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let now = Instant::now();
        let mut pieces = Vec::new();
        self.demux.feed(bytes, |channel, bytes| pieces.push((channel, bytes.to_vec())));
        for (channel, bytes) in pieces {
            if channel == 0 {
                let words = self.notices.feed(&bytes);
                words.iter().for_each(|words| self.say(words));
                self.asked.feed(&bytes, now);
                continue;
            }
            if let Some(script) = self.scripts.get_mut(channel - 1) {
                script.feed(&bytes, now);
            }
            self.screen.show(channel - 1, &bytes)?;
        }
        Ok(())
    }

    fn log(&mut self, lines: Vec<Line>) {
        for line in lines {
            if line.shown {
                self.say(&line.text);
            }
            if line.error {
                self.last_error = Some(line);
            }
        }
    }

    /// A line on standard error, whatever the terminal's mode.
    fn say(&self, text: &str) {
        let end = if self.raw.is_some() { "\r\n" } else { "\n" };
        let _ = write!(std::io::stderr(), "{text}{end}");
    }

    /// Keys from the user; true if they mean to leave.
    fn typed(&mut self, qemu: &mut Qemu, bytes: &[u8]) -> bool {
        if self.raw.is_none() {
            self.send(qemu, self.screen.current(), bytes);
            return false;
        }
        for typed in self.keys.feed(bytes) {
            match typed {
                Typed::Leave => return true,
                Typed::Next => {
                    if let Some(words) = self.screen.next() {
                        self.say(&words);
                    }
                }
                Typed::Help => self.say(HELP),
                Typed::Bytes(bytes) => self.send(qemu, self.screen.current(), &bytes),
            }
        }
        false
    }

    fn type_scripts(&mut self, qemu: &mut Qemu) {
        let now = Instant::now();
        for guest in 0..self.scripts.len() {
            if let Some(line) = self.scripts[guest].next(now) {
                self.send(qemu, guest, line.as_bytes());
            }
        }
    }

    /// Bytes for the line that name their own channel, after which the guest's has to be named anew.
    fn request(&mut self, qemu: &mut Qemu, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.mux = channels::Mux::default();
            let _ = qemu.console.write_all(bytes);
        }
    }

    fn send(&mut self, qemu: &mut Qemu, guest: usize, bytes: &[u8]) {
        // If QEMU is gone, its end is noticed elsewhere.
        let _ = qemu.console.write_all(&self.mux.wrap(guest + 1, bytes));
    }
}

fn listen(sender: Sender<Event>, stream: UnixStream, event: fn(Vec<u8>) -> Event) {
    std::thread::spawn(move || {
        pump(stream, |bytes| sender.send(event(bytes)).is_ok());
        let _ = sender.send(Event::Closed);
    });
}

/// Reads until the end, or until `take` wants no more.
fn pump(mut from: impl Read, mut take: impl FnMut(Vec<u8>) -> bool) {
    let mut buffer = [0; 16384];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !take(buffer[..count].to_vec()) {
            return;
        }
    }
}
