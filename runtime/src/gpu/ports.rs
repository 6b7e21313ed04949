//! The rings between shards and feeders, both ends.

use std::cell::RefCell;
use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use super::assign::Assignment;
use super::feeder::{GpuCommand, Ports};
use super::status::Status;
use crate::engine::{Event, LANES_MAX};
use crate::mailbox::Doorbell;
use crate::schedule::StreamId;

/// What a shard holds of a feeder.
pub struct ShardPort {
    pub status: Arc<Status>,
    pub events: RefCell<Consumer<Event>>,
    commands: RefCell<Producer<GpuCommand>>,
    bell: Arc<Doorbell>,
}

/// What a feeder holds of a shard, but for the shard's bell.
pub(crate) struct FeederPort {
    commands: Consumer<GpuCommand>,
    events: Producer<Event>,
}

/// Both ends between one shard and one feeder with that status and bell.
pub(crate) fn pair(status: &Arc<Status>, bell: &Arc<Doorbell>) -> (ShardPort, FeederPort) {
    // A start and a cancellation of each sequence that the device takes at most, and the ends of generations.
    let (commands_in, commands) = RingBuffer::new(2 * status.capacity + LANES_MAX);
    let (events, events_out) = RingBuffer::new(EVENTS_PER_SEQUENCE * status.slots + status.capacity);
    let shard = ShardPort {
        status: Arc::clone(status),
        events: RefCell::new(events_out),
        commands: RefCell::new(commands_in),
        bell: Arc::clone(bell),
    };
    (shard, FeederPort { commands, events })
}

impl ShardPort {
    /// Sends a command; it comes back where there is no room.
    ///
    /// # Errors
    /// When the ring is full.
    pub fn send(&self, command: GpuCommand) -> Result<(), GpuCommand> {
        let sent = self.commands.borrow_mut().push(command);
        self.bell.ring();
        sent.map_err(|rtrb::PushError::Full(command)| command)
    }

    /// Room for commands.
    #[must_use]
    pub fn room(&self) -> usize {
        self.commands.borrow().slots()
    }

    /// Whether the feeder has sent nothing that was not taken yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.borrow().is_empty()
    }
}

/// All shards as a feeder sees them.
pub(super) struct RingPorts {
    ports: Vec<FeederPort>,
    assignments: Consumer<Box<Assignment>>,
    bells: Vec<Arc<Doorbell>>,
    /// Shards that were sent something since they were rung.
    sent: Vec<bool>,
    next: usize,
}

impl RingPorts {
    pub(super) fn new(
        ports: Vec<FeederPort>,
        assignments: Consumer<Box<Assignment>>,
        bells: Vec<Arc<Doorbell>>,
    ) -> Self {
        Self { sent: vec![false; ports.len()], ports, assignments, bells, next: 0 }
    }

    /// Whether no command waits.
    pub(super) fn is_empty(&self) -> bool {
        self.assignments.is_empty() && self.ports.iter().all(|port| port.commands.is_empty())
    }
}

impl Ports for RingPorts {
    fn receive(&mut self) -> Option<GpuCommand> {
        for _ in 0..self.ports.len() {
            self.next = (self.next + 1) % self.ports.len();
            if let Ok(command) = self.ports[self.next].commands.pop() {
                return Some(command);
            }
        }
        None
    }

    fn assignment(&mut self) -> Option<Box<Assignment>> {
        self.assignments.pop().ok()
    }

    /// A shard that is behind by the whole ring is waited for, one that is gone is not.
    fn send(&mut self, event: Event) {
        let shard = event.stream().shard();
        let (port, bell) = (&mut self.ports[shard], &self.bells[shard]);
        let mut event = event;
        while let Err(rtrb::PushError::Full(back)) = port.events.push(event) {
            if port.events.is_abandoned() {
                return;
            }
            event = back;
            bell.ring();
            std::thread::yield_now();
        }
        self.sent[shard] = true;
    }

    fn ring(&mut self) {
        for (sent, bell) in self.sent.iter_mut().zip(&self.bells) {
            if std::mem::take(sent) {
                bell.ring();
            }
        }
    }
}

impl StreamId {
    /// The first id that a shard gives out less one.
    #[must_use]
    pub fn first_of(shard: usize) -> u64 {
        (shard as u64) << SHARD_SHIFT
    }

    /// The shard that gave it out.
    #[must_use]
    pub fn shard(self) -> usize {
        usize::try_from(self.0 >> SHARD_SHIFT).expect("shards are few")
    }
}

/// Streams of a shard before ids run into the next one's: more than there will be.
const SHARD_SHIFT: u32 = 48;
/// Tokens that a shard may be behind by before the feeder waits for it.
const EVENTS_PER_SEQUENCE: usize = 16;
