//! Writes the bundle: header, records, then images and files at page boundaries, each different one once.

use std::collections::HashMap;
use std::sync::Arc;

use caisson_proto::bundle::{Header, MAGIC, MapRecord};
use caisson_proto::info::MAX_FILES;
use caisson_proto::kernel::{Access, Caps};
use caisson_proto::layout;
use caisson_proto::mailbox;
use zerocopy::IntoBytes;

use crate::image::Image;
use crate::plan::{Plan, PlannedRing, RingEnds};
use crate::{Error, share, wrong};

const PAGE: usize = 4096;

/// Mappings of a service beside segments, files and rings, at the most: stack, heap, mailbox, info page.
const OTHER_MAPS: usize = 4;

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
    let (rings, shares) = (rings(plan), share::maps(&plan.shares, plan.rings.len() as u64));
    let each = contents.iter().map(|contents| OTHER_MAPS + contents.image.segments.len() + contents.files.len());
    let head = size_of::<Header>()
        + plan.services.iter().map(|service| size_of_val(&service.record)).sum::<usize>()
        + size_of::<MapRecord>() * (each.sum::<usize>() + rings.len() + shares.len());
    let mut pages = Pages { first: head.div_ceil(PAGE), data: Vec::new(), places: HashMap::new() };
    let mut records = Vec::new();
    let mut maps = [rings, shares].concat();
    for (slot, (service, contents)) in (0..).zip(plan.services.iter().zip(contents)) {
        for from in &contents.image.segments {
            maps.push(MapRecord {
                page: from.page,
                first: pages.place(&from.contents),
                file_pages: count(from.contents.len() / PAGE)?,
                pages: count(from.pages as usize)?,
                access: u32::from(from.access.bits()),
                service: slot,
                kind: if from.access.contains(Access::WRITE) { MapRecord::OWN } else { MapRecord::BUNDLE },
            });
        }
        let own = |address: u64, pages: u32| MapRecord {
            page: address / PAGE as u64,
            pages,
            access: u32::from((Access::READ | Access::WRITE).bits()),
            service: slot,
            kind: MapRecord::OWN,
            ..MapRecord::default()
        };
        let (stack, heap) = (service.stack_pages, service.heap_pages);
        maps.push(own(layout::STACK_TOP - u64::from(stack) * PAGE as u64, stack));
        maps.push(own(layout::HEAP, heap));
        if service.record.caps & Caps::SILICON.bits() != 0 {
            maps.push(own(layout::MAILBOX, mailbox::PAGES));
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
                first: pages.place(from),
                file_pages: in_pages,
                pages: in_pages,
                access: u32::from(Access::READ.bits()),
                service: slot,
                kind: MapRecord::BUNDLE,
            });
        }
        maps.push(MapRecord {
            page: layout::INFO / PAGE as u64,
            first: pages.append(info.as_bytes()),
            file_pages: 1,
            pages: 1,
            access: u32::from(Access::READ.bits()),
            service: slot,
            kind: MapRecord::OWN,
        });
        let mut record = service.record;
        record.entry = contents.image.entry;
        records.push(record);
    }
    let total = pages.first + pages.data.len() / PAGE;
    let (services, shared) = (count(records.len())?, plan.rings.len() as u64 + share::pages(&plan.shares));
    let header = Header { magic: MAGIC, services, maps: count(maps.len())?, pages: total as u64, shared };
    let mut bundle = header.as_bytes().to_vec();
    records.iter().for_each(|record| bundle.extend_from_slice(record.as_bytes()));
    maps.iter().for_each(|map| bundle.extend_from_slice(map.as_bytes()));
    bundle.resize(pages.first * PAGE, 0);
    bundle.extend_from_slice(&pages.data);
    Ok(bundle)
}

/// Both ends of each ring share its page.
fn rings(plan: &Plan) -> Vec<MapRecord> {
    let record = |first, service, number: u16| MapRecord {
        page: layout::RINGS / PAGE as u64 + u64::from(number),
        first,
        pages: 1,
        access: u32::from((Access::READ | Access::WRITE).bits()),
        service,
        kind: MapRecord::SHARED,
        ..MapRecord::default()
    };
    let both = |(first, ring): (u64, &PlannedRing)| {
        let RingEnds { producer, consumer, producer_number, consumer_number } = ring.ends;
        [record(first, producer, producer_number), record(first, consumer, consumer_number)]
    };
    (0..).zip(&plan.rings).flat_map(both).collect()
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
