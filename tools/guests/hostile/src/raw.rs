//! Memory by its address, and where in low memory everything lies. All memory below 4 GiB is mapped as it is.

/// Code of real mode, and what starts other CPUs; copied there.
pub const LOW: u64 = 0x8000;
/// Registers of an attempt: [`crate::attempt::Frame`].
pub const FRAME: u64 = 0xb000;
/// Where real mode's stack begins.
pub const REAL_STACK: u64 = 0xf000;
/// Two pages of code to try; users may use them and all up to [`USER_END`].
pub const CODE: u64 = 0x1_0000;
/// Two pages of data.
pub const DATA: u64 = 0x1_2000;
/// A bit for each port that is left out.
pub const SKIPPED: u64 = 0x1_4000;
/// Where the stack of an attempt begins.
pub const STACK: u64 = 0x1_8000;
/// The end of what users may use.
pub const USER_END: u64 = 0x1_8000;

/// Reads memory.
pub fn get<T: Copy>(at: u64) -> T {
    // SAFETY: it is mapped; this guest alone uses its memory, and any bytes are a number.
    unsafe { (at as *const T).read_volatile() }
}

/// Writes memory.
pub fn put<T: Copy>(at: u64, value: T) {
    // SAFETY: as for `get`. What lies there is not Rust's: low memory, tables of the CPU, devices.
    unsafe { (at as *mut T).write_volatile(value) }
}

/// Writes bytes.
pub fn put_bytes(at: u64, bytes: &[u8]) {
    bytes.iter().zip(at..).for_each(|(&byte, at)| put(at, byte));
}

/// Fills memory.
pub fn fill(at: u64, count: u64, byte: u8) {
    (at..at + count).for_each(|at| put(at, byte));
}

/// Numbers from a seed: splitmix64.
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// For a part of a run.
    pub fn new(seed: u64, part: &str) -> Self {
        let mut random =
            Self(part.bytes().fold(seed, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte)));
        random.next();
        random
    }

    /// The next.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number near the places where arithmetic goes wrong, or any.
    pub fn edge(&mut self) -> u64 {
        let any = self.next();
        match self.below(4) {
            0 => any,
            1 => (1_u64 << (any & 63)).wrapping_sub(any >> 62),
            2 => any & 0xff,
            _ => !(any & 0xff),
        }
    }
}
