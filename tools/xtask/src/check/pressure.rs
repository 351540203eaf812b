//! Guests that may have more memory than there is, at work on data that they check again and again, while their balloons and
//! their plugged memory change, and memory and notifier are killed. No page may be lost or be another's, and in the end every
//! frame is there.
//!
//! A seed says who is changed and killed when. How fast the guests work it can't say, so a seed doesn't repeat a run exactly.

use std::time::{Duration, Instant};

use caisson_manifest::Size;
use caisson_proto::console::Knob;

use super::Outcome;
use super::witness::{BOOT, SOON, Witness};
use crate::cli::SoakArgs;
use crate::failure::{Failure, Status};
use crate::image;
use crate::paths::Paths;

/// The guests: 256 MiB each, and as much again that can be plugged.
const GUESTS: usize = 3;
const FILE: &str = "vcpus = 1\nmemory = \"256M\"\npromised = \"96M\"\nmemory-max = \"512M\"\nballoon = true\n";
const NAMES: [&str; GUESTS] = ["a", "b", "c"];
/// One more, which makes its memory private and shared again meanwhile, and where it is among the guests.
const CONVERTS: (&str, usize) = ("private", GUESTS);
/// The machine's memory: less than the guests have in all even if nothing is plugged, and little more than they use.
const MACHINE: Size = Size(632 << 20);
/// Rounds that each guest does at the least, and how much longer than it should that may take where the host is slow.
const ROUNDS: usize = 2;
const SLOW: Duration = Duration::from_secs(300);
/// What the balloons and the plugged memory are at the most.
const BALLOON: u64 = 48 << 20;
const PLUG: u64 = 128 << 20;
const STEP: u64 = 2 << 20;

/// The guest's work: files of random data, of which the oldest is replaced and another one checked, until it is told to stop. Now
/// and then it has none for a while.
const WORK: [&str; 4] = [
    "mkdir /m; mount -t tmpfs -o size=300M none /m",
    "holds() { [ ! -e /s$1 ] || [ \"$(sha256sum < /m/f$1)\" = \"$(cat /s$1)\" ] || echo lost=$((1+$1)); }",
    "fills() { rm -f /s$1 /m/f$1; head -c 16000000 /dev/urandom | tee /m/f$1 | sha256sum > /t; mv /t /s$1; }",
    "n=0; (while [ ! -e /end ]; do n=$((n+1)); fills $((n%5)); holds $(((n*3+1)%5)); echo round=$n; \
     [ $((n%8)) = 0 ] && { rm -f /s* /m/*; sleep 4; }; done; for i in 0 1 2 3 4; do holds $i; done; echo rested=$((n*0))) &",
];

/// Random numbers by a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Below a limit.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// A size up to a limit.
    fn size(&mut self, most: u64) -> u64 {
        self.below(most / STEP + 1) * STEP
    }
}

/// What came of it.
#[derive(Debug)]
struct Done {
    rounds: usize,
    resizes: usize,
    kills: usize,
}

/// The step of `cargo xtask test`.
pub fn run(paths: &Paths) -> Outcome {
    match pressed(paths, Duration::from_secs(45), 1, false) {
        Ok(_) => Outcome::passed(1),
        Err(why) => Outcome::failed(format!("{why} (cargo xtask soak --minutes 1 --seed 1)")),
    }
}

/// The command.
pub fn soak(paths: &Paths, args: &SoakArgs) -> Result<(), Failure> {
    let SoakArgs { minutes, seed } = *args;
    match pressed(paths, Duration::from_secs(minutes * 60), seed, true) {
        Ok(Done { rounds, resizes, kills }) => {
            println!(
                "{rounds} rounds of {GUESTS} guests, {resizes} sizes changed, {kills} services killed: nothing is lost"
            );
            Ok(())
        }
        Err(why) => {
            let again = format!("cargo xtask soak --minutes {minutes} --seed {seed}");
            Err(Failure::new(Status::Failed, format!("seed {seed}: {why}; to do the same again: {again}")))
        }
    }
}

/// Rounds that a guest has done.
fn rounds(machine: &Witness, guest: usize) -> usize {
    machine.text(guest).matches("round=").count().saturating_sub(1)
}

/// Whether a guest found other data than it wrote. The line as it was typed has no number there.
fn lost(machine: &Witness, guest: usize) -> bool {
    (1..=5).any(|file| machine.text(guest).contains(&format!("lost={file}")))
}

