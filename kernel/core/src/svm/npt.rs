//! Page tables in the long-mode format (APM volume 2, sections 5.3 and 15.25): nested tables, and as well the windows
//! of services, whose entries are the same. A nested walk counts as a user access, so every entry
//! has the user bit. Accessed and dirty are set from the start: the CPU needn't write tables.

pub use crate::machine::Mapping;
use crate::prelude::*;

/// The entry counts.
pub const PRESENT: u64 = 1 << 0;
/// Writes are allowed.
pub const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// It was used.
pub const ACCESSED: u64 = 1 << 5;
/// It was written.
pub const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// No instruction fetches.
pub const NO_EXECUTE: u64 = 1 << 63;
/// Bits of an entry that leads to a table.
pub const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries of a table.
pub const ENTRIES: usize = 512;
/// The level whose entries may map 512 pages.
const LARGE_LEVEL: u32 = 2;

/// A tree of tables.
#[derive(Clone, Copy, Debug)]
pub struct Tree {
    /// Its top table.
    pub root: Frame,
    /// How many levels it has: 4 for nested tables, 3 for the 512 GiB of a service.
    pub levels: u32,
}

impl Tree {
    /// A nested root.
    pub const fn nested(root: Frame) -> Self {
        Self { root, levels: 4 }
    }

    /// One past the last page that it reaches.
    pub const fn end(&self) -> u64 {
        1 << (9 * self.levels)
    }
}

/// The memory that tables lie in. A write is one store of 64 bits, after the stores before it.
pub trait Tables {
    /// An entry; `index` is below [`ENTRIES`].
    fn read(&self, table: Frame, index: usize) -> u64;
    /// Changes it.
    fn write(&mut self, table: Frame, index: usize, entry: u64);
}

