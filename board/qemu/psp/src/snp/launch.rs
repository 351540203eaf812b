//! Launching SNP guests: 56860 "SNP_LAUNCH_START" and section 8.17, "SNP_LAUNCH_UPDATE".

use caisson_proto::addr::{Frame, Gpa, Spa};

use super::digest::{PageType, extend};
use super::{Guest, Policy, State, cpuid};
use crate::access::aligned;
use crate::board::{Asid, Board};
use crate::buffer::{Buffer, put};
use crate::processor::Processor;
use crate::rmp::{self, Entry, Size};
use crate::status::Status;
use crate::storage::hardware;

const PAGE: usize = 4096;
/// All that a VMPL can be allowed.
const ALL_PERMISSIONS: u8 = 0xf;

impl Processor {
    /// SNP_LAUNCH_START: context, policy, migration agent, flags, TSC frequency, workarounds.
    ///
    /// Migration agents and images for migration are refused: they come with migration.
    pub(crate) fn snp_launch_start(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let (smt, version, tcb) = (self.config.smt, self.config.version, self.config.tcb);
        let guest = self.context(board, buffer.spa(0))?;
        if guest.state != State::Init {
            return Err(Status::InvalidGuestState);
        }
        match buffer.u32(24) {
            0 => {}
            1..=3 => return Err(Status::Unsupported),
            _ => return Err(Status::InvalidParam),
        }
        let policy = Policy::from_bits(buffer.u64(8)).ok_or(Status::PolicyFailure)?;
        let refused = !policy.contains(Policy::ONE)
            || policy.interface() > (version.major, version.minor)
            || smt && !policy.contains(Policy::SMT);
        if refused {
            return Err(Status::PolicyFailure);
        }
        guest.policy = policy;
        guest.workarounds = buffer.array(32);
        guest.launch_tcb = tcb;
        board.random(&mut guest.key.0);
        guest.message_keys.iter_mut().for_each(|key| board.random(key));
        board.random(&mut guest.root_key);
        board.random(&mut guest.report_id);
        guest.state = State::Launch;
        Ok(())
    }

    /// SNP_LAUNCH_UPDATE: context, size and type, address, permissions.
    pub(crate) fn snp_launch_update(&mut self, board: &mut impl Board, buffer: &Buffer) -> Result<(), Status> {
        let guest = self.context(board, buffer.spa(0))?;
        if guest.state != State::Launch {
            return Err(Status::InvalidGuestState);
        }
        let asid = guest.asid.ok_or(Status::Inactive)?;
        let flags = buffer.u32(8);
        buffer.reserved(12..16)?;
        buffer.reserved(24..25)?;
        buffer.reserved(28..32)?;
        // Bit 4: a page of an image for migration, of which this guest has none.
        let page_type = PageType::from_bits(flags >> 1 & 7).ok_or(Status::InvalidParam)?;
        let permissions: [u8; 3] = buffer.array(25);
        if flags >> 4 != 0 || permissions.iter().any(|bits| bits & !ALL_PERMISSIONS != 0) {
            return Err(Status::InvalidParam);
        }
        let size = if flags & 1 == 0 { Size::Small } else { Size::Large };
        let whole = matches!(page_type, PageType::Vmsa | PageType::Secrets | PageType::Cpuid);
        if size == Size::Large && whole {
            return Err(Status::InvalidParam);
        }
        let at = buffer.spa(16);
        aligned(at, size.bytes())?;
        self.access().readable(board, at, size.bytes())?;
        let entry = self.to_be_filled(board, at, asid, size)?;
        if page_type == PageType::Cpuid {
            board.read(at, &mut self.page[..PAGE]).map_err(hardware)?;
            cpuid::check(&self.page[..PAGE])?;
        }
        for index in 0..size.pages() {
            let offset = index * PAGE as u64;
            let gpa = Gpa(entry.gpa.0 + offset);
            self.fill(board, buffer.spa(0), page_type, Spa(at.0 + offset), gpa, permissions)?;
        }
        let [one, two, three] = permissions;
        let entry = Entry {
            validated: true,
            immutable: false,
            vmsa: page_type == PageType::Vmsa,
            permissions: [ALL_PERMISSIONS, one, two, three],
            ..entry
        };
        board.set_rmp(at.frame(), entry).map_err(hardware)
    }

    /// The page must have been assigned to this guest, in this size, for the processor to fill.
    fn to_be_filled(&self, board: &mut impl Board, at: Spa, asid: Asid, size: Size) -> Result<Entry, Status> {
        let entry = board.rmp(at.frame()).ok_or(Status::InvalidPageState)?;
        if entry.state() != rmp::State::PreGuest {
            return Err(Status::InvalidPageState);
        }
        if entry.asid != asid {
            return Err(Status::InvalidPageOwner);
        }
        if entry.size != size {
            return Err(Status::InvalidPageSize);
        }
        Ok(entry)
    }

    /// Measures a page of 4 KiB and puts its content through the guest's key.
    fn fill(
        &mut self, board: &mut impl Board, context: Spa, page_type: PageType, at: Spa, gpa: Gpa, permissions: [u8; 3],
    ) -> Result<(), Status> {
        let (family, model, stepping) = (self.config.chip.family, self.config.chip.model, self.config.chip.stepping);
        let frame = context.frame();
        let page = &mut self.page[..PAGE];
        let guest = find(&mut self.snp.guests, frame)?;
        let asid = guest.asid.ok_or(Status::Inactive)?;
        match page_type {
            PageType::Zero => page.fill(0),
            PageType::Secrets => secrets(page, guest, [family, model, stepping]),
            PageType::Normal | PageType::Vmsa | PageType::Unmeasured | PageType::Cpuid => {
                board.read(at, page).map_err(hardware)?
            }
        }
        guest.digest = extend(&guest.digest, page_type, gpa, permissions, board.hashed(page));
        board.write_private(asid, at, page).map_err(hardware)
    }
}

fn find(guests: &mut [Guest], context: Frame) -> Result<&mut Guest, Status> {
    guests.iter_mut().find(|guest| guest.context == context).ok_or(Status::InvalidGuest)
}

/// The secrets page (56860 section 8.17.2.5): version, no image for migration, the CPU, workarounds, keys for messages.
fn secrets(page: &mut [u8], guest: &Guest, [family, model, stepping]: [u8; 3]) {
    page.fill(0);
    put(page, 0, &3u32.to_le_bytes());
    put(page, 8, &signature(family, model, stepping).to_le_bytes());
    put(page, 16, &guest.workarounds);
    for (index, key) in guest.message_keys.iter().enumerate() {
        put(page, 32 + index * 32, key);
    }
}

/// CPUID 0000_0001 EAX.
fn signature(family: u8, model: u8, stepping: u8) -> u32 {
    let (family, model) = (u32::from(family), u32::from(model));
    let (base, extended) = (family.min(0xf), family.saturating_sub(0xf));
    extended << 20 | model >> 4 << 16 | base << 8 | (model & 0xf) << 4 | u32::from(stepping & 0xf)
}
