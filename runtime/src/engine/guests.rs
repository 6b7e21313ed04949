//! The rings by which an executor has sequences computed by the leader of another shard, both ends.
//!
//! To the leader such a sequence is a guest: it comes as one that was taken in elsewhere, shares slots, blocks and turns
//! with its own, and its events go back to where it came from. What an executor has at one leader is bounded, so that a
//! leader has room for all guests that can come. A leader waits for the executor of another shard for [`PATIENCE`] at most
//! once the ring between them is full, since its own streams wait with it: then all guests of that shard are cut.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rtrb::{Consumer, Producer, RingBuffer};

use super::{Command, Event};
use crate::mailbox::{Doorbell, LeaderBell};
use crate::schedule::StreamId;

/// What wakes the threads of a shard, and says that its executor is gone.
#[derive(Clone)]
pub struct Bells {
    pub executor: Arc<Doorbell>,
    pub leader: Arc<LeaderBell>,
    pub stopping: Arc<AtomicBool>,
}

/// What an executor holds of another shard's leader.
pub struct Host {
    commands: RefCell<Producer<Command>>,
    pub events: RefCell<Consumer<Event>>,
    bell: Arc<LeaderBell>,
    cuts: Arc<AtomicU64>,
}

/// What a leader holds of another shard's executor.
struct Guest {
    commands: Consumer<Command>,
    events: Producer<Event>,
    bells: Bells,
    /// How often its sequences were cut, and whether they are to be: nothing is sent to it then.
    cuts: Arc<AtomicU64>,
    is_cut: bool,
    /// It was sent something since it was rung.
    sent: bool,
}

/// All executors but its own, as a leader sees them, by shard.
#[derive(Default)]
pub struct Guests(Vec<Option<Guest>>);

/// Most sequences that an executor has at each of the other leaders, where shards have `slots_max` slots.
#[must_use]
pub fn guests_max(slots_max: usize, shards: usize) -> usize {
    slots_max.div_ceil(shards.saturating_sub(1).max(1))
}

/// What a shard has of all others: by shard, nothing for itself.
#[derive(Default)]
pub struct Neighbours {
    /// Its executor's.
    pub hosts: Vec<Option<Host>>,
    /// Its leader's.
    pub guests: Guests,
}

/// The rings between all shards, for `sequences` at a time each.
#[must_use]
pub fn connect(shards: &[Bells], sequences: usize) -> Vec<Neighbours> {
    let mut ends: Vec<Neighbours> = shards.iter().map(|_| Neighbours::default()).collect();
    for (from, to) in (0..shards.len()).flat_map(|from| (0..shards.len()).map(move |to| (from, to))) {
        let (host, guest) = if from == to { (None, None) } else { pair(&shards[from], &shards[to], sequences) };
        ends[from].hosts.push(host);
        ends[to].guests.0.push(guest);
    }
    ends
}

fn pair(executor: &Bells, leader: &Bells, sequences: usize) -> (Option<Host>, Option<Guest>) {
    let (commands_in, commands) = RingBuffer::new(COMMANDS_PER_SEQUENCE * sequences);
    let (events, events_out) = RingBuffer::new(EVENTS_PER_SEQUENCE * sequences);
    let cuts = Arc::new(AtomicU64::new(0));
    let host = Host {
        cuts: Arc::clone(&cuts),
        commands: RefCell::new(commands_in),
        events: RefCell::new(events_out),
        bell: Arc::clone(&leader.leader),
    };
    (Some(host), Some(Guest { commands, events, bells: executor.clone(), cuts, is_cut: false, sent: false }))
}

impl Host {
    /// Sends a command.
    ///
    /// # Panics
    /// When there is no room for it: [`Host::room`] tells.
    pub fn send(&self, command: Command) {
        let sent = self.commands.borrow_mut().push(command);
        assert!(sent.is_ok(), "room was looked at before");
        self.bell.ring();
    }

    /// Room for commands.
    #[must_use]
    pub fn room(&self) -> usize {
        self.commands.borrow().slots()
    }

    /// How often the leader has given up on this executor: every sequence that was there then has ended, and some of its
    /// events were lost.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }

    /// Whether the leader has sent nothing that was not taken yet.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.events.borrow().is_empty()
    }
}

impl Guests {
    fn all(&self) -> impl Iterator<Item = &Guest> {
        self.0.iter().flatten()
    }

    /// The next command of any of them.
    pub(super) fn receive(&mut self) -> Option<Command> {
        self.0.iter_mut().flatten().find_map(|guest| guest.commands.pop().ok())
    }

    /// Whether no command waits.
    pub(super) fn are_quiet(&self) -> bool {
        self.all().all(|guest| guest.commands.is_empty())
    }

    /// Whether all executors have ended, so that no command comes any more.
    pub(super) fn have_left(&self) -> bool {
        self.all().all(|guest| guest.bells.stopping.load(Ordering::SeqCst) && guest.commands.is_empty())
    }

