//! The life of a shard beyond one executor: where that breaks down, in its driver or outside every task, a new one takes
//! its place on the same thread.
//!
//! What the shard has of other threads (rings, channels, models) stays. Its connections end: streams and requests that
//! wait for tokens with an error, as far as a socket takes it at once and nothing was half written, the rest closed. Their
//! tasks are dropped, which cancels what the leader, other shards and GPUs compute for them. The listening sockets stay in
//! their group meanwhile: who connects waits in their backlog for the few milliseconds that it takes, where leaving the
//! group would reset all that are in it.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::{Arrivals, Shard};
use crate::executor;
use crate::log::warning;
use crate::probe::Io;

impl Shard {
    /// Serves the clients of `listeners` on this thread until it is drained.
    ///
    /// # Errors
    /// When no executor can be made, or they break down too often.
    pub fn run(self, io: &Io, mut arrivals: Arrivals, listeners: &[OwnedFd]) -> io::Result<()> {
        let shard = Rc::new(self);
        executor::count_stalls(Arc::clone(&shard.metrics));
        let mut io = io.clone();
        let mut gone_since = None;
        loop {
            let serving = shard.serve(&mut arrivals, listeners, gone_since);
            let error = match catch_unwind(AssertUnwindSafe(|| executor::run(&io, serving))) {
                Ok(Ok(Ok(()))) => return Ok(()),
                Ok(Err(refused)) if gone_since.is_some() && !matches!(io, Io::Epoll { .. }) => {
                    warning!("shard {}: no new {io:?} executor ({refused}): epoll from now on", shard.index);
                    io = Io::Epoll { reason: refused.to_string() };
                    continue;
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Err(error))) => error,
                Err(_) => io::Error::other("its executor broke down too often"),
            };
            // What can't begin does not begin anew.
            if !shard.fallen.has_listened.get() || shard.fallen.given_up.get() {
                return Err(error);
            }
            gone_since = Some(Instant::now());
            let too_often = shard.fell();
            shard.end_connections();
            if too_often {
                return Err(error);
            }
        }
    }

    /// Whether its executor has broken down, and no other has taken its place yet.
    pub(super) fn is_broken(&self) -> bool {
        self.fallen.is_down.get()
    }

    /// Ends all connections and tasks, outside any executor.
    fn end_connections(&self) {
        self.fallen.is_down.set(true);
        let requests = &self.metrics.requests;
        requests.outcomes.failed.add(requests.active.get());
        // Sockets first: once they are shut down, the kernel has no further byte for buffers that are dropped with the
        // tasks, even where the driver can't cancel its reads any more.
        self.peers.borrow().values().for_each(|peer| peer.part());
        executor::end_tasks();
        self.peers.borrow_mut().clear();
        self.jobs.borrow_mut().clear();
        self.comparing.set(false);
        // Of tasks that have no guard of their own.
        let left: Vec<_> = self.streams.borrow().keys().copied().collect();
        left.into_iter().for_each(|stream| self.cancel(stream));
    }
}
