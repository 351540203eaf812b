//! `--gdb`: QEMU waits for a debugger.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use crate::failure::{Context, Failure};

/// The port that QEMU's manual uses.
pub const USUAL: u16 = 1234;
/// Where the kernel begins, once the board knows the machine.
const START: &str = "caisson_kernel::start::start";

/// QEMU's arguments, and the command that attaches a debugger.
pub fn wait(kernel: &Path, usual: u16) -> Result<(Vec<String>, String), Failure> {
    let bind = |port| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()?.port());
    let port = free(usual, bind).context("no port for the debugger")?;
    // On this machine only: whoever connects can do everything.
    let arguments = vec!["-gdb".into(), format!("tcp:127.0.0.1:{port}"), "-S".into()];
    // A breakpoint of the hardware's: the CPU is at its first instruction and nothing is loaded yet.
    let command =
        format!("gdb -ex 'target remote 127.0.0.1:{port}' -ex 'hbreak {START}' -ex continue '{}'", kernel.display());
    Ok((arguments, command))
}

/// The port asked for, if nobody has it, or another. `bind` tells the port it got; 0 asks for any.
fn free(usual: u16, bind: impl Fn(u16) -> io::Result<u16>) -> io::Result<u16> {
    bind(usual).or_else(|_| bind(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ports are judged by a table: what the machine hands out may be somebody else's a moment later.
    #[test]
    fn a_port_that_somebody_has_is_not_used() {
        let taken = |port| match port {
            USUAL => Err(io::ErrorKind::AddrInUse.into()),
            0 => Ok(40_000),
            port => Ok(port),
        };
        assert_eq!(free(USUAL, taken).unwrap(), 40_000);
        assert_eq!(free(2345, taken).unwrap(), 2345);
        assert!(free(USUAL, |_| Err(io::ErrorKind::AddrInUse.into())).is_err());
    }

    #[test]
    fn the_machine_tells_a_port_that_is_taken() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let (arguments, command) = wait(Path::new("kernel"), port).unwrap();
        assert!(!arguments.iter().chain([&command]).any(|word| word.contains(&format!(":{port}"))));
    }
}