    /// The way of a stream's events; `None` for streams of its own shard.
    pub(super) fn way(&mut self, stream: StreamId) -> Option<(&mut Producer<Event>, &Doorbell)> {
        let guest = self.0.get_mut(stream.shard())?.as_mut()?;
        guest.sent = true;
        Some((&mut guest.events, &guest.bells.executor))
    }

    /// Gives up on the shard that a stream is of, until [`Guests::told_cut`].
    pub(super) fn cut(&mut self, stream: StreamId) {
        if let Some(Some(guest)) = self.0.get_mut(stream.shard()) {
            guest.is_cut = true;
        }
    }

    /// Whether the sequences of a stream's shard are about to be cut.
    pub(super) fn is_cut(&self, stream: StreamId) -> bool {
        self.0.get(stream.shard()).is_some_and(|guest| guest.as_ref().is_some_and(|guest| guest.is_cut))
    }

    /// A shard whose sequences are to be cut.
    pub(super) fn next_cut(&self) -> Option<usize> {
        self.0.iter().position(|guest| guest.as_ref().is_some_and(|guest| guest.is_cut))
    }

    /// The sequences of that shard have ended here: its executor is told.
    pub(super) fn told_cut(&mut self, shard: usize) {
        let guest = self.0[shard].as_mut().expect("it was cut");
        guest.is_cut = false;
        guest.cuts.fetch_add(1, Ordering::SeqCst);
        guest.bells.executor.ring();
    }

    /// Wakes those that were sent something.
    pub(super) fn ring(&mut self) {
        for guest in self.0.iter_mut().flatten() {
            if std::mem::take(&mut guest.sent) {
                guest.bells.executor.ring();
            }
        }
    }

    /// Wakes all of them.
    pub(super) fn ring_all(&self) {
        self.all().for_each(|guest| guest.bells.executor.ring());
    }
}

/// How long a leader waits for another shard's executor that is behind by [`EVENTS_PER_SEQUENCE`].
pub(super) const PATIENCE: Duration = Duration::from_millis(200);
/// A sequence's start and its cancellation, and those of one that took its place before they were read.
const COMMANDS_PER_SEQUENCE: usize = 4;
/// Tokens that an executor may be behind by before the leader waits for it.
const EVENTS_PER_SEQUENCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn bells(count: usize) -> Vec<Bells> {
        let bells =
            || Bells { executor: Arc::new(Doorbell::new().unwrap()), leader: Arc::default(), stopping: Arc::default() };
        (0..count).map(|_| bells()).collect()
    }

    fn cancel(shard: usize) -> Command {
        Command::Cancel(StreamId(StreamId::first_of(shard) + 1))
    }

    #[test]
    fn commands_reach_the_leader_that_they_are_for_and_events_go_back() {
        let bells = bells(3);
        let mut ends = connect(&bells, 1);
        for (shard, ends) in ends.iter().enumerate() {
            let own: Vec<bool> = ends.hosts.iter().map(Option::is_none).collect();
            assert_eq!(own, (0..3).map(|other| other == shard).collect::<Vec<_>>());
        }
        ends[2].hosts[1].as_ref().unwrap().send(cancel(2));
        assert!(ends[0].guests.are_quiet() && !ends[1].guests.are_quiet());
        let Some(Command::Cancel(stream)) = ends[1].guests.receive() else { panic!("it was sent") };
        assert!(ends[1].guests.way(StreamId(StreamId::first_of(1))).is_none());
        let (events, _) = ends[1].guests.way(stream).unwrap();
        events.push(Event::Admitted(stream)).unwrap();
        assert!(ends[0].hosts[1].as_ref().unwrap().is_quiet());
        let back = ends[2].hosts[1].as_ref().unwrap().events.borrow_mut().pop();
        assert!(matches!(back, Ok(Event::Admitted(back)) if back == stream));
    }

    #[test]
    fn guests_have_left_when_their_executors_have_and_all_was_read() {
        let bells = bells(3);
        let mut ends = connect(&bells, 1);
        ends[1].hosts[0].as_ref().unwrap().send(cancel(1));
        bells[1].stopping.store(true, Ordering::SeqCst);
        assert!(!ends[0].guests.have_left());
        bells[2].stopping.store(true, Ordering::SeqCst);
        assert!(!ends[0].guests.have_left(), "a command waits");
        assert!(ends[0].guests.receive().is_some() && ends[0].guests.have_left());
        assert!(Guests::default().have_left(), "nobody is a guest of a single shard");
    }

    #[test]
    fn the_places_of_guests_are_about_as_many_as_a_shard_has_slots() {
        assert_eq!([(50, 2), (13, 8), (1, 4), (7, 1)].map(|(slots, shards)| guests_max(slots, shards)), [50, 2, 1, 7]);
    }
}
