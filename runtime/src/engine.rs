//! The step loop of a shard, run by its leader: commands in, steps through the forward pass, tokens out.
//!
//! The leader owns a small table of lanes, one for each generation that is served or being drained. A step belongs to
//! one lane; lanes with work take turns, all on the same team.

#[cfg(test)]
pub(crate) mod faults;
mod guests;
mod lane;
mod pool;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer};

use crate::falls::{FALLS_MAX, FALLS_WITHIN, Falls};
use crate::guide::Beside;
use crate::log::warning;
use crate::mailbox::{Doorbell, LeaderBell};
use crate::metrics::ShardMetrics;
use crate::schedule::{NewSequence, StreamId};
use crate::team::Team;

pub use guests::{Bells, Guests, Host, Neighbours, connect, guests_max};
pub use lane::{Lane, LaneLimits};
pub(crate) use lane::{cached_event, choose, next_event};
pub(crate) use pool::pooled;

/// A loaded version of a model: its number in the order of loading, unique in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GenerationId(pub u32);

/// From the executor to the leader.
pub enum Command {
    Start {
        generation: GenerationId,
        sequence: Box<NewSequence>,
    },
    /// A sequence that was accepted elsewhere, by another shard or for another device: never refused.
    Resume {
        generation: GenerationId,
        sequence: Box<NewSequence>,
    },
    Cancel(StreamId),
    /// A generation whose sequences may come from now on.
    Open(Box<Lane>),
    /// No further sequence of it comes: its lane goes back to who made it when the last one has ended.
    Close(GenerationId),
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-generation token, or a stop string.
    Stop,
    /// The token limit of the request or of the context.
    Length,
    /// The model gave no usable scores.
    Failed,
    /// What the answer must look like takes more work to keep to than is allowed.
    Unguided,
    /// The leader broke down and began anew.
    Lost,
}

/// From the leader to the executor.
#[derive(Debug)]
pub enum Event {
    /// The sequence left the queue.
    Admitted(StreamId),
    /// Tokens of its prompt that were in the KV cache, where there were any; before its first token.
    Cached { stream: StreamId, tokens: usize },
    /// The next tokens of its prompt, as likely as they were.
    Scored { stream: StreamId, tokens: Box<[Sampled]> },
    /// The queue is full.
    Refused(StreamId),
    /// One token of the answer, perhaps the last, and when it was known.
    Token { stream: StreamId, sampled: Sampled, at: Instant, finish: Option<Finish> },
    /// The one answer of an embedding model: a vector of length 1.
    Embedding { stream: StreamId, vector: Box<[f32]> },
    /// The end without a further token.
    End { stream: StreamId, finish: Finish },
    /// The device gives the sequence back as it stands: it goes on elsewhere.
    Returned(Box<NewSequence>),
}

impl Event {
    /// The stream that it is about.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        match self {
            Self::Admitted(stream) | Self::Refused(stream) => *stream,
            Self::Token { stream, .. } | Self::Embedding { stream, .. } | Self::End { stream, .. } => *stream,
            Self::Cached { stream, .. } | Self::Scored { stream, .. } => *stream,
            Self::Returned(sequence) => sequence.stream,
        }
    }

    /// Whether the stream ends with it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::End { .. } | Self::Embedding { .. } | Self::Token { finish: Some(_), .. }
        )
    }
}

/// A chosen token and what the request wants to know of the choice.
#[derive(Debug)]
pub struct Sampled {
    pub token: u32,
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Natural logarithms of probabilities under the raw scores.
#[derive(Debug)]
pub struct TokenLogprobs {
    pub logprob: f32,
    /// The best tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// The ends that the leader holds, and what it needs to wake the other side.
pub struct Link {
    pub commands: Consumer<Command>,
    pub events: Producer<Event>,
    /// Lanes that are over, for whoever frees their memory: never this thread.
    pub closed: Producer<Lane>,
    pub guests: Guests,
    /// Where slow guides are while the steps go on.
    pub beside: Beside,
    pub doorbell: Arc<Doorbell>,
    pub bell: Arc<LeaderBell>,
    pub stopping: Arc<AtomicBool>,
}

/// Everything that a shard computes with.
pub struct Engine {
    team: Team,
    lanes: Vec<Lane>,
    /// Whose turn it is, if it has work.
    turn: usize,
    link: Link,
    metrics: Arc<ShardMetrics>,
}

impl Engine {
    /// Assembles a step loop over `lanes`, made for this team; nothing runs yet.
    #[must_use]
    pub fn new(team: Team, lanes: Vec<Lane>, link: Link, metrics: Arc<ShardMetrics>) -> Self {
        let mut lanes = lanes;
        lanes.reserve(LANES_MAX.saturating_sub(lanes.len()));
        Self { team, lanes, turn: 0, link, metrics }
    }

    /// One step of one row of each lane, so that every page and every code path of a step is warm, and the scores are
    /// known to be numbers.
    ///
    /// # Panics
    /// When they are not.
    pub fn warm_up(&mut self) {
        for lane in &mut self.lanes {
            lane.warm_up(&self.team, &self.metrics);
        }
    }

