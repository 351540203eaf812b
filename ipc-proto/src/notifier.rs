//! notifier: decides which write-back is owed, and when.

use crate::abi::Status;
use crate::addr::VmId;
use crate::wire::Done;

/// Errors are [`Status`] values.
pub type Error = Status;

replies! {
    /// What notifier did since it started.
    pub struct NotifierReport {
        /// Reclaim notices read.
        pub notices: u64,
        /// Batches settled.
        pub settled: u64,
        /// Batches settled that owed no write-back.
        pub owed_nothing: u64,
        /// Tickets not done yet.
        pub waiting: u64,
    }
    /// What notifier did for one VM since the VM or notifier itself began.
    pub struct VmNotices {
        /// Reclaim notices read.
        pub notices: u64,
        /// Of these, those whose batch was settled already.
        pub spurious: u64,
        /// Write-backs that the kernel was asked for and that some CPU owed.
        pub asked: u64,
        /// Of these, those that every CPU has done.
        pub done: u64,
        /// Batches settled that owed no write-back.
        pub owed_nothing: u64,
    }
}

requests! {
    /// Every request to notifier.
    pub enum NotifierCall;

    /// Look at everything open now: the caller lost count, or reads faster than the doorbell.
    Settle = 1 {} -> Done;
    /// What it did so far.
    Report = 2 {} -> NotifierReport;
    /// Frames are wanted: write back until at least so many are on their way to be free, or nothing is left to be written back.
    Want = 3 { /** How many. */ frames: u64 } -> Done;
    /// What it did for a VM. Of one that it doesn't know it did nothing.
    NoticesOf = 16 { /** Which. */ vm: VmId } -> VmNotices;
}
