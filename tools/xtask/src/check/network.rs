//! Two guests with Linux's own virtio_net in one network, and a third in another: those two reach each other, what one sends the
//! other has, the switch is killed under it and the connection goes on, and nobody reaches the third.

use std::time::Duration;

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::failure::Status;
use crate::paths::Paths;

/// One kernel has its modules packed, the other not.
const GUESTS: [(&str, &str); 3] = [
    ("a", "vcpus = 1\nmemory = \"256M\"\nnetwork = \"lan\"\n"),
    (
        "b",
        "vcpus = 2\nmemory = \"256M\"\nnetwork = \"lan\"\nkernel = \"debian:linux-image-6.12.*-cloud-amd64\"\n\
         mac = \"02:00:00:00:00:2a\"\n",
    ),
    ("c", "vcpus = 1\nmemory = \"256M\"\nnetwork = \"elsewhere\"\n"),
];
/// Bytes that are sent.
const BYTES: usize = 12 << 20;
/// How long the connection has been used before the switch is killed, each time.
const HEADSTART: [Duration; 3] = [Duration::from_millis(150), Duration::from_millis(400), Duration::from_millis(50)];
/// How long sending may take.
const TRANSFER: Duration = Duration::from_secs(60);

/// The whole step.
pub fn run(paths: &Paths) -> Outcome {
    match lived(paths) {
        Ok(checks) => Outcome::passed(checks),
        Err(why) => Outcome::failed(why),
    }
}

/// What a guest said that a line's sum is; the last time.
fn sum(text: &str, name: &str) -> Option<String> {
    let marked = text.rsplit(&format!("{name}=<")).next()?;
    let sum = marked.get(..64)?;
    sum.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| sum.to_owned())
}

/// Sends from one guest to the other, and kills the switch meanwhile so often.
fn transfer(machine: &mut Witness, port: u16, (from, to): (usize, usize), kills: &[Duration]) -> Result<(), String> {
    let address = ["10.0.0.1", "10.0.0.42"][to];
    machine.types(to, &format!("nc -l -p {port} | sha256sum | sed 's/^/got{port}=</'"));
    let make =
        format!("seq {port} 9000000 | head -c {BYTES} > /tmp/f; sed 's/^/sent{port}=</' <<E\n$(sha256sum < /tmp/f)\nE");
    machine.types(from, &make);
    machine.until("the sum of what is to be sent", TRANSFER, |this| {
        sum(this.text(from), &format!("sent{port}")).is_some()
    })?;
    machine.types(from, &format!("nc {address} {port} < /tmp/f; echo over=$(({port}*3))"));
    for headstart in kills {
        machine.watches(*headstart)?;
        let lives = machine.lives("switch");
        machine.kill("switch")?;
        machine.until("another life of the switch", SOON, |this| this.lives("switch") > lives)?;
    }
    machine.until("the end of the sending", TRANSFER, |this| {
        this.wrote(from, &format!("over={}\r", u32::from(port) * 3))
    })?;
    machine.until("the sum of what came", TRANSFER, |this| sum(this.text(to), &format!("got{port}")).is_some())?;
    let sums = (sum(machine.text(from), &format!("sent{port}")), sum(machine.text(to), &format!("got{port}")));
    if sums.0 == sums.1 { Ok(()) } else { Err(machine.told(&format!("sent and got have the sums {sums:?}"))) }
}

fn lived(paths: &Paths) -> Result<usize, String> {
    let mut machine = Witness::boot(paths, None, &GUESTS).map_err(|failure| failure.text)?;
    machine.is_up()?;
    machine.asks(0, "ping -c 3 -W 5 10.0.0.42 && echo pinged=$((6*7))", "pinged=42\r", SOON)?;
    machine.asks(1, "ping -c 3 -s 1472 -W 5 10.0.0.1 && echo pinged=$((6*8))", "pinged=48\r", SOON)?;
    // Another network: whether it is there can't even be asked.
    machine.asks(0, "ping -c 2 -W 2 10.0.0.3 || echo alone=$((6*9))", "alone=54\r", SOON)?;
    machine.asks(2, "ping -c 2 -W 2 10.0.0.1 || echo alone=$((6*9))", "alone=54\r", SOON)?;
    // A frame from another's address goes nowhere.
    let foreign = "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:2a; ip link set eth0 up; \
                   ping -c 2 -W 2 10.0.0.42 || echo refused=$((5*5)); ip link set eth0 down; \
                   ip link set eth0 address 02:00:00:00:00:01; ip link set eth0 up";
    machine.asks(0, foreign, "refused=25\r", SOON)?;
    machine.asks(0, "ping -c 3 -W 5 10.0.0.42 && echo again=$((7*7))", "again=49\r", SOON)?;
    transfer(&mut machine, 5001, (0, 1), &[])?;
    transfer(&mut machine, 5002, (1, 0), &HEADSTART)?;
    machine.kill("vmm-b")?;
    machine.until("the end of vmm-b", SOON, |this| this.logged("kernel", "Killed(vmm-b, life 0)"))?;
    machine.asks(0, "ping -c 2 -W 2 10.0.0.42 || echo gone=$((8*8))", "gone=64\r", SOON)?;
    for guest in [0, 2] {
        machine.types(guest, "poweroff -f");
    }
    let end = machine.ends(BOOT)?;
    if end.status != Status::Faulted || !end.text.contains("service \"vmm-b\" was killed") {
        return Err(machine.told(&format!("it ended with {:?}: {}", end.status, end.text)));
    }
    if machine.lines.iter().any(|line| line.what.contains("virtio device")) {
        return Err(machine.told("a card complained of its driver"));
    }
    match machine.account() {
        Some((before, after, 0)) if before == after => Ok(9),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sum_is_taken() {
        let (zeros, ones) = ("0".repeat(64), "1".repeat(64));
        let text = format!("got1=<$(sum)\r\ngot1=<{zeros}  -\r\ngot1=<{ones}  -\r\n");
        assert_eq!(sum(&text, "got1"), Some(ones));
        assert_eq!((sum("got1=<12", "got1"), sum("", "got1")), (None, None));
    }
}
