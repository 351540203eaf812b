//! `cargo xtask stats`: what a running machine counts. `serve` and `collect` are the side of `cargo xtask run`, this file and
//! `show` are the reader's.

pub mod collect;
pub mod memory;
pub mod serve;
mod show;

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use caisson_proto::stats::{VM_PAGE, vcpu_page};
use caisson_stats::{Block, read};

use crate::cli::StatsArgs;
use crate::failure::{Context, Failure, Status};
use crate::paths::Paths;
use show::Rates;

/// Bytes of a page.
const PAGE: usize = caisson_proto::addr::PAGE_SIZE as usize;
/// How often `--watch` reads.
const EACH: Duration = Duration::from_secs(1);
/// How long a machine may take to answer; it gives up itself before.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `cargo xtask run`.
#[derive(Clone, Debug)]
pub struct Machine {
    pid: u32,
    socket: PathBuf,
}

/// A VM's statistics.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its number, from 1.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Its pages with blocks, each with what is in it: the VM's first.
    pub blocks: Vec<(Vec<u8>, Block)>,
}

/// The machine with this process id, or the only one that runs.
pub fn find(paths: &Paths, pid: Option<u32>) -> Result<Machine, Failure> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(paths.sockets()).into_iter().flatten().flatten() {
        let socket = file.path();
        let number = socket.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(number) = number.filter(|number| pid.is_none_or(|pid| pid == *number)) else { continue };
        match UnixStream::connect(&socket) {
            Ok(_) => found.push(Machine { pid: number, socket }),
            // Left by one that was killed.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => _ = std::fs::remove_file(&socket),
            Err(_) => {}
        }
    }
    found.sort_by_key(|machine| machine.pid);
    match (found.as_slice(), pid) {
        ([one], _) => Ok(one.clone()),
        ([], Some(pid)) => Err(Failure::setup(format!("no machine runs in process {pid}"))),
        ([], None) => Err(Failure::setup("no machine runs; start one with `cargo xtask run` in another terminal")),
        (several, _) => {
            let pids: Vec<String> = several.iter().map(|machine| format!("--pid {}", machine.pid)).collect();
            Err(Failure::setup(format!("{} machines run; say which: {}", several.len(), pids.join(" or "))))
        }
    }
}

impl Machine {
    /// Asks for something; `None` if the machine has ended.
    fn ask(&self, request: &str) -> Result<Option<Vec<u8>>, Failure> {
        let Ok(mut stream) = UnixStream::connect(&self.socket) else { return Ok(None) };
        let mut answer = Vec::new();
        let asked = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| writeln!(stream, "{request}"))
            .and_then(|()| stream.read_to_end(&mut answer));
        if answer.is_empty() && asked.as_ref().map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true) {
            return Ok(None);
        }
        asked.map_err(|error| Failure::new(Status::Failed, format!("machine {}: {error}", self.pid)))?;
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap_or(answer.len());
        let rest = answer.split_off((end + 1).min(answer.len()));
        match std::str::from_utf8(&answer).unwrap_or_default().trim_end() {
            "ok" => Ok(Some(rest)),
            said => Err(Failure::new(Status::Failed, format!("machine {}: {said}", self.pid))),
        }
    }

    /// The VMs' names; `None` if the machine has ended.
    pub fn vms(&self) -> Result<Option<Vec<String>>, Failure> {
        let names = self.ask(serve::VMS)?;
        Ok(names.map(|names| String::from_utf8_lossy(&names).lines().map(String::from).collect()))
    }

    /// The statistics of a VM by its number; `None` if the machine has ended.
    pub fn read(&self, number: usize, name: &str) -> Result<Option<Vm>, Failure> {
        let Some(pages) = self.ask(&format!("{} {number}", serve::STATS))? else { return Ok(None) };
        let mut blocks = Vec::new();
        for (at, page) in pages.chunks_exact(PAGE).enumerate() {
            if at != VM_PAGE && page.iter().all(|byte| *byte == 0) {
                continue;
            }
            let block = read(page)
                .map_err(|why| Failure::new(Status::Failed, format!("statistics of \"{name}\", page {at}: {why}")))?;
            blocks.push((page[..block.bytes].to_vec(), block));
        }
        Ok(Some(Vm { number, name: name.into(), blocks }))
    }
}

impl Vm {
    /// Those of its vCPUs.
    pub fn vcpus(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().skip(vcpu_page(0)).map(|(_, block)| block)
    }
}