    /// Runs until all executors have said `stopping` and every sequence has ended, or they are gone.
    ///
    /// A panic ends the sequences that were there, and it begins anew; one that breaks down too often is given up.
    pub fn run(mut self) {
        let mut falls = Falls::default();
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            let now = Instant::now();
            if falls.fell(now) {
                warning!("a shard broke down {FALLS_MAX} times within {} s: it is given up", FALLS_WITHIN.as_secs());
                return;
            }
            if let Err(error) = self.begin_anew() {
                warning!("a shard that broke down gets no workers: {error}");
                return;
            }
            self.metrics.observe_restart(now.elapsed());
            self.link.doorbell.ring();
            self.link.guests.ring_all();
        }
    }

    /// Forgets every sequence. Their streams are the executor's to end: it knows all of them, whatever state the panic
    /// has left here.
    fn begin_anew(&mut self) -> std::io::Result<()> {
        self.team.renew()?;
        for lane in &mut self.lanes {
            lane.clear(&self.team);
        }
        while self.link.guests.receive().is_some() {}
        while let Ok(command) = self.link.commands.pop() {
            match command {
                Command::Open(lane) => self.lanes.push(*lane),
                Command::Close(generation) => {
                    if let Some(lane) = self.lane(generation) {
                        lane.close();
                    }
                }
                Command::Start { .. } | Command::Resume { .. } | Command::Cancel(_) => {}
            }
        }
        Ok(())
    }

    fn serve(&mut self) {
        while !self.link.is_abandoned() {
            self.receive();
            if self.link.beside.take_news() {
                self.lanes.iter_mut().for_each(Lane::take_guides_back);
            }
            self.cut_guests();
            self.release();
            if let Some(index) = self.form() {
                self.turn = index + 1;
                self.metrics.step.under_way.set(1);
                let is_behind = self.lanes[index].step(&self.team, &mut self.link, &self.metrics);
                self.publish();
                self.link.ring();
                if is_behind {
                    // It was rung a whole step ago and waits, most likely for the core that this thread has.
                    std::thread::yield_now();
                }
                self.give_back_idle();
                continue;
            }
            let waits = self.lanes.iter().any(|lane| lane.beside() > 0);
            if self.link.has_ended() && !waits {
                return;
            }
            if !self.give_back_idle() {
                self.publish();
                let link = &self.link;
                let comes = || !link.commands.is_empty() || !link.guests.are_quiet() || link.beside.has_news();
                link.bell.sleep_unless(SPINS_BEFORE_SLEEP, || comes() || link.has_ended() && !waits);
            }
        }
    }

    fn receive(&mut self) {
        self.receive_own();
        while let Some(command) = self.link.guests.receive() {
            // The generation of a guest was opened before it came.
            self.receive_own();
            self.obey(command);
        }
        self.link.ring();
    }

    /// Ends the sequences of shards whose executors don't take what they are sent.
    fn cut_guests(&mut self) {
        while let Some(shard) = self.link.guests.next_cut() {
            self.lanes.iter_mut().for_each(|lane| lane.cancel_all_of(shard));
            self.link.guests.told_cut(shard);
        }
    }

    fn receive_own(&mut self) {
        while let Ok(command) = self.link.commands.pop() {
            self.obey(command);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start { generation, sequence } => {
                let lane = self.lane(generation).expect("a generation is opened before its sequences start");
                if let Err(full) = lane.submit(*sequence) {
                    push(&mut self.link, Event::Refused(full.0.stream));
                }
            }
            Command::Resume { generation, sequence } => {
                match self.lanes.iter_mut().find(|lane| lane.id() == generation) {
                    Some(lane) => lane.resume(*sequence, &self.link.beside),
                    None => push(&mut self.link, Event::End { stream: sequence.stream, finish: Finish::Failed }),
                }
            }
            Command::Cancel(stream) => self.lanes.iter_mut().for_each(|lane| lane.cancel(stream)),
            Command::Open(lane) => self.lanes.push(*lane),
            Command::Close(generation) => self.lane(generation).expect("a generation is closed once").close(),
        }
    }

    fn lane(&mut self, generation: GenerationId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id() == generation)
    }

    /// Hands lanes that are over to the thread that frees them.
    fn release(&mut self) {
        while let Some(index) = self.lanes.iter().position(|lane| lane.is_over()) {
            self.lanes[index].publish();
            self.metrics.count_schedule(self.lanes[index].take_counts());
            let lane = self.lanes.remove(index);
            // Where nobody wants it back any more, the process is ending.
            let _ = self.link.closed.push(lane);
        }
    }

    /// The next lane that has work, its step formed.
    fn form(&mut self) -> Option<usize> {
        let count = self.lanes.len();
        let is_felt = self.lanes.iter_mut().any(|lane| lane.has_quick(&self.link.beside));
        let all_s: f64 = self.lanes.iter().map(|lane| lane.decode_estimate_s()).sum();
        (0..count).map(|offset| (self.turn + offset) % count).find(|&index| {
            let lane = &mut self.lanes[index];
            let beside_s = all_s - lane.decode_estimate_s();
            lane.form(&mut self.link, beside_s.max(0.0), is_felt)
        })
    }

