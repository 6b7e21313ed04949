//! The GPUs as a shard uses them: which sequence goes to which, and who is where.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::time::Duration;

use net::api::DevicePreference;
use net::error::{ApiError, Code};

use super::Shard;
use crate::engine::{Event, GenerationId};
use crate::gpu::{self, Costs, GpuCommand, Load, ShardPort, Work};
use crate::schedule::{NewSequence, StreamId};

/// The devices and the streams that they have.
pub(super) struct Gpus {
    ports: Vec<ShardPort>,
    /// The first device with the same name as each.
    kinds: Vec<usize>,
    placed: RefCell<HashMap<StreamId, Placed>>,
    /// Requests that wait for a device to come up.
    waiting: Cell<usize>,
}

/// Where a sequence is, and how it came there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) device: usize,
    pub(super) generation: GenerationId,
    /// Its request asked for a GPU, whatever is sooner.
    pub(super) must: bool,
    /// Another device has given it back.
    pub(super) moved: bool,
}

impl Gpus {
    pub(super) fn new(ports: Vec<ShardPort>) -> Self {
        let first_alike = |port: &ShardPort| ports.iter().position(|other| other.status.name == port.status.name);
        let kinds = ports.iter().filter_map(first_alike).collect();
        Self { ports, kinds, placed: RefCell::default(), waiting: Cell::new(0) }
    }

    /// Sequences that all devices compute at a time, together.
    pub(super) fn slots(&self) -> usize {
        self.ports.iter().map(|port| port.status.slots).sum()
    }

    /// Streams that are on devices.
    pub(super) fn placed(&self) -> usize {
        self.placed.borrow().len()
    }

    /// Whether no device has sent anything that was not taken yet.
    pub(super) fn are_quiet(&self) -> bool {
        self.ports.iter().all(ShardPort::is_empty)
    }

    /// No further sequence of `generation` comes: the devices are told to give back what they have of it.
    pub(super) fn close(&self, generation: GenerationId) {
        for port in &self.ports {
            let sent = port.send(GpuCommand::Close(generation));
            assert!(sent.is_ok(), "a generation is closed once, and has room for it");
        }
    }

    /// Whether a device has that stream.
    pub(super) fn has(&self, stream: StreamId) -> bool {
        self.placed.borrow().contains_key(&stream)
    }

    /// Its number in the driver's list.
    pub(super) fn ordinal(&self, device: usize) -> u8 {
        u8::try_from(self.ports[device].status.ordinal).unwrap_or(u8::MAX)
    }

    /// The name of a device in answers.
    pub(super) fn label(&self, device: Option<usize>) -> &str {
        device.map_or("cpu", |device| self.ports[device].status.label())
    }

    /// Whether a stream is cancelled on a device; `false` where it is on none.
    pub(super) fn cancel(&self, stream: StreamId) -> bool {
        let Some(placed) = self.placed.borrow_mut().remove(&stream) else { return false };
        let sent = self.ports[placed.device].send(GpuCommand::Cancel(stream));
        assert!(sent.is_ok(), "every stream that was started has room for its cancellation");
        true
    }

    /// Whether no device serves `generation` now, and one will soon.
    pub(super) fn is_coming(&self, generation: GenerationId) -> bool {
        let mut of_it = self.ports.iter().map(|port| &port.status).filter(|status| status.may_serve(generation));
        of_it.clone().all(|status| status.state() != gpu::State::Healthy) && of_it.any(|status| status.is_coming())
    }

