//! How a run ends: an exit status and the words for it.

use std::fmt::Display;
use std::path::Path;

/// Exit statuses of `cargo xtask run`; other commands use `Clean`, `Failed` and `BadSetup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Every guest powered itself off.
    Clean = 0,
    /// A check didn't pass.
    Failed = 1,
    /// A guest crashed.
    GuestCrashed = 2,
    /// A service or the kernel faulted, or QEMU ended by itself.
    Faulted = 3,
    /// Time ran out.
    TimedOut = 4,
    /// An argument, a file or the set-up is bad.
    BadSetup = 5,
    /// A guest ended itself by the debug exit with another value than 0.
    TestFailed = 6,
    /// The terminal was closed: 128 and the signal's number, as shells have it.
    Hangup = 129,
    /// Ctrl-C.
    Interrupted = 130,
    /// Asked to end.
    Terminated = 143,
}

/// How something ended; also used for a good end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub status: Status,
    /// Why, in words.
    pub text: String,
}

impl Failure {
    /// An end with this status.
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// A bad argument, file or set-up.
    pub fn setup(text: impl Into<String>) -> Self {
        Self::new(Status::BadSetup, text)
    }
}

impl From<caisson_manifest::Error> for Failure {
    fn from(error: caisson_manifest::Error) -> Self {
        Self::setup(error.to_string())
    }
}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// `what` failed: the error becomes a [`Failure`] of the set-up.
    fn context(self, what: impl Display) -> Result<T, Failure>;

    /// As [`Context::context`], about a file.
    fn about(self, what: &str, path: &Path) -> Result<T, Failure>
    where
        Self: Sized,
    {
        self.context(format_args!("can't {what} {}", path.display()))
    }
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::setup(format!("{what}: {error}")))
    }
}