fn pressed(paths: &Paths, time: Duration, seed: u64, tells: bool) -> Result<Done, String> {
    let kernel = image::guest(paths, "caisson-guest-private").map_err(|failure| failure.text)?;
    let file = format!(
        "vcpus = 1\nmemory = \"64M\"\nkernel = {kernel:?}\ncmdline = \"plain rounds=1000000 seed={}\"\n",
        seed + 1
    );
    let mut vms = NAMES.map(|name| (name, FILE)).to_vec();
    vms.push((CONVERTS.0, &file));
    let mut machine = Witness::boot_in(paths, Some(MACHINE), None, &vms).map_err(|failure| failure.text)?;
    machine.is_up()?;
    for guest in 0..GUESTS {
        for (number, line) in WORK.iter().enumerate() {
            machine.types(guest, line);
            machine.asks(guest, &format!("echo typed=$(({number}+70))"), &format!("typed={}", number + 70), SOON)?;
        }
    }
    let (mut dice, start, mut told) = (Dice(seed), Instant::now(), Instant::now());
    let mut done = Done { rounds: 0, resizes: 0, kills: 0 };
    let few = |machine: &Witness| (0..GUESTS).any(|guest| rounds(machine, guest) < ROUNDS);
    while start.elapsed() < time || (few(&machine) && start.elapsed() < time + SLOW) {
        machine.watches(Duration::from_millis(500 + dice.below(2500)))?;
        let guest = dice.below(GUESTS as u64) as usize;
        let what = dice.below(8);
        match what {
            0..=2 => machine.resizes(guest, Knob::Balloon, dice.size(BALLOON)),
            3..=5 => machine.resizes(guest, Knob::Plugged, dice.size(PLUG)),
            _ => {
                let victim = if what == 6 { "memory" } else { "notifier" };
                let lives = machine.lives(victim);
                machine.kill(victim)?;
                machine.until(&format!("another life of {victim}"), SOON, |this| this.lives(victim) > lives)?;
                machine.forgive(victim)?;
                done.kills += 1;
            }
        }
        done.resizes += usize::from(what < 6);
        if let Some(guest) = (0..GUESTS).find(|guest| lost(&machine, *guest)) {
            return Err(machine.told(&format!("guest {} found other data than it wrote", NAMES[guest])));
        }
        if tells && told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let each: Vec<usize> = (0..GUESTS).map(|guest| rounds(&machine, guest)).collect();
            let Done { resizes, kills, .. } = done;
            println!("{:>5} s: rounds {each:?}, {resizes} sizes changed, {kills} killed", start.elapsed().as_secs());
        }
    }
    rests(&mut machine)?;
    done.rounds = (0..GUESTS).map(|guest| rounds(&machine, guest)).sum();
    if few(&machine) {
        return Err(machine.told("a guest has hardly done anything"));
    }
    if !machine.logged("memory", "memory: told of need") {
        return Err(machine.told("there was no shortage, so nothing was tried"));
    }
    ends(machine)?;
    Ok(done)
}

/// The guests end their work and check all that they have. Then one of them changes a byte by itself, to show that it sees that.
fn rests(machine: &mut Witness) -> Result<(), String> {
    for guest in 0..GUESTS {
        machine.resizes(guest, Knob::Balloon, 0);
        machine.asks(guest, "touch /end; echo stop=$((40+2))", "stop=42", SOON)?;
    }
    for (guest, name) in NAMES.iter().enumerate() {
        machine.until(&format!("guest {name} rests"), BOOT, |this| this.wrote(guest, "rested=0"))?;
        if lost(machine, guest) {
            return Err(machine.told(&format!("guest {name} found other data than it wrote")));
        }
    }
    machine.types(CONVERTS.1, "enough");
    machine.until("the end of what turns private", BOOT, |this| this.wrote(CONVERTS.1, " wrong"))?;
    if !machine.wrote(CONVERTS.1, " 0 refused, 0 wrong") {
        return Err(machine.told("memory that turned private and shared again isn't as it was"));
    }
    let line = "fills 1; printf x | dd of=/m/f1 bs=1 seek=7654321 conv=notrunc 2>/dev/null; holds 1";
    machine.types(0, line);
    machine.until("a changed byte is seen", BOOT, |this| this.wrote(0, "lost=2"))
}

/// The guests power themselves off, and every frame is free.
fn ends(mut machine: Witness) -> Result<(), String> {
    (0..GUESTS).for_each(|guest| machine.types(guest, "poweroff -f"));
    let end = machine.ends(BOOT)?;
    let off = |name: &&str| machine.logged(&format!("vmm-{name}"), "guest: powered off");
    if let Some(name) = NAMES.iter().find(|name| !off(name)) {
        return Err(machine.told(&format!("guest {name} didn't power off: {}", end.text)));
    }
    match machine.account() {
        Some((before, after, 0)) if before == after => Ok(()),
        account => Err(machine.told(&format!("frames free before and after, and leaked: {account:?}"))),
    }
}