    /// A place among the requests that wait for a device, if [`Gpus::is_coming`].
    pub(super) fn wait(&self, generation: GenerationId) -> Result<Option<Waiting<'_>>, ApiError> {
        if !self.is_coming(generation) {
            return Ok(None);
        }
        if self.waiting.get() >= self.slots() {
            return Err(super::generation::queue_full());
        }
        self.waiting.set(self.waiting.get() + 1);
        Ok(Some(Waiting(&self.waiting)))
    }

    /// Where a sequence should run, with a credit taken for it: a device, or `None` for the CPU.
    pub(super) fn place(
        &self,
        shard: &Shard,
        preference: DevicePreference,
        generation: GenerationId,
        work: Work,
    ) -> Result<Option<usize>, ApiError> {
        // What a request asks for must be; what the operator prefers gives way.
        let must = preference == DevicePreference::Gpu;
        let preference = if preference == DevicePreference::Auto { shard.config.device } else { preference };
        if preference == DevicePreference::Cpu || !must && self.ports.is_empty() {
            return Ok(None);
        }
        let loads: Vec<Option<Load>> =
            self.ports.iter().zip(&self.kinds).map(|(port, kind)| load(port, *kind, generation)).collect();
        let cpu = if preference == DevicePreference::Gpu { Load::default() } else { shard.cpu_load() };
        if let Some(device) = gpu::choose(cpu, &loads, work)
            && self.has_room(device)
            && self.ports[device].status.take_credit()
        {
            return Ok(Some(device));
        }
        match (must, loads.iter().any(Option::is_some)) {
            (false, _) => Ok(None),
            (true, true) => Err(super::generation::queue_full()),
            (true, false) => {
                let message = "no GPU is available on this server for this model";
                let error = ApiError::new(503, Code::DeviceUnavailable, message).with_param("device_preference");
                Err(error.with_retry_after(GPU_WAIT_MAX))
            }
        }
    }

    /// Where a sequence that a device gave back should go on, with a credit taken for it: another device, or `None` for the
    /// CPU, which costs `cpu`. What two devices gave back is the CPU's: it may be what brought them down.
    pub(super) fn place_again(&self, cpu: Load, placed: Placed, sequence: &NewSequence) -> Option<Placed> {
        if placed.moved {
            return None;
        }
        let cpu = if placed.must { Load::default() } else { cpu };
        let others = self.ports.iter().zip(&self.kinds).enumerate().map(|(device, (port, kind))| {
            (device != placed.device).then(|| load(port, *kind, placed.generation)).flatten()
        });
        let loads: Vec<Option<Load>> = others.collect();
        let work = Work { prompt_tokens: sequence.tokens.len(), tokens_max: sequence.tokens_max - sequence.generated };
        let device = gpu::choose(cpu, &loads, work)?;
        let taken = self.has_room(device) && self.ports[device].status.take_credit();
        taken.then_some(Placed { device, moved: true, ..placed })
    }

    /// Whether a sequence can be sent to a device and cancelled there, as can all that are on it.
    fn has_room(&self, device: usize) -> bool {
        let there = self.placed.borrow().values().filter(|placed| placed.device == device).count();
        self.ports[device].room() > there + 1
    }

    /// Sends a sequence to a device, for which a credit was taken.
    pub(super) fn start(&self, placed: Placed, sequence: Box<NewSequence>) {
        self.placed.borrow_mut().insert(sequence.stream, placed);
        let sent = self.ports[placed.device].send(GpuCommand::Start(placed.generation, sequence));
        assert!(sent.is_ok(), "room was looked at before the credit was taken");
    }

    /// Takes what the devices have sent: hands each event on, and what was given back with the place that it had.
    pub(super) fn receive(&self, mut event: impl FnMut(Event), mut resume: impl FnMut(Placed, Box<NewSequence>)) {
        for port in &self.ports {
            let mut events = port.events.borrow_mut();
            while let Ok(next) = events.pop() {
                let stream = next.stream();
                if let Event::Returned(sequence) = next {
                    // One that was cancelled meanwhile is on no device any more.
                    let placed = self.placed.borrow_mut().remove(&stream);
                    if let Some(placed) = placed {
                        resume(placed, sequence);
                    }
                    continue;
                }
                if next.is_last() {
                    self.placed.borrow_mut().remove(&stream);
                }
                event(next);
            }
        }
    }
}

