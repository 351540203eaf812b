//! A guest that makes its memory private and shared again, page by page and 2 MiB at a time, and finds in it what it wrote.
//!
//! With `plain` on its command line what is in a page must outlive its turning; of an encrypted guest that is lost. A plain one shows
//! what the host sees of it: it writes text from memory to the serial port with OUTS, for which the host has to read that memory, and
//! the instruction, too.
//! `rounds=N` says how long it goes on, unless somebody types something. Then it powers itself off.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod image {
    use core::arch::asm;

    use caisson_guest_rt::cpu::{halt, inb, outb};
    use caisson_guest_rt::{cmdline, println};

    const PAGE: u64 = 4096;
    /// What turns: 16 MiB that hold nothing else.
    const START: u64 = 16 << 20;
    const PAGES: u64 = 4096;
    /// Pages of 2 MiB.
    const LARGE: u64 = 512;
    /// A page for the text.
    const TEXT: u64 = START - (2 << 20);
    /// KVM's hypercall for it, and its attribute.
    const MAP_GPA_RANGE: u64 = 12;
    const ENCRYPTED: u64 = 1 << 4;
    /// The sleep control register of Caisson's PC, and S5 with SLP_EN.
    const SLEEP: u16 = 0x604;
    const OFF: u8 = 0x34;
    const SERIAL: u16 = 0x3f8;

    /// Pages become private or shared: what the host answers.
    fn turn(gpa: u64, pages: u64, private: bool) -> u64 {
        let attributes = if private { ENCRYPTED } else { 0 };
        let answer;
        // SAFETY: the host changes what `turned` says of these pages, which hold nothing that Rust knows of.
        unsafe {
            asm!(
                "xchg rbx, {gpa}", "vmmcall", "xchg rbx, {gpa}", gpa = inout(reg) gpa => _,
                inout("rax") MAP_GPA_RANGE => answer, in("rcx") pages, in("rdx") attributes, in("rsi") 0
            );
        }
        answer
    }

    /// The host reads bytes from memory and writes them to the serial port.
    fn show(at: u64, bytes: u64) {
        // SAFETY: reads memory of this guest's.
        unsafe { asm!("rep outsb", inout("rsi") at => _, inout("rcx") bytes => _, in("dx") SERIAL, options(nostack)) };
        println!();
    }

    /// Whether somebody typed something: it is enough.
    fn is_typed() -> bool {
        inb(SERIAL + 5) & 1 != 0
    }

    fn write(at: u64, value: u64) {
        // SAFETY: memory that nothing else of this guest uses; 4 GiB are mapped as they are.
        unsafe { (at as *mut u64).write_volatile(value) }
    }

    fn read(at: u64) -> u64 {
        // SAFETY: as above.
        unsafe { (at as *const u64).read_volatile() }
    }

    /// Of a page and how often it was written: the first and the last word.
    fn pattern(page: u64, version: u8) -> [u64; 2] {
        let value = (page << 8 | u64::from(version)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [value, !value]
    }

    struct Area {
        /// How often each page was written, and whether it is private.
        versions: [u8; PAGES as usize],
        private: [bool; PAGES as usize],
        wrong: u64,
    }

    impl Area {
        fn fill(&mut self, page: u64) {
            self.versions[page as usize] = self.versions[page as usize].wrapping_add(1);
            let at = START + page * PAGE;
            let [first, last] = pattern(page, self.versions[page as usize]);
            write(at, first);
            write(at + PAGE - 8, last);
        }

        fn check(&mut self, page: u64) {
            let at = START + page * PAGE;
            let found = [read(at), read(at + PAGE - 8)];
            self.wrong += u64::from(found != pattern(page, self.versions[page as usize]));
        }
    }

    fn number(name: &str, usual: u64) -> u64 {
        let mut words = cmdline().split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(name)?.parse().ok()).unwrap_or(usual)
    }

    fn text(secret: &[u8]) {
        for (at, byte) in (TEXT..).zip(secret) {
            // SAFETY: as above.
            unsafe { (at as *mut u8).write_volatile(*byte) }
        }
    }

    fn start() -> ! {
        let mut area = Area { versions: [0; PAGES as usize], private: [false; PAGES as usize], wrong: 0 };
        let plain = cmdline().split_ascii_whitespace().any(|word| word == "plain");
        // An encrypted guest is launched with all of its memory private.
        area.private.fill(!plain);
        let rounds = number("rounds=", 200);
        let mut refused = 0;

        if plain {
            refused += u64::from(turn(TEXT, 1, true) != 0);
            text(b"seen-while-private");
            show(TEXT, 18);
            refused += u64::from(turn(TEXT, 1, false) != 0);
            text(b"seen-while-shared-");
            show(TEXT, 18);
        }

        let mut random = number("seed=", 1) | 1;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        (0..PAGES).for_each(|page| area.fill(page));
        let (mut turned, mut done) = (0, 0);
        for round in 0..rounds {
            let (first, pages) = match next(4) {
                0 => (next(PAGES / LARGE) * LARGE, LARGE),
                1 => (next(PAGES - 64), 1 + next(64)),
                2 => (next(PAGES - 1500), 1 + next(1500)),
                _ => (next(PAGES), 1),
            };
            let private = next(2) == 0;
            if turn(START + first * PAGE, pages, private) != 0 {
                refused += 1;
                continue;
            }
            for page in first..first + pages {
                let was = core::mem::replace(&mut area.private[page as usize], private);
                turned += u64::from(was != private);
                if plain || was == private {
                    area.check(page);
                }
                if !plain && was != private || next(8) == 0 {
                    area.fill(page);
                }
            }
            area.check(next(PAGES));
            done = round + 1;
            if done % 50 == 0 {
                println!("private: round {}", done);
            }
            if is_typed() {
                break;
            }
        }
        (0..PAGES).for_each(|page| area.check(page));
        println!("private: {} rounds, {} pages turned, {} refused, {} wrong", done, turned, refused, area.wrong);
        outb(SLEEP, OFF);
        halt()
    }

    caisson_guest_rt::entry!(start);
}
