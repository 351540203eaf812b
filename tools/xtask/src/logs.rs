//! Log frames: taken from the log device, decoded with the format strings that stayed in each program's file.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use caisson_proto::console::LOG_MAGIC;
use defmt_decoder::Table;

use crate::cli::LogLevel;
use crate::failure::{Context, Failure};
use crate::image::Built;

/// Magic, slot, length.
const HEADER: usize = 4;
/// A frame that is longer than this is none: something was lost on the way.
const LONGEST: usize = 2048;

/// A message of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The service, or "kernel".
    pub who: String,
    /// The message alone.
    pub what: String,
    /// Time, service, level and message.
    pub text: String,
    /// Whether it reports an error.
    pub error: bool,
    /// Whether the level asked for includes it.
    pub shown: bool,
}

/// Decodes the frames of the kernel and of all services.
pub struct Logs {
    kernel: Option<Rc<Table>>,
    services: Vec<(String, Option<Rc<Table>>)>,
    level: LogLevel,
    pending: Vec<u8>,
    kernel_pending: Vec<u8>,
    /// Bytes that belonged to no frame.
    pub skipped: usize,
}

impl Logs {
    /// For what was built.
    pub fn new(built: &Built, level: LogLevel) -> Result<Self, Failure> {
        let mut tables: HashMap<&Path, Option<Rc<Table>>> = HashMap::new();
        let mut named = Vec::new();
        for service in &built.services {
            let path = service.program.as_path();
            let table = match tables.get(path) {
                Some(table) => table.clone(),
                None => {
                    let table = table(path)?;
                    tables.insert(path, table.clone());
                    table
                }
            };
            named.push((service.name.clone(), table));
        }
        Ok(Self {
            kernel: table(&built.kernel)?,
            services: named,
            level,
            pending: Vec::new(),
            kernel_pending: Vec::new(),
            skipped: 0,
        })
    }

    /// The lines that became complete with `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.pending.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut at = 0;
        while let Some(header) = self.pending.get(at..at + HEADER) {
            let length = usize::from(u16::from_le_bytes([header[2], header[3]]));
            let service = self.services.get(usize::from(header[1]));
            let Some(service) = service.filter(|_| header[0] == LOG_MAGIC && length <= LONGEST) else {
                self.skipped += 1;
                at += 1;
                continue;
            };
            let Some(frame) = self.pending.get(at + HEADER..at + HEADER + length) else { break };
            lines.push(self.decode(Some(service), frame));
            at += HEADER + length;
        }
        self.pending.drain(..at);
        lines
    }

    /// The lines that became complete with bytes of the kernel's own log, in which a zero ends a frame.
    pub fn feed_kernel(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.kernel_pending.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.kernel_pending.iter().position(|byte| *byte == 0) {
            let frame: Vec<u8> = self.kernel_pending.drain(..=end).collect();
            if frame.len() > 1 {
                lines.push(self.decode(None, &frame));
            }
        }
        lines
    }

    /// A line of the kernel's, with services' names and lives in the place of their ids: names are no business of ring 0.
    fn named(&self, line: &str) -> String {
        const ID: &str = "ServiceId(";
        let mut pieces = line.split(ID);
        let mut text = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (number, rest) = piece.split_once(')').unwrap_or((piece, ""));
            let id = match number.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            match id.ok().and_then(|id| Some((self.services.get((id & 0xffff) as usize)?, id >> 16))) {
                Some(((name, _), life)) => text += &format!("{name}, life {life}{rest}"),
                None => text += &format!("{ID}{piece}"),
            }
        }
        text
    }

    /// A frame of a service, or of the kernel.
    fn decode(&self, service: Option<&(String, Option<Rc<Table>>)>, frame: &[u8]) -> Line {
        let (name, table) = service.map_or(("kernel", &self.kernel), |(name, table)| (name.as_str(), table));
        let odd = |what: String| Line {
            text: format!("{name}: {what}"),
            who: name.into(),
            what,
            error: false,
            shown: self.level <= LogLevel::Warn,
        };
        let Some(table) = table else {
            return odd(format!("a log frame of {} bytes, but no format strings", frame.len()));
        };
        let mut decoder = table.new_stream_decoder();
        decoder.received(frame);
        match decoder.decode() {
            Ok(frame) => {
                let word = frame.level().map_or("info", |level| level.as_str());
                let level = rank(word);
                let time = frame.display_timestamp().map(|time| time.to_string()).unwrap_or_default();
                let mut what = frame.display_message().to_string();
                if service.is_none() {
                    what = self.named(&what);
                }
                let text = format!("[{time:>12}] {name:<12} {:<5} {what}", word.to_uppercase());
                Line { who: name.into(), what, text, error: level == LogLevel::Error, shown: level >= self.level }
            }
            Err(_) => odd(format!("a log frame that can't be decoded: {frame:02x?}")),
        }
    }
}

fn rank(level: &str) -> LogLevel {
    match level {
        "trace" => LogLevel::Trace,
        "debug" => LogLevel::Debug,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        _ => LogLevel::Info,
    }
}

fn table(path: &Path) -> Result<Option<Rc<Table>>, Failure> {
    let elf = std::fs::read(path).about("read", path)?;
    let table = Table::parse(&elf).context(format_args!("format strings of {}", path.display()))?;
    Ok(table.map(Rc::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(level: LogLevel) -> Logs {
        Logs {
            kernel: None,
            services: vec![("memory".into(), None)],
            level,
            pending: Vec::new(),
            kernel_pending: Vec::new(),
            skipped: 0,
        }
    }

    #[test]
    fn frames_are_found_however_they_are_cut_and_noise_is_skipped() {
        let mut bytes = vec![0, LOG_MAGIC, 77];
        bytes.extend([LOG_MAGIC, 0, 2, 0, 9, 9, LOG_MAGIC, 0, 1, 0, 9]);
        for cut in 0..bytes.len() {
            let mut logs = logs(LogLevel::Info);
            let lines = [logs.feed(&bytes[..cut]), logs.feed(&bytes[cut..])].concat();
            assert_eq!(lines.len(), 2, "cut at {cut}");
            assert!(lines.iter().all(|line| line.text.starts_with("memory:")));
            assert_eq!(logs.skipped, 3);
        }
    }

    #[test]
    fn the_kernels_frames_end_with_a_zero() {
        let mut logs = logs(LogLevel::Info);
        assert!(logs.feed_kernel(&[9, 9]).is_empty());
        let lines = logs.feed_kernel(&[9, 0, 0, 9, 0]);
        assert!(lines.len() == 2 && lines.iter().all(|line| line.text.starts_with("kernel:")));
    }

    #[test]
    fn the_kernels_lines_name_services() {
        let logs = logs(LogLevel::Info);
        let line = "Refused(ServiceId(65536), 0x5, Denied) ServiceId(0x20000) ServiceId(7)";
        assert_eq!(logs.named(line), "Refused(memory, life 1, 0x5, Denied) memory, life 2 ServiceId(7)");
        assert_eq!(logs.named("plain"), "plain");
    }

    #[test]
    fn nothing_is_shown_when_off() {
        assert!(!logs(LogLevel::Off).feed(&[LOG_MAGIC, 0, 0, 0])[0].shown);
    }
}