/// A request that waits for a device, until this is dropped.
pub(super) struct Waiting<'a>(&'a Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn load(port: &ShardPort, kind: usize, generation: GenerationId) -> Option<Load> {
    let status = &port.status;
    let usable = status.state() == gpu::State::Healthy && status.generation() == generation;
    let load = Load { costs: status.costs(), sequences: status.in_flight(), slots: status.slots, kind };
    (usable && load.costs != Costs::default()).then_some(load)
}

/// How long a request waits at most for a device that is being brought up: weights go there at some GB a second.
pub(super) const GPU_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often it looks whether the device is there.
pub(super) const GPU_LOOK_EVERY: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::gpu::{Identity, SLOTS, Status, pair};
    use crate::mailbox::Doorbell;
    use crate::sampler::SamplingParams;

    fn on(device: usize) -> Placed {
        Placed { device, generation: GenerationId(0), must: false, moved: false }
    }

    fn sequence(stream: StreamId) -> Box<NewSequence> {
        Box::new(NewSequence::new(stream, vec![1], 1, SamplingParams::default(), Instant::now()))
    }

    #[test]
    fn what_a_device_gives_back_goes_to_another_once_and_where_it_is_sooner() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let statuses: Vec<_> = (0..3).map(|_| Arc::new(Status::new(Identity::default(), SLOTS, 0))).collect();
        let (ports, _feeders): (Vec<_>, Vec<_>) = statuses.iter().map(|status| pair(status, &bell)).unzip();
        let gpus = Gpus::new(ports);
        let (sooner, later) = (costs(0.001), Load { costs: costs(0.1), slots: SLOTS, ..Load::default() });
        for status in &statuses {
            status.be_healthy(GenerationId(0), sooner);
        }
        let returned = sequence(StreamId(1));
        let again = gpus.place_again(later, on(0), &returned).unwrap();
        assert_eq!(again, Placed { device: 1, moved: true, ..on(0) });
        assert_eq!(statuses.iter().map(|status| status.in_flight()).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(gpus.place_again(later, on(0), &returned).map(|placed| placed.device), Some(2), "the less busy one");
        assert_eq!(gpus.place_again(later, again, &returned), None, "two have given it back");
        let idle = Load { costs: costs(0.0001), slots: SLOTS, ..Load::default() };
        assert_eq!(gpus.place_again(idle, on(0), &returned), None, "the CPU is sooner");
        let must = gpus.place_again(idle, Placed { must: true, ..on(0) }, &returned);
        assert!(must.is_some_and(|placed| placed.device != 0), "it asked for a GPU");
        let other = Placed { generation: GenerationId(1), ..on(0) };
        assert_eq!(gpus.place_again(later, other, &returned), None, "no device has that model");
        assert_eq!(statuses.iter().map(|status| status.in_flight()).sum::<usize>(), 3, "no credit is lost");
    }

    fn costs(decode_s: f64) -> Costs {
        Costs { decode_s, decode_rows: 1.0, prefill_row_s: decode_s }
    }

    #[test]
    fn every_device_takes_its_full_number_of_sequences_and_their_cancellations() {
        const DEVICES: usize = 4;
        const WAITING: usize = 100;
        let bell = Arc::new(Doorbell::new().unwrap());
        let statuses = (0..DEVICES).map(|_| Arc::new(Status::new(Identity::default(), SLOTS, WAITING)));
        let (ports, feeders): (Vec<_>, Vec<_>) = statuses.map(|status| pair(&status, &bell)).unzip();
        let gpus = Gpus::new(ports);
        for number in 0..DEVICES * (SLOTS + WAITING) {
            let device = number % DEVICES;
            assert!(gpus.has_room(device), "no room for sequence {number}");
            let stream = StreamId(number as u64);
            gpus.start(on(device), sequence(stream));
        }
        for number in 0..DEVICES * (SLOTS + WAITING) {
            assert!(gpus.cancel(StreamId(number as u64)));
        }
        drop(feeders);
    }
}
