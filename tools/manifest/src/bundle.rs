//! Writes the bundle: header, records, then images and files at page boundaries, each different one once.

use std::collections::HashMap;
use std::sync::Arc;

use caisson_proto::bundle::{Header, MAGIC, MapRecord};
use caisson_proto::info::MAX_FILES;
use caisson_proto::kernel::{Access, Caps};
use caisson_proto::layout;
use caisson_proto::mailbox::DATA_BYTES;
use zerocopy::IntoBytes;

use crate::image::Image;
use crate::plan::Plan;
use crate::{Error, wrong};

const PAGE: usize = 4096;
/// The secure processor's registers, a command's buffer and its data.
const MAILBOX_PAGES: u32 = 3 + (DATA_BYTES / PAGE as u64) as u32;

/// What belongs to one service's record.
#[derive(Clone, Debug)]
pub struct Contents {
    /// Its program.
    pub image: Arc<Image>,
    /// Its files; an empty one is none.
    pub files: Vec<Arc<[u8]>>,
}

/// The bundle of a plan whose service `n` has `contents[n]`.
///
/// # Errors
/// [`Error`] if a file is too large, or contents are missing.
pub fn write(plan: &Plan, contents: &[Contents]) -> Result<Vec<u8>, Error> {
    if contents.len() != plan.services.len() {
        return Err(wrong!("{} services, but contents for {}", plan.services.len(), contents.len()));
    }
    let rings = plan.rings.iter().map(|ring| ring.record).collect::<Vec<_>>();
    let head = size_of::<Header>()
        + plan.services.iter().map(|service| size_of_val(&service.record)).sum::<usize>()
        + size_of_val(rings.as_slice());
    let mut pages = Pages { first: head.div_ceil(PAGE), data: Vec::new(), places: HashMap::new() };
    let mut records = Vec::new();
    for (service, contents) in plan.services.iter().zip(contents) {
        let mut maps = Vec::new();
        for from in &contents.image.segments {
            maps.push(MapRecord {
                page: from.page,
                bundle_page: pages.place(&from.contents),
                file_pages: count(from.contents.len() / PAGE)?,
                pages: count(from.pages as usize)?,
                access: u32::from(from.access.bits()),
                own: u32::from(from.access.contains(Access::WRITE)),
            });
        }
        let own = |address: u64, pages: u32| MapRecord {
            page: address / PAGE as u64,
            pages,
            access: u32::from((Access::READ | Access::WRITE).bits()),
            own: 1,
            ..MapRecord::default()
        };
        let (stack, heap) = (service.stack_pages, service.heap_pages);
        maps.push(own(layout::STACK_TOP - u64::from(stack) * PAGE as u64, stack));
        maps.push(own(layout::HEAP, heap));
        if service.record.caps & Caps::SILICON.bits() != 0 {
            maps.push(own(layout::MAILBOX, MAILBOX_PAGES));
        }
        if contents.files.len() > MAX_FILES {
            return Err(wrong!("\"{}\" has {} files; at most {MAX_FILES} fit", service.name, contents.files.len()));
        }
        let mut info = service.info;
        for (number, (bytes, from)) in info.files.iter_mut().zip(&contents.files).enumerate() {
            if from.len() as u64 > layout::FILE_STRIDE {
                return Err(wrong!("a file of \"{}\" has {} bytes; at most 1 GiB fits", service.name, from.len()));
            }
            *bytes = from.len() as u64;
            let in_pages = count(from.len().div_ceil(PAGE))?;
            maps.push(MapRecord {
                page: (layout::FILES + number as u64 * layout::FILE_STRIDE) / PAGE as u64,
                bundle_page: pages.place(from),
                file_pages: in_pages,
                pages: in_pages,
                access: u32::from(Access::READ.bits()),
                own: 0,
            });
        }
        maps.push(MapRecord {
            page: layout::INFO / PAGE as u64,
            bundle_page: pages.append(info.as_bytes()),
            file_pages: 1,
            pages: 1,
            access: u32::from(Access::READ.bits()),
            own: 1,
        });
        let mut record = service.record;
        record.entry = contents.image.entry;
        // Four segments, stack, heap, mailbox, four files and the info page at the most.
        record.maps.iter_mut().zip(maps).for_each(|(to, from)| *to = from);
        records.push(record);
    }
    let total = pages.first + pages.data.len() / PAGE;
    let header =
        Header { magic: MAGIC, services: count(records.len())?, rings: count(plan.rings.len())?, pages: total as u64 };
    let mut bundle = header.as_bytes().to_vec();
    records.iter().for_each(|record| bundle.extend_from_slice(record.as_bytes()));
    rings.iter().for_each(|ring| bundle.extend_from_slice(ring.as_bytes()));
    bundle.resize(pages.first * PAGE, 0);
    bundle.extend_from_slice(&pages.data);
    Ok(bundle)
}

fn count(number: usize) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| wrong!("{number} pages are more than a bundle can count"))
}

struct Pages<'a> {
    first: usize,
    data: Vec<u8>,
    places: HashMap<&'a [u8], u64>,
}

impl<'a> Pages<'a> {
    /// The page where `bytes` begin; 0 if there are none.
    fn place(&mut self, bytes: &'a [u8]) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        if let Some(&page) = self.places.get(bytes) {
            return page;
        }
        let page = self.append(bytes);
        self.places.insert(bytes, page);
        page
    }

    /// Puts `bytes` at the end, and says at which page.
    fn append(&mut self, bytes: &[u8]) -> u64 {
        let page = (self.first + self.data.len() / PAGE) as u64;
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(PAGE), 0);
        page
    }
}