    /// Gives a little KV memory that nobody has used for long back; whether there may be more.
    fn give_back_idle(&mut self) -> bool {
        let now = Instant::now();
        self.lanes.iter_mut().any(|lane| lane.give_back_idle(now))
    }

    fn publish(&mut self) {
        self.metrics.step.under_way.set(0);
        let (mut running, mut waiting, mut prompts, mut prompt_tokens) = (0, 0, 0, 0);
        let (mut used, mut resident, mut all, mut beside) = (0, 0, 0, 0);
        for lane in &mut self.lanes {
            lane.publish();
            self.metrics.count_schedule(lane.take_counts());
            let blocks = lane.kv_blocks();
            running += lane.running();
            waiting += lane.waiting();
            beside += lane.beside();
            prompts += lane.prompts();
            prompt_tokens += lane.prompt_tokens();
            used += blocks.0;
            all += blocks.1;
            resident += lane.kv_resident();
        }
        self.metrics.set_queue((running, waiting), prompts, prompt_tokens);
        self.metrics.step.beside.set(beside as u64);
        self.metrics.set_kv(used, resident, all);
    }
}

impl Link {
    /// Whether events of earlier steps are still in the ring of the leader's own executor.
    fn executor_is_behind(&self) -> bool {
        self.events.slots() < self.events.buffer().capacity()
    }

    /// Whether no command comes any more.
    fn has_ended(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) && self.commands.is_empty() && self.guests.have_left()
    }

    /// Whether nobody takes events any more, whatever there is to compute.
    fn is_abandoned(&self) -> bool {
        self.events.is_abandoned() && self.guests.have_left()
    }

    /// Wakes the executors that something was sent to.
    fn ring(&mut self) {
        self.doorbell.ring();
        self.guests.ring();
    }
}

/// The ring holds the events of several steps; an executor that is behind for longer is waited for, another shard's not
/// for long, and one that is gone is not.
fn push(link: &mut Link, event: Event) {
    let stream = event.stream();
    if link.guests.is_cut(stream) {
        return;
    }
    let (events, doorbell, patience) = match link.guests.way(stream) {
        Some((events, doorbell)) => (events, doorbell, guests::PATIENCE),
        None => (&mut link.events, &*link.doorbell, Duration::MAX),
    };
    let (mut event, mut since) = (event, None);
    while let Err(rtrb::PushError::Full(back)) = events.push(event) {
        if events.is_abandoned() {
            return;
        }
        if since.get_or_insert_with(Instant::now).elapsed() > patience {
            warning!("shard {} does not take its tokens: its sequences here end", stream.shard());
            link.guests.cut(stream);
            return;
        }
        event = back;
        doorbell.ring();
        std::thread::yield_now();
    }
}

/// Most generations that a shard holds at a time, served and draining; also the room of the ring that takes them back.
pub const LANES_MAX: usize = 64;
/// A leader out of work looks this often for more before it sleeps: about 10 us.
const SPINS_BEFORE_SLEEP: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn token(stream: StreamId) -> Event {
        Event::Token { stream, sampled: Sampled { token: 7, logprobs: None }, at: Instant::now(), finish: None }
    }

    #[test]
    fn an_executor_that_takes_nothing_loses_its_guests_and_holds_up_nobody_else_for_long() {
        let bells =
            || Bells { executor: Arc::new(Doorbell::new().unwrap()), leader: Arc::default(), stopping: Arc::default() };
        let all = [bells(), bells()];
        let mut ends = connect(&all, 1);
        let host = ends[1].hosts[0].take().unwrap();
        let (_commands, commands) = rtrb::RingBuffer::new(1);
        let (events, mut own) = rtrb::RingBuffer::new(8);
        let (closed, _closed) = rtrb::RingBuffer::new(1);
        let Bells { executor: doorbell, leader: bell, stopping } = all[0].clone();
        let guests = std::mem::take(&mut ends[0].guests);
        let beside = Beside::start(0, 1, &bell).unwrap();
        let mut link = Link { commands, events, closed, guests, beside, doorbell, bell, stopping };
        let (here, guest) = (StreamId(StreamId::first_of(0)), StreamId(StreamId::first_of(1)));
        let room = host.events.borrow().buffer().capacity();
        (0..room).for_each(|_| push(&mut link, token(guest)));
        assert_eq!(link.guests.next_cut(), None);
        push(&mut link, token(guest));
        push(&mut link, token(here));
        assert!(own.pop().is_ok(), "its own streams go on");
        // What comes before the end of a stream that has lost an event is lost, too.
        host.events.borrow_mut().pop().unwrap();
        push(&mut link, token(guest));
        assert_eq!((host.events.borrow().slots(), host.cuts()), (room - 1, 0));
        assert_eq!(link.guests.next_cut(), Some(1));
        link.guests.told_cut(1);
        assert_eq!((link.guests.next_cut(), host.cuts()), (None, 1));
        push(&mut link, token(guest));
        assert_eq!(host.events.borrow().slots(), room, "those that come later are served");
    }
}