/// The numbers of the VMs asked for: all of them, or one by name or number.
fn wanted(names: &[String], vm: Option<&str>) -> Result<Vec<usize>, Failure> {
    let Some(vm) = vm else { return Ok((1..=names.len()).collect()) };
    let by_name = names.iter().position(|name| name == vm).map(|at| at + 1);
    let number = by_name.or_else(|| vm.parse().ok().filter(|number| (1..=names.len()).contains(number)));
    number.map(|number| vec![number]).ok_or_else(|| {
        let all: Vec<String> = names.iter().enumerate().map(|(at, name)| format!("{} \"{name}\"", at + 1)).collect();
        Failure::setup(format!("no VM is {vm:?}; there are {}", all.join(", ")))
    })
}

/// Leaves only the vCPU asked for.
fn pick(vm: &mut Vm, vcpu: Option<usize>) -> Result<(), Failure> {
    let Some(index) = vcpu else { return Ok(()) };
    let count = vm.vcpus().count();
    if index >= count {
        return Err(Failure::setup(format!("\"{}\" has no vCPU {index}: it has {count}, counted from 0", vm.name)));
    }
    vm.blocks = vec![vm.blocks.swap_remove(vcpu_page(index))];
    Ok(())
}

/// The command.
pub fn stats(paths: &Paths, args: &StatsArgs) -> Result<(), Failure> {
    let machine = find(paths, args.pid)?;
    let ended = || Failure::setup(format!("machine {} has ended", machine.pid));
    let names = machine.vms()?.ok_or_else(ended)?;
    let numbers = wanted(&names, args.vm.as_deref())?;
    let mut rates = Rates::default();
    loop {
        let start = Instant::now();
        let mut vms = Vec::new();
        for number in &numbers {
            match machine.read(*number, &names[number - 1])? {
                Some(vm) => vms.push(vm),
                None if args.watch && rates.is_begun() => return Ok(()),
                None => return Err(ended()),
            }
        }
        vms.iter_mut().try_for_each(|vm| pick(vm, args.vcpu))?;
        rates.feed(&vms, start);
        if let Some(file) = &args.raw {
            let bytes: Vec<u8> = vms.iter().flat_map(|vm| &vm.blocks).flat_map(|(bytes, _)| bytes.clone()).collect();
            std::fs::write(file, bytes).about("write", file)?;
        }
        if args.json {
            say(&format!("{}\n", show::json(machine.pid, &vms)))?;
        } else if args.raw.is_none() {
            // From the first place, and nothing of before below it.
            let clear = if args.watch && std::io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
            say(&format!("{clear}{}", show::table(&vms, &rates)))?;
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(EACH.saturating_sub(start.elapsed()));
    }
}

/// On standard output. Who reads no further has seen enough.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.context("can't write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_found_by_name_or_number() {
        let names = ["web".to_owned(), "1".to_owned()];
        assert_eq!(wanted(&names, None).unwrap(), [1, 2]);
        assert_eq!(wanted(&names, Some("web")).unwrap(), [1]);
        assert_eq!(wanted(&names, Some("1")).unwrap(), [2], "a name comes first");
        assert_eq!(wanted(&names, Some("2")).unwrap(), [2]);
        for none in ["0", "3", "db", ""] {
            let error = wanted(&names, Some(none)).unwrap_err();
            assert!(error.status == Status::BadSetup && error.text.contains("1 \"web\", 2 \"1\""), "{}", error.text);
        }
    }

    #[test]
    fn without_a_machine_it_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths { root: folder.path().into(), target: folder.path().into() };
        let error = find(&paths, None).unwrap_err();
        assert!(error.status == Status::BadSetup && error.text.contains("cargo xtask run"), "{}", error.text);
        assert!(find(&paths, Some(7)).unwrap_err().text.contains("process 7"));
        // One that was killed leaves its socket, which means nothing.
        std::fs::create_dir_all(paths.sockets()).unwrap();
        let socket = paths.sockets().join("7.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(find(&paths, None).is_err() && !socket.exists());
        // Several.
        let _both = ["8.sock", "9.sock"].map(|name| std::os::unix::net::UnixListener::bind(paths.sockets().join(name)));
        assert!(find(&paths, None).unwrap_err().text.contains("--pid 8 or --pid 9"));
        assert_eq!(find(&paths, Some(9)).unwrap().pid, 9);
    }
}
