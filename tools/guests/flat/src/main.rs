//! A guest of an encrypted VM that shares nothing with its host but ports: it fills memory, writes its caches back,
//! finds everything as it was, says so, and resets itself. With `once` on its command line it stops instead; with `off`
//! it powers itself off.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod image {
    use core::arch::asm;

    use caisson_guest_rt::cpu::{halt, outb};
    use caisson_guest_rt::{cmdline, println};

    /// What is filled: 2 MiB that hold nothing else.
    const START: usize = 8 << 20;
    const WORDS: usize = (2 << 20) / 8;
    /// The keyboard controller's command port, and its reset.
    const CONTROLLER: u16 = 0x64;
    const RESET: u8 = 0xfe;
    /// The sleep control register of Caisson's PC, and S5 with SLP_EN.
    const SLEEP: u16 = 0x604;
    const OFF: u8 = 0x34;

    fn pattern(index: usize) -> u64 {
        (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn start() -> ! {
        let words = START as *mut u64;
        let mut wrong = 0;
        for index in 0..WORDS {
            // SAFETY: memory that nothing else of this guest uses; 4 GiB are mapped as they are.
            unsafe {
                wrong += u64::from(words.add(index).read_volatile() != 0);
                words.add(index).write_volatile(pattern(index));
            }
        }
        // SAFETY: writes caches back and changes no memory.
        unsafe { asm!("wbinvd", options(nostack)) };
        for index in 0..WORDS {
            // SAFETY: as above.
            wrong += u64::from(unsafe { words.add(index).read_volatile() } != pattern(index));
        }
        println!("flat: {} words, {} wrong", WORDS, wrong);
        let asked = |what| cmdline().split_ascii_whitespace().any(|word| word == what);
        match (asked("off"), asked("once")) {
            (true, _) => outb(SLEEP, OFF),
            (false, true) => {}
            (false, false) => outb(CONTROLLER, RESET),
        }
        halt()
    }

    caisson_guest_rt::entry!(start);
}
