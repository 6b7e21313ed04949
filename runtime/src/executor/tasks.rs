//! The tasks of a thread, held beside its executor's queue, so that they can be ended where the executor itself has
//! broken down: dropped with it, some would never be, and with them their sockets, guards and buffers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A task until it has ended.
type Slot = Rc<RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>>;

#[derive(Default)]
struct Tasks {
    slots: HashMap<u64, Slot>,
    count: u64,
}

thread_local! {
    static TASKS: RefCell<Tasks> = RefCell::default();
}

/// What the executor polls in place of a task.
pub(super) struct Held {
    number: u64,
    slot: Slot,
}

/// Holds `task` until it has ended, by itself or by [`end_tasks`].
pub(super) fn hold(task: impl Future<Output = ()> + 'static) -> Held {
    let slot: Slot = Rc::new(RefCell::new(Some(Box::pin(task))));
    let number = TASKS.with_borrow_mut(|tasks| {
        tasks.count += 1;
        tasks.slots.insert(tasks.count, Rc::clone(&slot));
        tasks.count
    });
    Held { number, slot }
}

impl Future for Held {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut slot = self.slot.borrow_mut();
        let poll = slot.as_mut().map_or(Poll::Ready(()), |task| task.as_mut().poll(context));
        if poll.is_ready() {
            *slot = None;
            TASKS.with_borrow_mut(|tasks| tasks.slots.remove(&self.number));
        }
        poll
    }
}

/// Drops every task of this thread that has not ended, outside the executor that had them.
pub fn end_tasks() {
    // What is dropped may begin others, which nobody polls.
    while let Some(slot) = TASKS.with_borrow_mut(|tasks| {
        let number = tasks.slots.keys().next().copied()?;
        tasks.slots.remove(&number)
    }) {
        // Nothing that its end breaks may keep the others from theirs.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(slot.take())));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::task::Waker;

    use super::*;

    struct Counts(Rc<Cell<u32>>);

    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
            assert!(self.0.get() != 2, "told to fail");
        }
    }

    #[test]
    fn what_has_not_ended_is_ended_once_whatever_breaks_there() {
        let ended = Rc::new(Cell::new(0));
        let task = |done: bool| {
            let guard = Counts(Rc::clone(&ended));
            async move {
                let _guard = guard;
                if !done {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut context = Context::from_waker(Waker::noop());
        let mut done = hold(task(true));
        assert!(Pin::new(&mut done).poll(&mut context).is_ready());
        assert_eq!(ended.get(), 1);
        let mut waiting: Vec<Held> = (0..3).map(|_| hold(task(false))).collect();
        for held in &mut waiting {
            assert!(Pin::new(held).poll(&mut context).is_pending());
        }
        // An executor that is gone has dropped its side of some.
        waiting.pop();
        assert_eq!(ended.get(), 1);
        end_tasks();
        assert_eq!(ended.get(), 4);
        assert!(Pin::new(&mut waiting[0]).poll(&mut context).is_ready(), "it is over");
        end_tasks();
        assert_eq!(ended.get(), 4);
    }
}
