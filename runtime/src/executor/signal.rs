//! How tasks of an executor are woken: by another thread's bell, or by each other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Poll, Waker};

use super::socket::Readable;
use super::{Backend, backend};
use crate::mailbox::Doorbell;

/// A doorbell as a future of this executor.
pub struct Rings {
    bell: Arc<Doorbell>,
    readable: Readable,
}

impl Rings {
    /// Registers the bell with the executor that runs on this thread.
    ///
    /// # Errors
    /// When the descriptor can't be duplicated or registered.
    pub fn new(bell: Arc<Doorbell>) -> io::Result<Self> {
        Ok(Self { readable: Readable::new(bell.raw_fd())?, bell })
    }

    /// Sleeps until the bell rings, unless `busy` says that there is something to do already.
    ///
    /// # Errors
    /// The driver's.
    pub async fn sleep_unless(&self, busy: impl Fn() -> bool) -> io::Result<()> {
        self.bell.prepare_sleep();
        let wait = self.readable.wait();
        #[cfg(test)]
        let wait = breaking(wait);
        let result = if busy() { Ok(()) } else { wait.await };
        self.bell.awake();
        result
    }
}

/// A way for the main task to look again and again at what other threads give, while the others run as if it slept.
pub struct Turns {
    /// Is rung once and for all.
    _always: Doorbell,
    readable: Readable,
}

impl Turns {
    /// `None` where waiting for what is there already does not pass through the driver: only monoio on io_uring can.
    ///
    /// # Errors
    /// When no descriptor is to be had.
    pub fn new() -> io::Result<Option<Self>> {
        if backend() != Backend::MonoioUring {
            return Ok(None);
        }
        let always = Doorbell::new()?;
        always.prepare_sleep();
        always.ring();
        Ok(Some(Self { readable: Readable::new(always.raw_fd())?, _always: always }))
    }

    /// Lets every task run that can, and the driver take and give what it has: one system call.
    ///
    /// # Errors
    /// The driver's.
    pub async fn take(&self) -> io::Result<()> {
        self.readable.wait().await
    }
}

/// `wait`, whose end makes the driver panic in its own loop where that fault is due.
#[cfg(test)]
async fn breaking<T>(wait: impl Future<Output = T>) -> T {
    use crate::engine::faults::{Fault, strikes};
    struct Breaks;
    impl std::task::Wake for Breaks {
        fn wake(self: Arc<Self>) {
            panic!("told to fail");
        }
    }
    let mut wait = std::pin::pin!(wait);
    let mut breaks = None;
    poll_fn(|context| {
        // Asked once, when it begins to wait: what wakes it then was told whom to wake.
        if *breaks.get_or_insert_with(|| strikes(Fault::Driver)) {
            return wait.as_mut().poll(&mut std::task::Context::from_waker(&Waker::from(Arc::new(Breaks))));
        }
        wait.as_mut().poll(context)
    })
    .await
}

/// Wakes one task of the same executor; remembers a wake that comes before the wait.
#[derive(Default)]
pub struct Signal {
    set: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the waiting task, or the next one to wait.
    pub fn notify(&self) {
        self.set.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the next [`Signal::notify`].
    pub async fn wait(&self) {
        poll_fn(|context| {
            if self.set.replace(false) {
                return Poll::Ready(());
            }
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
