//! Whether the host can keep caches right for memory: decided when a slot is made, and checked again at each fault.
//!
//! What a guest caches, the host has to flush before it belongs to somebody else. It flushes through a mapping of its own, or
//! needn't where the machine keeps the aliases coherent (SME_COHERENT: APM volume 3, CPUID 8000_001F EAX bit 10). Of frames that it
//! manages, private ones too, the kernel has such a mapping whenever it flushes: its window. Of memory behind a device it has none.
//! Where neither holds, cacheable memory is refused. It is never shown uncached instead: a guest that was restored from another
//! machine fails when its slots are made, and not at its first fault, or by being slow.

/// What this machine does by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Encrypted and plain aliases of a line are coherent.
    pub coherent: bool,
}

/// What memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Guests cache it: ordinary memory. A device's registers they don't.
    pub cacheable: bool,
    /// The host has a mapping, through which it can flush it.
    pub mapped: bool,
}

impl Backing {
    /// Frames of the kernel's table: a region of memory's, or a gmem.
    pub const ORDINARY: Self = Self { cacheable: true, mapped: true };
    /// Memory that isn't the kernel's to map, such as a device's, and is to be cached.
    pub const FOREIGN: Self = Self { cacheable: true, mapped: false };
}

/// How a slot's memory is shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Cached.
    Cached,
    /// Not cached.
    Uncached,
}

/// The host couldn't flush it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoherent;

/// How memory is to be shown.
///
/// # Errors
/// [`Incoherent`] for cacheable memory which this host can't flush.
pub const fn decide(backing: Backing, host: Host) -> Result<Caching, Incoherent> {
    match backing {
        Backing { cacheable: false, .. } => Ok(Caching::Uncached),
        Backing { mapped, .. } if mapped || host.coherent => Ok(Caching::Cached),
        _ => Err(Incoherent),
    }
}

/// What was decided, if it still holds: at a fault.
///
/// # Errors
/// [`Incoherent`] if memory or host aren't what they were.
pub fn confirm(decided: Caching, backing: Backing, host: Host) -> Result<Caching, Incoherent> {
    decide(backing, host).and_then(|now| if now == decided { Ok(now) } else { Err(Incoherent) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COHERENT: Host = Host { coherent: true };
    const NOT: Host = Host { coherent: false };
    const DEVICE: Backing = Backing { cacheable: false, mapped: false };

    #[test]
    fn what_the_host_can_flush_is_cached() {
        assert_eq!(decide(Backing::ORDINARY, NOT), Ok(Caching::Cached));
        assert_eq!(decide(Backing::ORDINARY, COHERENT), Ok(Caching::Cached));
        assert_eq!(decide(Backing::FOREIGN, COHERENT), Ok(Caching::Cached));
        assert_eq!(decide(DEVICE, NOT), Ok(Caching::Uncached));
    }

    #[test]
    fn what_it_cant_flush_is_refused_and_not_shown_uncached() {
        assert_eq!(decide(Backing::FOREIGN, NOT), Err(Incoherent));
    }

    #[test]
    fn a_decision_that_no_longer_holds_is_refused_at_the_fault() {
        assert_eq!(confirm(Caching::Cached, Backing::FOREIGN, COHERENT), Ok(Caching::Cached));
        assert_eq!(confirm(Caching::Cached, Backing::FOREIGN, NOT), Err(Incoherent));
        assert_eq!(confirm(Caching::Cached, DEVICE, COHERENT), Err(Incoherent), "it became a device");
        assert_eq!(confirm(Caching::Uncached, Backing::ORDINARY, NOT), Err(Incoherent), "it became memory");
    }
}
