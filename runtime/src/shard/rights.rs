//! Who may do what, as the operator said last: a chain whose last link holds. Whoever wants to know goes to its end, without a
//! lock; a link that all have passed is freed.

use std::sync::{Arc, OnceLock};

use net::auth::Keys;

use super::Shard;
use crate::config::Config;

/// Keys and secret, and whether every request wants one.
pub struct Rights {
    pub keys: Keys,
    pub require_authentication: bool,
    newer: OnceLock<Arc<Self>>,
}

impl Rights {
    /// Those of `config`.
    #[must_use]
    pub fn of(config: &Config) -> Arc<Self> {
        let keys = config.keys.clone();
        Arc::new(Self { keys, require_authentication: config.require_authentication, newer: OnceLock::new() })
    }

    /// Has those of `config` hold from now on; `last` is the end of the chain before and after.
    pub fn replace(last: &mut Arc<Self>, config: &Config) {
        let newer = Self::of(config);
        let set = last.newer.set(Arc::clone(&newer));
        assert!(set.is_ok(), "only the last link gets a newer one");
        *last = newer;
    }

    /// What holds now, of a chain from `known` on.
    fn latest(known: &mut Arc<Self>) -> Arc<Self> {
        while let Some(newer) = known.newer.get().map(Arc::clone) {
            *known = newer;
        }
        Arc::clone(known)
    }
}

impl Shard {
    /// What holds now.
    pub(super) fn rights(&self) -> Arc<Rights> {
        Rights::latest(&mut self.rights.borrow_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    #[test]
    fn everyone_finds_the_last_link_and_those_before_are_freed() {
        let config =
            |secret: &str| Settings { jwt_secret: Some(secret.repeat(32)), ..Settings::default() }.validate().unwrap();
        let mut last = Rights::of(&Config::standard());
        let (mut known, first) = (Arc::clone(&last), Arc::downgrade(&last));
        assert!(Rights::latest(&mut known).keys.is_empty());
        Rights::replace(&mut last, &config("a"));
        Rights::replace(&mut last, &config("b"));
        let second = Arc::downgrade(known.newer.get().unwrap());
        assert!(first.upgrade().is_some());
        assert!(Arc::ptr_eq(&Rights::latest(&mut known), &last));
        assert!(first.upgrade().is_none() && second.upgrade().is_none());
    }
}
