//! A QEMU process with its console and its log as streams. It is ended by its own process id and always reaped.

use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::failure::{Context, Failure, Status};
use crate::setup;

/// How long QEMU may take to connect to its console.
const CONNECT: Duration = Duration::from_secs(20);

/// A running QEMU.
pub struct Qemu {
    child: Child,
    /// The serial line, both ways.
    pub console: UnixStream,
    /// The services' log device, if the machine has one.
    pub log: Option<UnixStream>,
    /// The kernel's.
    pub kernel_log: Option<UnixStream>,
    /// When the process was started.
    pub started: Instant,
    errors: Option<JoinHandle<String>>,
}

impl Qemu {
    /// Starts QEMU with these arguments, a serial line and, if asked for, the log devices. Sockets lie in `folder`.
    pub fn start(folder: &Path, arguments: &[String], log: bool) -> Result<Self, Failure> {
        let program = setup::qemu()?;
        // Where util-linux is there, QEMU can't outlive xtask even if that is killed.
        let mut command = match crate::paths::program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        command.args(arguments);
        let console = listen(folder, "console", &mut command)?;
        command.args(["-serial", "chardev:console"]);
        let mut device = |name: &str, port: &str| -> Result<Option<UnixListener>, Failure> {
            if !log {
                return Ok(None);
            }
            let listener = listen(folder, name, &mut command)?;
            command.args(["-device", &format!("isa-debugcon,iobase={port},chardev={name}")]);
            Ok(Some(listener))
        };
        let (log, kernel_log) = (device("log", "0xe9")?, device("kernel-log", "0xe8")?);
        // In a process group of its own, so that the terminal's Ctrl-C reaches xtask only.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().context("can't start QEMU")?;
        let errors = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = stderr.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        let mut accept = |listener: &UnixListener| accept(listener, &mut child, started);
        let streams = accept(&console).and_then(|console| {
            let mut maybe = |listener: &Option<UnixListener>| listener.as_ref().map(&mut accept).transpose();
            Ok((console, maybe(&log)?, maybe(&kernel_log)?))
        });
        match streams {
            Ok((console, log, kernel_log)) => Ok(Self { child, console, log, kernel_log, started, errors }),
            Err(why) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
                Err(Failure::new(Status::Faulted, format!("{why}: {}", said.trim())))
            }
        }
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it, if it still runs, and returns what it wrote as errors.
    pub fn end(&mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

/// Makes a socket that QEMU connects to, under the name of a character device.
fn listen(folder: &Path, name: &str, command: &mut Command) -> Result<UnixListener, Failure> {
    let path = folder.join(name);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).about("make socket", &path)?;
    listener.set_nonblocking(true).about("prepare socket", &path)?;
    command.arg("-chardev").arg(format!("socket,id={name},path={}", path.display()));
    Ok(listener)
}

fn accept(listener: &UnixListener, child: &mut Child, started: Instant) -> Result<UnixStream, String> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                return stream.set_nonblocking(false).map(|()| stream).map_err(|error| error.to_string());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("no connection to QEMU: {error}")),
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("QEMU ended at once ({status})"));
        }
        if started.elapsed() > CONNECT {
            return Err("QEMU doesn't connect to its console".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
