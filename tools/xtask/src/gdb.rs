//! `--gdb`: QEMU waits for a debugger.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use crate::failure::{Context, Failure};

/// The port that QEMU's manual uses.
const USUAL: u16 = 1234;
/// Where the kernel begins, once the board knows the machine.
const START: &str = "caisson_kernel::start::start";

/// QEMU's arguments, and the command that attaches a debugger.
pub fn wait(kernel: &Path) -> Result<(Vec<String>, String), Failure> {
    let port = free(USUAL)?;
    // On this machine only: whoever connects can do everything.
    let arguments = vec!["-gdb".into(), format!("tcp:127.0.0.1:{port}"), "-S".into()];
    // A breakpoint of the hardware's: the CPU is at its first instruction and nothing is loaded yet.
    let command =
        format!("gdb -ex 'target remote 127.0.0.1:{port}' -ex 'hbreak {START}' -ex continue '{}'", kernel.display());
    Ok((arguments, command))
}

/// The port asked for, if nobody has it, or another.
fn free(usual: u16) -> Result<u16, Failure> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = bind(usual).or_else(|_| bind(0)).context("no port for the debugger")?;
    Ok(listener.local_addr().context("no port for the debugger")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_somebody_has_is_not_used() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert_ne!(free(port).unwrap(), port);
        drop(taken);
        assert_eq!(free(port).unwrap(), port);
    }
}