/// Pages that an entry of this level spans.
const fn span(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

const fn index(page: u64, level: u32) -> usize {
    (page >> (9 * (level - 1))) as usize % ENTRIES
}

/// An entry.
pub const fn entry(frame: Frame, bits: u64) -> u64 {
    frame.0 << 12 | bits
}

/// The frame in an entry.
pub const fn target(entry: u64) -> Frame {
    Frame((entry & ADDRESS) >> 12)
}

const fn is_leaf(entry: u64, level: u32) -> bool {
    level == 1 || level == LARGE_LEVEL && entry & LARGE != 0
}

/// Bits of an entry that maps a small page.
pub const fn leaf(access: Access) -> u64 {
    let write = if access.contains(Access::WRITE) { WRITE | DIRTY } else { 0 };
    let no_execute = if access.contains(Access::EXECUTE) { 0 } else { NO_EXECUTE };
    PRESENT | USER | ACCESSED | write | no_execute
}

fn access(entry: u64) -> Access {
    let mut access = Access::READ;
    access.set(Access::WRITE, entry & WRITE != 0);
    access.set(Access::EXECUTE, entry & NO_EXECUTE == 0);
    access
}

/// Where the walk to a page ends: table and level, and the entry there, which is absent or maps pages.
#[inline(always)]
fn walk<T: Tables>(tables: &T, tree: Tree, page: u64) -> (Frame, u32, u64) {
    let (mut table, mut level) = (tree.root, tree.levels);
    loop {
        let entry = tables.read(table, index(page, level));
        if entry & PRESENT == 0 || is_leaf(entry, level) {
            return (table, level, entry);
        }
        (table, level) = (target(entry), level - 1);
    }
}

/// The table at `level` for a page; what lacks on the way is made from the pool.
///
/// # Errors
/// [`Status::State`] if a large page is mapped there, [`Status::Exhausted`] without tables.
pub fn reach<T: Tables>(tables: &mut T, tree: Tree, page: u64, level: u32, pool: Pool) -> Result<Frame, Status> {
    let mut table = tree.root;
    for at in (level + 1..=tree.levels).rev() {
        let found = tables.read(table, index(page, at));
        table = if found & PRESENT == 0 {
            let new = pool.take().ok_or(Status::Exhausted)?;
            tables.write(table, index(page, at), entry(new, TABLE));
            new
        } else if is_leaf(found, at) {
            return Err(Status::State);
        } else {
            target(found)
        };
    }
    Ok(table)
}

/// Maps frames. 512 pages with both sides aligned become one large page, unless small ones were there before: their
/// table stays.
///
/// # Errors
/// [`Status::Range`] for more than 512 pages, none, an end past the tree's, or without read access; [`Status::State`]
/// if something is mapped there, [`Status::Exhausted`] without tables. Nothing is mapped then.
pub fn map<T: Tables>(
    tables: &mut T, tree: Tree, gfn: Gfn, frame: Frame, pages: u64, access: Access, pool: Pool,
) -> Outcome {
    let end = gfn.0.checked_add(pages).filter(|&end| end <= tree.end()).ok_or(Status::Range)?;
    ensure((1..=LARGE_PAGES).contains(&pages) && access.contains(Access::READ), Status::Range)?;
    if pages == LARGE_PAGES && (gfn.0 | frame.0).is_multiple_of(LARGE_PAGES) {
        let table = reach(tables, tree, gfn.0, LARGE_LEVEL, pool)?;
        let at = index(gfn.0, LARGE_LEVEL);
        if tables.read(table, at) & PRESENT == 0 {
            tables.write(table, at, entry(frame, leaf(access) | LARGE));
            return Ok(());
        }
    }
    // Two tables at the most: first make sure of both, then write.
    let second = (gfn.0 | (LARGE_PAGES - 1)) + 1;
    let low = reach(tables, tree, gfn.0, 1, pool)?;
    let high = if second < end { reach(tables, tree, second, 1, pool)? } else { low };
    let table = |page: u64| if page < second { low } else { high };
    let is_free = |page| tables.read(table(page), index(page, 1)) & PRESENT == 0;
    ensure((gfn.0..end).all(is_free), Status::State)?;
    for (page, frame) in (gfn.0..end).zip(frame.0..) {
        tables.write(table(page), index(page, 1), entry(Frame(frame), leaf(access)));
    }
    Ok(())
}

/// Removes the first mapping that reaches into `from..end`; of a large page that isn't all inside, one page, after
/// a split.
///
/// # Errors
/// [`Status::Exhausted`] if there is no table for a split. Nothing is removed then.
pub fn unmap<T: Tables>(
    tables: &mut T, tree: Tree, from: Gfn, end: Gfn, pool: Pool,
) -> Result<Option<Removed>, Status> {
    let end = end.0.min(tree.end());
    let mut page = from.0;
    while page < end {
        let (table, level, found) = walk(tables, tree, page);
        let at = index(page, level);
        if found & PRESENT == 0 {
            page = (page | (span(level) - 1)) + 1;
        } else if page.is_multiple_of(span(level)) && page + span(level) <= end {
            tables.write(table, at, 0);
            return Ok(Some(Removed { gfn: Gfn(page), frame: target(found), pages: span(level) }));
        } else {
            split(tables, table, at, pool)?;
        }
    }
    Ok(None)
}

/// Makes 512 small pages of a large one.
fn split<T: Tables>(tables: &mut T, table: Frame, at: usize, pool: Pool) -> Outcome {
    let (found, small) = (tables.read(table, at), pool.take().ok_or(Status::Exhausted)?);
    for (at, frame) in (0..ENTRIES).zip(target(found).0..) {
        tables.write(small, at, found & !(ADDRESS | LARGE) | frame << 12);
    }
    tables.write(table, at, entry(small, TABLE));
    Ok(())
}

/// Makes a large page of the 512 around a page, and gives their table to the pool; or splits one. The same frames are mapped
/// as before, but walks that have begun may end in the empty table.
///
/// # Errors
/// [`Status::State`] if they aren't alike, in a row and aligned, or no large page is there; [`Status::Exhausted`] without a
/// table. Nothing is changed then.
pub fn resize<T: Tables>(tables: &mut T, tree: Tree, gfn: Gfn, large: bool, pool: Pool) -> Outcome {
    let (table, level, found) = walk(tables, tree, gfn.0);
    if !large {
        ensure(level == LARGE_LEVEL && found & PRESENT != 0, Status::State)?;
        return split(tables, table, index(gfn.0, level), pool);
    }
    let first = tables.read(table, 0);
    let is_next = |at: usize| tables.read(table, at) == first + ((at as u64) << 12);
    let aligned = first & PRESENT != 0 && target(first).0.is_multiple_of(LARGE_PAGES);
    ensure(level == 1 && aligned && (0..ENTRIES).all(is_next), Status::State)?;
    let above = reach(tables, tree, gfn.0, LARGE_LEVEL, pool)?;
    tables.write(above, index(gfn.0, LARGE_LEVEL), first | LARGE);
    (0..ENTRIES).for_each(|at| tables.write(table, at, 0));
    pool.give_back(table);
    Ok(())
}

/// Finds a page.
pub fn look_up<T: Tables>(tables: &T, tree: Tree, gfn: Gfn) -> Option<Mapping> {
    let (_, level, entry) = walk(tables, tree, gfn.0);
    let is_there = gfn.0 < tree.end() && entry & PRESENT != 0;
    let frame = Frame(target(entry).0 + gfn.0 % span(level));
    is_there.then_some(Mapping { frame, pages: span(level), access: access(entry) })
}

/// Gives every table to the pool, the root too, empty. Nothing is mapped in them any more. At most four calls deep.
pub fn drop_all<T: Tables>(tables: &mut T, Tree { root, levels }: Tree, pool: Pool) {
    for at in 0..ENTRIES {
        let entry = tables.read(root, at);
        if entry & PRESENT != 0 && !is_leaf(entry, levels) {
            drop_all(tables, Tree { root: target(entry), levels: levels - 1 }, pool);
        }
        tables.write(root, at, 0);
    }
    pool.give_back(root);
}
