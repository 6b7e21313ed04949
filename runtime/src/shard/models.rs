//! What a shard serves: names, and the generation that each stands for.
//!
//! Only the shard's own thread looks and changes, so a switch is one step: a request takes its generation once and
//! keeps it to its end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use net::error::ApiError;

use crate::engine::GenerationId;
use crate::metrics::GenerationMetrics;
use crate::model::Model;

/// A generation as the executor of a shard uses it.
#[derive(Clone)]
pub struct Served {
    pub id: GenerationId,
    pub model: Arc<Model>,
    pub metrics: Arc<GenerationMetrics>,
}

/// The served names, the first of which answers requests that name none.
pub(super) struct Models {
    routes: RefCell<Vec<Rc<Served>>>,
}

impl Models {
    pub(super) fn new(served: Vec<Served>) -> Self {
        Self { routes: RefCell::new(served.into_iter().map(Rc::new).collect()) }
    }

    /// The generation for a request that asks for `name`.
    pub(super) fn pick(&self, name: Option<&str>) -> Result<Rc<Served>, ApiError> {
        let routes = self.routes.borrow();
        let found = match name {
            Some(name) => routes.iter().find(|served| served.model.name == name),
            None => routes.first(),
        };
        found.map(Rc::clone).ok_or_else(|| ApiError::model_not_found(name.unwrap_or_default()))
    }

    /// All of them, in the order of their names' coming.
    pub(super) fn all(&self) -> Vec<Rc<Served>> {
        self.routes.borrow().clone()
    }
}
