//! The pages that are lent to the kernel: first the command's buffer, then its data.

use caisson_proto::firmware::DATA_PAGES;
use caisson_proto::mailbox::BUFFER_BYTES;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Bytes of data that a command has at the most.
pub(crate) const DATA: usize = DATA_PAGES as usize * PAGE;

/// Pages that can be lent: nothing else lies in them.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Lent(pub [u8; PAGE + DATA]);

/// What a command is composed in, and what its answer is found in.
#[derive(Debug)]
pub(crate) struct Area {
    lent: Lent,
    /// How many pages count.
    pages: usize,
}

impl Area {
    pub const fn new() -> Self {
        Self { lent: Lent([0; PAGE + DATA]), pages: 1 }
    }

    /// Lays out a command and as much of its data as there is; the rest of `data_pages` is zeros. In what is lent
    /// nothing is left of what others had here.
    pub fn lay_out(&mut self, buffer: &[u8; BUFFER_BYTES], data: &[u8], data_pages: usize) {
        self.pages = 1 + data_pages.min(DATA_PAGES as usize);
        let used = self.pages * PAGE - PAGE;
        self.lent.0.get_mut(..PAGE + used).unwrap_or_default().fill(0);
        put(&mut self.lent.0, 0, buffer);
        put(&mut self.lent.0, PAGE, data.get(..used.min(data.len())).unwrap_or_default());
    }

    /// The pages, for the kernel.
    pub fn lend(&mut self) -> (&mut Lent, usize) {
        (&mut self.lent, self.pages)
    }

    /// The command's buffer.
    pub fn buffer(&self) -> &[u8] {
        self.lent.0.get(..BUFFER_BYTES).unwrap_or_default()
    }

    /// Its data.
    pub fn data(&self) -> &[u8] {
        self.lent.0.get(PAGE..self.pages * PAGE).unwrap_or_default()
    }
}

/// Copies as much as there is room for.
pub(crate) fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    into.get_mut(at..).unwrap_or_default().iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
}

/// `N` bytes at an offset; zeros where there are none.
pub(crate) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    put(&mut out, 0, bytes.get(at..).unwrap_or_default());
    out
}
