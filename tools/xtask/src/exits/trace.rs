//! Every instruction that QEMU executes, for a moment: it logs one block of translated code after the other, and with
//! one instruction a block that is all of them.

use std::io::{BufRead, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Bench, take};
use crate::failure::{Context, Failure, Status};

/// Bytes of log that hold enough round trips.
const ENOUGH: u64 = 6 << 20;
/// How long each step may take.
const LONGEST: Duration = Duration::from_secs(60);

/// Where an instruction was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In a guest.
    Guest,
    /// In ring 3.
    Service,
    /// In ring 0.
    Kernel,
}

/// One executed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executed {
    /// Its address.
    pub address: u64,
    /// Whose it is.
    pub side: Side,
}

/// Runs the bench until its console or log has said `when`, then logs for a moment.
pub fn record(bench: &Bench, when: &str) -> Result<Vec<Executed>, Failure> {
    let (socket, log) = (bench.folder.path().join("monitor"), bench.folder.path().join("trace"));
    let more = ["-monitor".into(), format!("unix:{},server=on,wait=off", socket.display())];
    let mut qemu = bench.start(true, &more)?;
    let late = |what: &str| Failure::new(Status::Failed, format!("{what} in {} s", LONGEST.as_secs()));
    let mut said = Vec::new();
    let streams = [Some(qemu.console.try_clone().context("console")?), qemu.log.take(), qemu.kernel_log.take()];
    let mut streams: Vec<UnixStream> = streams.into_iter().flatten().collect();
    for stream in &streams {
        stream.set_read_timeout(Some(Duration::from_millis(5))).context("console")?;
    }
    let mut logs = crate::logs::Logs::new(&bench.built, crate::cli::LogLevel::Info)?;
    let mut hear = |streams: &mut [UnixStream]| {
        for (at, stream) in streams.iter_mut().enumerate() {
            take(stream, |bytes| match at {
                0 => said.extend_from_slice(bytes),
                1 => logs.feed(bytes).iter().for_each(|line| said.extend_from_slice(line.what.as_bytes())),
                _ => {}
            });
        }
        String::from_utf8_lossy(&said).contains(when)
    };
    while !hear(&mut streams) {
        if qemu.started.elapsed() > LONGEST {
            return Err(late("the bench didn't come to what is to be looked at"));
        }
    }
    let mut monitor = UnixStream::connect(&socket).about("reach QEMU's monitor at", &socket)?;
    let commands = format!("singlestep on\nlogfile {}\nlog exec,nochain\n", log.display());
    monitor.write_all(commands.as_bytes()).context("QEMU's monitor")?;
    let start = Instant::now();
    while std::fs::metadata(&log).map_or(0, |data| data.len()) < ENOUGH {
        if start.elapsed() > LONGEST {
            return Err(late("QEMU didn't log what it executes"));
        }
        hear(&mut streams);
    }
    qemu.end();
    read(&log)
}

fn read(log: &Path) -> Result<Vec<Executed>, Failure> {
    let file = std::fs::File::open(log).about("read", log)?;
    let lines = std::io::BufReader::new(file).split(b'\n').map_while(Result::ok);
    Ok(lines.filter_map(|line| parse(&String::from_utf8_lossy(&line))).collect())
}

/// `Trace CPU: HOST [BASE/ADDRESS/FLAGS/…] …`. The flags are QEMU's: bits 1:0 the CPL, bit 21 in a guest.
fn parse(line: &str) -> Option<Executed> {
    let inside = line.strip_prefix("Trace ")?.split_once('[')?.1;
    let mut numbers = inside.split('/').skip(1).map(|number| u64::from_str_radix(number, 16));
    let (address, flags) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let side = match flags {
        _ if flags >> 21 & 1 == 1 => Side::Guest,
        _ if flags & 3 == 3 => Side::Service,
        _ => Side::Kernel,
    };
    Some(Executed { address, side })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = "Trace 0: 0x7f124045ab40 [0000000000000000/ffffffff8020e4ad/08d0cab0/ff020201] name";
        assert_eq!(parse(line), Some(Executed { address: 0xffff_ffff_8020_e4ad, side: Side::Kernel }));
        let line = "Trace 0: 0x7f124045ab40 [0000000000000000/0000000000100000/08d0cab3/ff020201] ";
        assert_eq!(parse(line).map(|one| one.side), Some(Side::Service));
        let line = "Trace 0: 0x7f124045ab40 [0000000000000000/0000000000100000/0820c0b0/ff020201] ";
        assert_eq!(parse(line).map(|one| one.side), Some(Side::Guest));
        assert_eq!(parse("Stopped execution of TB chain before"), None);
    }
}
