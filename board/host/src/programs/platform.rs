//! Frames that memory gives to the secure processor for SEV-ES.

use caisson_proto::addr::Frame;
use caisson_proto::kernel::{FrameCount, FrameDonate};

use crate::service::Sys;
use crate::silicon::DONATION;

/// Gives the processor its frames, unless a predecessor did: the last that are aligned as the processor wants it. None with
/// SEV-SNP, whose initialisation takes everything back.
pub fn donate(sys: &Sys<'_>) -> (Frame, u64) {
    let config = &sys.world.config;
    if !config.encrypted || config.snp {
        return (Frame(0), 0);
    }
    let frame = Frame((config.frames - DONATION) / DONATION * DONATION);
    if sys.ask(&FrameCount {}).is_ok_and(|counts| counts.firmware == 0) {
        let _ = sys.ask(&FrameDonate { frame, pages: DONATION });
    }
    (frame, DONATION)
}
