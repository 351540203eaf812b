//! A running machine's socket, at which others ask for its statistics and order how much memory its VMs are to have: a request is a line, the answer is `ok` in a line and then
//! what was asked for, or a line that says why not.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use caisson_proto::console::Knob;

use crate::failure::{Context, Failure};
use crate::paths::{Paths, make_folder};

/// Asks for the VMs' names, a line each.
pub const VMS: &str = "vms";
/// Asks, with a VM's number, for its pages.
pub const STATS: &str = "stats";
/// Orders, with a VM's number, a knob's letter and a number of bytes, how much memory it is to have.
pub const RESIZE: &str = "resize";
/// Longest request in bytes.
const LONGEST: u64 = 64;
/// How long a request may take to arrive, or an answer to be taken.
const SLOW: Duration = Duration::from_secs(5);

/// Somebody asks for a VM's statistics.
#[derive(Debug)]
pub struct Ask {
    /// The VM's channel on the console: its number.
    pub channel: u8,
    /// Instead of asking, they order how much memory it is to have.
    pub order: Option<(Knob, u64)>,
    stream: UnixStream,
}

impl Ask {
    /// Somebody at the other end of `stream` asks for the VM with this channel.
    pub fn new(channel: u8, stream: UnixStream) -> Self {
        Self { channel, order: None, stream }
    }

    /// Answers. Who went away needs none.
    pub fn answer(mut self, result: Result<&[u8], &str>) {
        let _ = match result {
            Ok(bytes) => self.stream.write_all(b"ok\n").and_then(|()| self.stream.write_all(bytes)),
            Err(why) => writeln!(self.stream, "{why}"),
        };
    }
}

/// The socket; it goes away with this.
#[derive(Debug)]
pub struct Server(PathBuf);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Server {
    /// Serves requests about VMs with these names. `ask` gets those that the machine itself has to answer; false: it is over.
    pub fn start(
        paths: &Paths, vms: Vec<String>, ask: impl Fn(Ask) -> bool + Clone + Send + 'static,
    ) -> Result<Self, Failure> {
        make_folder(&paths.sockets())?;
        let path = paths.sockets().join(format!("{}.sock", std::process::id()));
        // It has its name when it listens: who looks for machines before would take it for a dead one's. Nothing may be left of a
        // process that had this number before.
        let new = path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let listener = UnixListener::bind(&new).about("make socket", &new)?;
        std::fs::rename(&new, &path).about("name socket", &path)?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (vms, ask) = (vms.clone(), ask.clone());
                std::thread::spawn(move || serve(stream, &vms, &ask));
            }
        });
        Ok(Self(path))
    }
}

fn serve(stream: UnixStream, vms: &[String], ask: &impl Fn(Ask) -> bool) {
    let prepared = stream.set_read_timeout(Some(SLOW)).and_then(|()| stream.set_write_timeout(Some(SLOW)));
    let Ok(reading) = prepared.and_then(|()| stream.try_clone()) else { return };
    let mut line = String::new();
    let heard = BufReader::new(reading.take(LONGEST)).read_line(&mut line);
    if heard.is_err() || line.is_empty() {
        return;
    }
    let mut ask_for = Ask::new(0, stream);
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [VMS] => ask_for.answer(Ok(vms.iter().map(|name| format!("{name}\n")).collect::<String>().as_bytes())),
        [STATS, number] | [RESIZE, number, _, _] => match number.parse::<u8>() {
            Ok(number) if (1..=vms.len()).contains(&usize::from(number)) => {
                ask_for.channel = number;
                ask_for.order = order(&words);
                if words.len() > 2 && ask_for.order.is_none() {
                    return ask_for.answer(Err("no such request"));
                }
                ask(ask_for);
            }
            _ => ask_for.answer(Err(&format!("no VM has number {number}; there are {}", vms.len()))),
        },
        _ => ask_for.answer(Err("no such request")),
    }
}

/// What is ordered by these words.
fn order(words: &[&str]) -> Option<(Knob, u64)> {
    let [_, _, letter, bytes] = words else { return None };
    let knob = Knob::ALL.iter().find(|knob| letter.as_bytes() == [knob.letter()])?;
    Some((*knob, bytes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(path: &std::path::Path, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(line).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn requests_are_answered_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { root: folder.path().into(), target: folder.path().into() };
        let names = vec!["web".to_owned(), "db".to_owned()];
        let server = Server::start(&paths, names, |ask| {
            let order = ask.order.map(|(_, bytes)| bytes.to_string());
            ask.answer(Ok(order.as_deref().unwrap_or("pages").as_bytes()));
            true
        });
        let server = server.unwrap();
        let path = server.0.clone();
        assert_eq!(asks(&path, b"vms\n"), "ok\nweb\ndb\n");
        assert_eq!(asks(&path, b"stats 2\n"), "ok\npages");
        for number in ["0", "3", "-1", "x"] {
            let answer = asks(&path, format!("stats {number}\n").as_bytes());
            assert!(answer.starts_with("no VM has number"), "{answer}");
        }
        assert_eq!(asks(&path, b"resize 1 b 4096\n"), "ok\n4096");
        assert!(asks(&path, b"resize 3 b 4096\n").starts_with("no VM has number 3"));
        for bad in [&b"resize 1 x 4096\n"[..], b"resize 1 b -1\n", b"resize 1 b\n", b"resize\n"] {
            assert_eq!(asks(&path, bad), "no such request\n");
        }
        for bad in [&b"stats\n"[..], b"stats 1 2\n", b"STATS 1\n", &[b'x'; 60]] {
            assert_eq!(asks(&path, bad), "no such request\n");
        }
        assert_eq!(asks(&path, b"\xff\n"), "");
        drop(server);
        assert!(!path.exists());
    }
}
