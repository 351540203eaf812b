//! Ctrl-C and its like: a run that is interrupted says so, and its exit status tells by which signal.

use std::process::exit;
use std::sync::{Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Context, Failure, Status};

/// Takes a signal, once there is something to be brought to an end.
type Taker = Box<dyn Fn(Failure) + Send>;

/// Who is told. Nobody: the process just ends.
static TAKER: Mutex<Option<Taker>> = Mutex::new(None);

/// From now on signals end the process as [`interrupted`] says.
pub fn watch() -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals")?;
    std::thread::spawn(move || {
        for number in signals.forever() {
            let end = interrupted(number);
            match &*TAKER.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(taker) => taker(end),
                None => {
                    crate::tell(&end);
                    exit(end.status as i32)
                }
            }
        }
    });
    Ok(())
}

/// From now on signals are given to `taker`.
pub fn give(taker: impl Fn(Failure) + Send + 'static) {
    *TAKER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(taker));
}

/// How a run ends by a signal.
fn interrupted(number: i32) -> Failure {
    let status = match number {
        SIGHUP => Status::Hangup,
        SIGTERM => Status::Terminated,
        _ => Status::Interrupted,
    };
    let name = signal_hook::low_level::signal_name(number).unwrap_or("a signal");
    Failure::new(status, format!("interrupted by {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_what_shells_say() {
        for number in [SIGHUP, SIGINT, SIGTERM] {
            let end = interrupted(number);
            assert_eq!(i32::from(end.status as u8), 128 + number);
            assert!(end.text.starts_with("interrupted by SIG"));
        }
    }
}
