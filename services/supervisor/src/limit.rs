//! How often a service may be restarted.

use heapless::Deque;

/// Restarts that a service has within its window; one more and it is given up.
pub const RESTARTS: usize = 5;
/// Milliseconds that the restart of a service counts.
pub const WINDOW_MS: u64 = 10_000;
/// Milliseconds that the reset of a guest counts: a guest that boots and fails takes several seconds each time.
pub const RESET_WINDOW_MS: u64 = 120_000;

/// When a service was restarted lately.
#[derive(Clone, Debug, Default)]
pub struct History(Deque<u64, RESTARTS>);

impl History {
    /// No restart yet.
    pub const fn new() -> Self {
        Self(Deque::new())
    }

    /// Counts a restart at `now_ms`. False, and it isn't counted, if it is one too many for a window.
    pub fn allow(&mut self, now_ms: u64, window_ms: u64) -> bool {
        while self.0.front().is_some_and(|&then| now_ms.saturating_sub(then) >= window_ms) {
            self.0.pop_front();
        }
        self.0.push_back(now_ms).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_in_ten_seconds_and_no_more() {
        let mut history = History::new();
        assert!((0..5).all(|n| history.allow(n * 1000, WINDOW_MS)));
        assert!(!history.allow(9_999, WINDOW_MS));
        assert!(history.allow(10_000, WINDOW_MS));
        assert!(!history.allow(10_500, WINDOW_MS));
        assert!(history.allow(11_000, WINDOW_MS));
    }
}
