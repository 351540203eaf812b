//! A frame as caches and memory see it.

/// Whose a frame is, as far as caches are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// Nobody's: nothing in it matters.
    Nobody,
    /// The kernel's.
    Kernel,
    /// A VM's, used plainly.
    Shared(u32),
    /// A VM's, encrypted.
    Private(u32),
    /// The secure processor's.
    Firmware,
}

/// CPUs that hold a line: 256, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders([u64; 4]);

impl Holders {
    /// One more does; false if it did before.
    pub fn insert(&mut self, cpu: usize) -> bool {
        let (word, bit) = (&mut self.0[cpu / 64 % 4], 1 << (cpu % 64));
        let before = *word & bit != 0;
        *word |= bit;
        !before
    }

    /// One does no more.
    pub fn remove(&mut self, cpu: usize) {
        self.0[cpu / 64 % 4] &= !(1 << (cpu % 64));
    }

    /// Whether one does.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0[cpu / 64 % 4] >> (cpu % 64) & 1 == 1
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    /// The first that does.
    pub fn first(&self) -> Option<u32> {
        (0..).zip(self.0).find_map(|(at, word)| (word != 0).then(|| at * 64 + word.trailing_zeros()))
    }
}

/// A line.
#[derive(Clone, Debug)]
pub struct Line {
    /// The alias: 0 is the plain one.
    pub asid: u32,
    /// What it holds.
    pub value: u64,
    /// The CPU that has to write it back.
    pub dirty: Option<u16>,
    /// Who holds it.
    pub holders: Holders,
    /// The VM that wrote it.
    pub vm: u32,
    /// And when.
    pub step: u64,
}

/// A frame.
#[derive(Clone, Debug)]
pub struct Place {
    /// Whose it is.
    pub hand: Hand,
    /// Since when.
    pub since: u64,
    /// With which key memory was written.
    pub key: u64,
    /// What memory has.
    pub value: u64,
    /// Its lines in caches, by ASID.
    pub lines: Vec<Line>,
}

impl Place {
    /// Nobody's, zero, in no cache.
    pub const NEW: Self = Self { hand: Hand::Nobody, since: 0, key: 0, value: 0, lines: Vec::new() };

    /// Where the line of an alias is.
    ///
    /// # Errors
    /// Where it would be.
    pub fn find(&self, asid: u32) -> Result<usize, usize> {
        let at = self.lines.iter().position(|line| line.asid >= asid).unwrap_or(self.lines.len());
        if self.lines.get(at).is_some_and(|line| line.asid == asid) { Ok(at) } else { Err(at) }
    }

    /// The line of an alias.
    pub fn line(&self, asid: u32) -> Option<&Line> {
        self.find(asid).ok().map(|at| &self.lines[at])
    }
}
