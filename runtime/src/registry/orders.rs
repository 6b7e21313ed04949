//! What the control thread and the executors tell each other.

use net::api::{LoadReply, LoadRequest, SwapReply, SwapRequest};
use net::error::ApiError;

use crate::engine::{GenerationId, Lane};
use crate::shard::Served;

/// From the control thread to an executor. All but an answer are acknowledged by a [`Message::Done`] of that number.
pub enum Order {
    /// A generation to know, and its lane for the leader; no request reaches it yet.
    Open { order: u64, served: Served, lane: Box<Lane> },
    /// From now on new requests for `name` go to `active`, and `canary` of them elsewhere; without `active` the name is
    /// forgotten.
    Route { order: u64, name: String, active: Option<GenerationId>, canary: Option<(GenerationId, f32)> },
    /// No request takes the generation any more: its lane goes back when the last one has ended.
    Close { order: u64, generation: GenerationId },
    /// A greedy answer, or an embedding, by the whole way of a request.
    Probe { order: u64, generation: GenerationId, prompt: Box<[u32]>, tokens_max: usize },
    /// What became of a job.
    Answer { job: u64, answer: Box<Result<JobReply, ApiError>> },
}

/// From an executor to the control thread.
pub enum Message {
    Job { shard: usize, job: u64, request: Box<JobRequest> },
    Done { order: u64, outcome: Outcome },
}

/// What a client asks the control thread for.
pub enum JobRequest {
    Load(LoadRequest),
    Swap { id: String, request: SwapRequest },
    Delete { name: String },
}

/// What a client gets.
pub enum JobReply {
    Loaded(LoadReply),
    Swapped(SwapReply),
    Deleted,
}

/// How an order ended.
pub enum Outcome {
    Done,
    /// The tokens of a probe, or the bits of an embedding; none where there was no room for it or the model failed,
    /// `failed` then.
    Probed {
        answer: Vec<u32>,
        failed: Option<&'static str>,
    },
}
