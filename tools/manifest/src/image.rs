//! From a linked program to the segments of a service's image: whole pages, none of them both writable and
//! executable, all inside the part of the address space that is there for images.

use caisson_proto::info::MAX_SEGMENTS;
use caisson_proto::kernel::Access;
use caisson_proto::layout;
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PF_R, PF_W, PF_X, PT_LOAD, PT_TLS, ProgramFlags};
use object::read::elf::{FileHeader, ProgramHeader};

use crate::{Error, wrong};

const PAGE: u64 = 4096;

/// A program as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Entry point.
    pub entry: u64,
    /// Its segments, in rising order.
    pub segments: Vec<Segment>,
}

/// A run of pages with the same access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First page in the service's space.
    pub page: u64,
    /// Pages in memory.
    pub pages: u64,
    /// Contents from the first page on; a multiple of a page.
    pub contents: Vec<u8>,
    /// Access that it grants.
    pub access: Access,
}

/// The image of the linked program in `elf`; `name` is for errors.
///
/// # Errors
/// [`Error`] if the file isn't a static x86-64 program that keeps to the layout.
pub fn image(name: &str, elf: &[u8]) -> Result<Image, Error> {
    let broken = |error| wrong!("{name}: not a readable ELF program: {error}");
    let header = FileHeader64::<LittleEndian>::parse(elf).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if header.e_machine(endian) != EM_X86_64 || header.e_type(endian) != ET_EXEC {
        return Err(wrong!("{name}: not a static x86-64 program; build it with `-C relocation-model=static`"));
    }
    let mut segments: Vec<Segment> = Vec::new();
    for program in header.program_headers(endian, elf).map_err(broken)? {
        let size = program.p_memsz(endian);
        if program.p_type(endian) == PT_TLS && size > 0 {
            return Err(wrong!("{name}: uses thread-local storage, which services don't have"));
        }
        if program.p_type(endian) != PT_LOAD || size == 0 {
            continue;
        }
        let data = program.data(endian, elf).map_err(|()| wrong!("{name}: a segment lies outside the file"))?;
        segments.push(segment(name, program.p_vaddr(endian), size, data, program.p_flags(endian))?);
    }
    segments.sort_by_key(|segment| segment.page);
    if segments.is_empty() || segments.len() > MAX_SEGMENTS {
        return Err(wrong!("{name}: has {} segments; 1 to {MAX_SEGMENTS} fit", segments.len()));
    }
    if let Some(pair) = segments.windows(2).find(|pair| pair[0].page + pair[0].pages > pair[1].page) {
        return Err(wrong!(
            "{name}: two segments share the page at {:#x}; align each to 4096 in the linker script",
            pair[1].page * PAGE
        ));
    }
    let entry = header.e_entry(endian);
    let runs = |segment: &Segment| {
        segment.access.contains(Access::EXECUTE)
            && (segment.page..segment.page + segment.pages).contains(&(entry / PAGE))
    };
    if !segments.iter().any(runs) {
        return Err(wrong!("{name}: its entry point {entry:#x} isn't in executable memory"));
    }
    Ok(Image { entry, segments })
}

fn segment(name: &str, address: u64, size: u64, data: &[u8], flags: ProgramFlags) -> Result<Segment, Error> {
    let end = address.checked_add(size).filter(|&end| address >= layout::IMAGE && end <= layout::INFO);
    let Some(end) = end else {
        return Err(wrong!(
            "{name}: a segment of {size} bytes at {address:#x} is outside {:#x} to {:#x}, where images lie",
            layout::IMAGE,
            layout::INFO
        ));
    };
    let mut access = Access::empty();
    for (flag, grant) in [(PF_R, Access::READ), (PF_W, Access::WRITE), (PF_X, Access::EXECUTE)] {
        access.set(grant, flags.contains(flag));
    }
    if access.contains(Access::WRITE | Access::EXECUTE) {
        return Err(wrong!("{name}: the segment at {address:#x} is both writable and executable"));
    }
    let page = address / PAGE;
    let before = (address % PAGE) as usize;
    let mut contents = Vec::new();
    if !data.is_empty() {
        contents.resize(before, 0);
        contents.extend_from_slice(data);
        contents.resize(contents.len().next_multiple_of(PAGE as usize), 0);
    }
    Ok(Segment { page, pages: end.div_ceil(PAGE) - page, contents, access })
}
