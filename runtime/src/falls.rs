//! How often something breaks down and begins anew, and when that is too often.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The last falls of one thread.
#[derive(Debug)]
pub struct Falls(VecDeque<Instant>);

impl Default for Falls {
    fn default() -> Self {
        Self(VecDeque::with_capacity(FALLS_MAX + 1))
    }
}

impl Falls {
    /// Counts one; whether it is to be given up.
    pub fn fell(&mut self, now: Instant) -> bool {
        self.0.retain(|fall| now.duration_since(*fall) < FALLS_WITHIN);
        self.0.push_back(now);
        self.0.len() > FALLS_MAX
    }
}

/// What breaks down more often than so within [`FALLS_WITHIN`] is given up, and with it the process.
pub const FALLS_MAX: usize = 5;
pub const FALLS_WITHIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_falls_too_often_in_a_while_is_given_up_and_old_falls_are_forgotten() {
        let (mut falls, start) = (Falls::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        assert!((0..5).all(|s| !falls.fell(at(s))));
        assert!(falls.fell(at(59)));
        assert!(!falls.fell(at(64)), "two of them are left: 59 and this one, and what fell at 4 has just gone");
        assert!((65..68).all(|s| !falls.fell(at(s))));
        assert!(falls.fell(at(68)));
    }
}
