//! Which model the devices serve: told by the control thread, taken by the feeders.

use std::sync::Arc;

use kernels::attention::KvType;
use rtrb::{Consumer, Producer, RingBuffer};

use super::known::KnownAnswer;
use super::shape::Shape;
use super::{ROWS_MAX, SLOTS};
use crate::engine::GenerationId;
use crate::log::warning;
use crate::mailbox::Doorbell;
use crate::model::Model;

/// What a device serves from now on.
#[derive(Clone)]
pub(super) struct Assignment {
    pub(super) generation: GenerationId,
    pub(super) model: Arc<Model>,
    pub(super) shape: Shape,
    pub(super) known: KnownAnswer,
}

/// Tells every feeder what to serve.
#[derive(Default)]
pub struct GpuOrders {
    kv_type: KvType,
    feeders: Vec<(Producer<Box<Assignment>>, Arc<Doorbell>)>,
    told: Option<GenerationId>,
}

impl GpuOrders {
    /// Nobody's yet; models get a KV cache of this type.
    pub(super) fn new(kv_type: KvType) -> Self {
        Self { kv_type, ..Self::default() }
    }

    /// A further feeder with that bell; what its end of the ring takes.
    pub(super) fn add(&mut self, bell: &Arc<Doorbell>) -> Consumer<Box<Assignment>> {
        let (orders, taken) = RingBuffer::new(ORDERS_MAX);
        self.feeders.push((orders, Arc::clone(bell)));
        taken
    }

    /// Has all devices serve `model` instead of what they served; nothing where they do already or can't. The self test's
    /// answers are computed on this thread.
    pub fn serve(&mut self, model: &Arc<Model>, generation: GenerationId, isa: kernels::Isa) {
        if self.feeders.is_empty() || self.told == Some(generation) {
            return;
        }
        self.told = Some(generation);
        let assignment = match self.assignment(model, generation, isa) {
            Ok(assignment) => assignment,
            Err(reason) => return warning!("no GPU serves generation {}: {reason}", generation.0),
        };
        for (orders, bell) in &mut self.feeders {
            // A feeder that took none of so many is beyond help.
            if orders.push(Box::new(assignment.clone())).is_err() {
                warning!("a GPU feeder takes no orders");
            }
            bell.ring();
        }
    }

    fn assignment(
        &self,
        model: &Arc<Model>,
        generation: GenerationId,
        isa: kernels::Isa,
    ) -> Result<Assignment, String> {
        let shape = Shape::of(&model.weights, self.kv_type, SLOTS, ROWS_MAX).map_err(|error| error.to_string())?;
        let known = KnownAnswer::compute(model, self.kv_type, isa).map_err(|error| error.to_string())?;
        Ok(Assignment { generation, model: Arc::clone(model), shape, known })
    }
}

/// Assignments that a feeder may be behind by: one swap takes longer than a feeder's turn.
const ORDERS_MAX: usize = 4;
