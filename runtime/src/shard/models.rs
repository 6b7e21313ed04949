//! What a shard serves: names, and the generation that each stands for.
//!
//! Only the shard's own thread looks and changes, so a switch is one step: a request takes its generation once and
//! keeps it to its end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use net::error::ApiError;

use crate::engine::GenerationId;
use crate::kv::KnownBlocks;
use crate::metrics::GenerationMetrics;
use crate::model::Model;
use crate::registry::Facts;

/// A generation as the executor of a shard uses it.
#[derive(Clone)]
pub struct Served {
    pub id: GenerationId,
    pub model: Arc<Model>,
    pub facts: Arc<Facts>,
    /// This shard's counts, and those of all shards.
    pub metrics: Arc<GenerationMetrics>,
    pub everywhere: Arc<[Arc<GenerationMetrics>]>,
    /// What the cache of each shard knows; none where prompts share nothing.
    pub known: Arc<[Arc<KnownBlocks>]>,
}

/// A served name.
struct Route {
    name: String,
    active: Rc<Served>,
    /// Another generation, and its share of the requests.
    canary: Option<(Rc<Served>, f32)>,
    /// Share of a request that the canary is owed.
    owed: Cell<f32>,
}

/// What a request gets: its generation, and the one to compare it with where it is a canary's.
pub(super) struct Picked {
    pub(super) served: Rc<Served>,
    pub(super) reference: Option<Rc<Served>>,
}

/// The served names, the first of which answers requests that name none, and the generations that the leader has.
pub(super) struct Models {
    routes: RefCell<Vec<Route>>,
    known: RefCell<Vec<Rc<Served>>>,
    /// Closed generations, until the last request that took one has ended.
    leaving: RefCell<Vec<Rc<Served>>>,
    /// Of generations that receipts may name.
    facts: RefCell<Vec<Arc<Facts>>>,
}

impl Models {
    /// Each generation under its model's name.
    pub(super) fn new(served: Vec<Served>) -> Self {
        let models = Self {
            routes: RefCell::default(),
            known: RefCell::default(),
            leaving: RefCell::default(),
            facts: RefCell::default(),
        };
        for served in served {
            let (name, id) = (served.model.name.clone(), served.id);
            models.open(served);
            models.route(&name, Some(id), None);
        }
        models
    }

    /// The generation for a request that asks for `name`.
    pub(super) fn pick(&self, name: Option<&str>) -> Result<Picked, ApiError> {
        let routes = self.routes.borrow();
        let found = match name {
            Some(name) => routes.iter().find(|route| route.name == name),
            None => routes.first(),
        };
        let route = found.ok_or_else(|| match name {
            Some(name) => ApiError::model_not_found(name),
            None => ApiError::unavailable("no model is loaded", RETRY_NO_MODEL),
        })?;
        if let Some((canary, share)) = &route.canary {
            let owed = route.owed.get() + share;
            route.owed.set(if owed >= 1.0 { owed - 1.0 } else { owed });
            if owed >= 1.0 {
                return Ok(Picked { served: Rc::clone(canary), reference: Some(Rc::clone(&route.active)) });
            }
        }
        Ok(Picked { served: Rc::clone(&route.active), reference: None })
    }

    /// What answers for `name` now, whoever asks.
    pub(super) fn active(&self, name: Option<&str>) -> Result<Rc<Served>, ApiError> {
        let routes = self.routes.borrow();
        let found = routes.iter().find(|route| name.is_none_or(|name| route.name == name));
        found.map(|route| Rc::clone(&route.active)).ok_or_else(|| ApiError::model_not_found(name.unwrap_or_default()))
    }

    /// The active generations, in the order of their names' coming.
    pub(super) fn all(&self) -> Vec<Rc<Served>> {
        self.routes.borrow().iter().map(|route| Rc::clone(&route.active)).collect()
    }

    /// The generations of `name` that are held, each with what it is there for.
    pub(super) fn versions(&self, name: &str) -> Vec<(Rc<Served>, &'static str)> {
        let routes = self.routes.borrow();
        let Some(route) = routes.iter().find(|route| route.name == name) else { return Vec::new() };
        let state = |served: &Rc<Served>| match &route.canary {
            _ if served.id == route.active.id => "active",
            Some((canary, _)) if canary.id == served.id => "canary",
            _ => "standby",
        };
        let known = self.known.borrow();
        known
            .iter()
            .filter(|served| served.model.name == name)
            .map(|served| (Rc::clone(served), state(served)))
            .collect()
    }

    /// What is known of a generation, also of one that has left.
    pub(super) fn facts(&self, generation: GenerationId) -> Option<Arc<Facts>> {
        self.facts.borrow().iter().find(|facts| facts.generation == generation).map(Arc::clone)
    }

    pub(super) fn generation(&self, generation: GenerationId) -> Option<Rc<Served>> {
        self.known.borrow().iter().find(|served| served.id == generation).map(Rc::clone)
    }

    pub(super) fn open(&self, served: Served) {
        let mut facts = self.facts.borrow_mut();
        if facts.len() == FACTS_MAX {
            facts.remove(0);
        }
        facts.push(Arc::clone(&served.facts));
        self.known.borrow_mut().push(Rc::new(served));
    }

    /// New requests for `name` go there from now on.
    pub(super) fn route(&self, name: &str, active: Option<GenerationId>, canary: Option<(GenerationId, f32)>) {
        let mut routes = self.routes.borrow_mut();
        let Some(active) = active else {
            routes.retain(|route| route.name != name);
            return;
        };
        let find = |id| self.generation(id).expect("a generation is opened before requests go to it");
        let (active, canary) = (find(active), canary.map(|(id, share)| (find(id), share)));
        match routes.iter_mut().find(|route| route.name == name) {
            Some(route) => (route.active, route.canary) = (active, canary),
            None => routes.push(Route { name: name.to_owned(), active, canary, owed: Cell::new(0.0) }),
        }
    }

    /// Whether new requests take the generation.
    pub(super) fn is_routed(&self, generation: GenerationId) -> bool {
        let takes = |route: &Route| {
            route.active.id == generation || route.canary.as_ref().is_some_and(|(canary, _)| canary.id == generation)
        };
        self.routes.borrow().iter().any(takes)
    }

    /// No further request takes the generation. Those that have it may not have begun: see [`Models::take_left`].
    pub(super) fn close(&self, generation: GenerationId) {
        let mut known = self.known.borrow_mut();
        let at = known.iter().position(|served| served.id == generation).expect("a generation is closed once");
        self.leaving.borrow_mut().push(known.remove(at));
    }

    /// A closed generation that no request has any more.
    pub(super) fn take_left(&self) -> Option<GenerationId> {
        let mut leaving = self.leaving.borrow_mut();
        let at = leaving.iter().position(|served| Rc::strong_count(served) == 1)?;
        Some(leaving.swap_remove(at).id)
    }
}

/// Generations that receipts can name.
const FACTS_MAX: usize = 1024;
const RETRY_NO_MODEL: std::time::Duration = std::time::Duration::from_secs(5);
