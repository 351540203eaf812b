//! Which ASIDs are bound, and what those that were given up still owe.
//!
//! The rule (55766 ACTIVATE, DEACTIVATE and DF_FLUSH; 56860 SNP_ACTIVATE and SNP_DF_FLUSH): after an ASID was given up, every
//! CPU must execute WBINVD and then DF_FLUSH must succeed before it is bound again. INIT gives up all.
//!
//! Each giving-up gets a number. A CPU that is seen to have executed WBINVD since it was last looked at has written back
//! for all numbers up to then. So nothing is kept for each pair of CPU and ASID.

use caisson_proto::abi::MAX_CPUS;
use caisson_proto::addr::CpuId;

use crate::board::{Asid, Board};
use crate::config::Config;
use crate::status::Status;

/// The table has room for ASIDs below this; EPYC has at most 1006.
pub const MAX_ASIDS: usize = 1024;

/// Who holds an ASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The SEV or SEV-ES guest with this handle.
    Sev(u32),
    /// The SNP guest with the context at this frame.
    Snp(u64),
}

/// The kinds of guests that have ASIDs of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// SEV without encrypted state: from `first_sev` on.
    Sev,
    /// SEV-ES and SNP: below `first_sev`.
    Encrypted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Clean,
    Bound(Holder),
    /// Given up, by this number.
    Dirty(u64),
}

#[derive(Clone, Copy)]
struct Seen {
    wbinvds: u64,
    /// It wrote back after the giving-up with this number.
    covers: u64,
}

/// All ASIDs.
pub struct Asids {
    states: [State; MAX_ASIDS],
    seen: [Seen; MAX_CPUS],
    cpus: u16,
    first_sev: u16,
    last: u16,
    given_up: u64,
}

impl Asids {
    /// As the configuration says, all of them never used.
    pub const fn new(config: &Config) -> Self {
        Self {
            states: [State::Clean; MAX_ASIDS],
            seen: [Seen { wbinvds: 0, covers: 0 }; MAX_CPUS],
            cpus: if config.cpus as usize <= MAX_CPUS { config.cpus } else { MAX_CPUS as u16 },
            first_sev: config.first_sev_asid,
            last: if (config.last_asid as usize) < MAX_ASIDS { config.last_asid } else { MAX_ASIDS as u16 - 1 },
            given_up: 0,
        }
    }

    /// Refuses an ASID that a guest of this class can't have (CPUID 8000_001F ECX and EDX).
    pub fn check(&self, asid: u32, class: Class) -> Result<Asid, Status> {
        let asid = u16::try_from(asid).map_err(|_| Status::InvalidAsid)?;
        let first = u16::max(1, if class == Class::Sev { self.first_sev } else { 1 });
        let last = if class == Class::Sev { self.last } else { self.last.min(self.first_sev.saturating_sub(1)) };
        if (first..=last).contains(&asid) { Ok(Asid(asid)) } else { Err(Status::InvalidAsid) }
    }

    /// Whether it could be bound now; the error says why not.
    pub fn bindable(&mut self, asid: Asid, board: &mut impl Board) -> Result<(), Status> {
        match self.states.get(usize::from(asid.0)) {
            None => Err(Status::InvalidAsid),
            Some(State::Clean) => Ok(()),
            Some(State::Bound(_)) => Err(Status::AsidOwned),
            Some(State::Dirty(number)) => {
                let number = *number;
                self.look(board);
                Err(if self.written_back(number) { Status::DfFlushRequired } else { Status::WbinvdRequired })
            }
        }
    }

    /// Binds it. The caller has asked [`Self::bindable`].
    pub fn bind(&mut self, asid: Asid, holder: Holder) {
        if let Some(state) = self.states.get_mut(usize::from(asid.0)) {
            *state = State::Bound(holder);
        }
    }

    /// Gives it up.
    pub fn give_up(&mut self, asid: Asid, board: &mut impl Board) {
        self.look(board);
        self.given_up += 1;
        if let Some(state) = self.states.get_mut(usize::from(asid.0)) {
            *state = State::Dirty(self.given_up);
        }
    }

    /// Gives up all, bound or not.
    pub fn give_up_all(&mut self, board: &mut impl Board) {
        self.look(board);
        self.given_up += 1;
        self.states.fill(State::Dirty(self.given_up));
    }

    /// DF_FLUSH: refused while a CPU still owes a WBINVD for any ASID; else none owes anything.
    pub fn flush(&mut self, board: &mut impl Board) -> Result<(), Status> {
        self.look(board);
        let newest = self.dirty().max();
        if newest.is_some_and(|number| !self.written_back(number)) {
            return Err(Status::WbinvdRequired);
        }
        board.flush_fabric().map_err(|_| Status::HardwareErrorPlatform)?;
        for state in &mut self.states {
            if matches!(state, State::Dirty(_)) {
                *state = State::Clean;
            }
        }
        Ok(())
    }

    /// Whether an ASID that was given up waits for DF_FLUSH.
    pub fn owes_flush(&self) -> bool {
        self.dirty().next().is_some()
    }

    /// Who holds it.
    pub fn holder(&self, asid: Asid) -> Option<Holder> {
        match self.states.get(usize::from(asid.0)) {
            Some(State::Bound(holder)) => Some(*holder),
            _ => None,
        }
    }

    /// Notes which CPUs executed WBINVD since it was last looked.
    fn look(&mut self, board: &mut impl Board) {
        for (cpu, seen) in (0..self.cpus).zip(&mut self.seen) {
            let wbinvds = board.cpu(CpuId(cpu)).wbinvds;
            if wbinvds != seen.wbinvds {
                *seen = Seen { wbinvds, covers: self.given_up };
            }
        }
    }

    fn dirty(&self) -> impl Iterator<Item = u64> + '_ {
        self.states.iter().filter_map(|state| if let State::Dirty(number) = state { Some(*number) } else { None })
    }

    fn written_back(&self, number: u64) -> bool {
        self.seen.iter().take(usize::from(self.cpus)).all(|seen| seen.covers >= number)
    }
}
