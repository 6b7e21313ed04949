//! Who may do what, and by which certificate the server is known, as the operator said last: a chain whose last link holds.
//! Whoever wants to know goes to its end, without a lock; a link that all have passed is freed.

use std::sync::{Arc, OnceLock};

use net::auth::Keys;
use net::tls::Identity;

use super::Shard;
use crate::config::Config;

/// Keys and secret, whether every request wants one, and what TLS is spoken by, where it is.
pub struct Terms {
    pub keys: Keys,
    pub require_authentication: bool,
    pub identity: Option<Arc<Identity>>,
    newer: OnceLock<Arc<Self>>,
}

impl Terms {
    /// Those of `config`, and of the certificate and key that it names.
    #[must_use]
    pub fn of(config: &Config, identity: Option<Arc<Identity>>) -> Arc<Self> {
        let (keys, require_authentication) = (config.keys.clone(), config.require_authentication);
        Arc::new(Self { keys, require_authentication, identity, newer: OnceLock::new() })
    }

    /// Has other ones hold from now on; `last` is the end of the chain before and after.
    pub fn replace(last: &mut Arc<Self>, config: &Config, identity: Option<Arc<Identity>>) {
        let newer = Self::of(config, identity);
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
    pub(super) fn terms(&self) -> Arc<Terms> {
        Terms::latest(&mut self.terms.borrow_mut())
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
        let mut last = Terms::of(&Config::standard(), None);
        let (mut known, first) = (Arc::clone(&last), Arc::downgrade(&last));
        assert!(Terms::latest(&mut known).keys.is_empty());
        Terms::replace(&mut last, &config("a"), None);
        Terms::replace(&mut last, &config("b"), None);
        let second = Arc::downgrade(known.newer.get().unwrap());
        assert!(first.upgrade().is_some());
        assert!(Arc::ptr_eq(&Terms::latest(&mut known), &last));
        assert!(first.upgrade().is_none() && second.upgrade().is_none());
    }
}
