//! A panic in a task ends that task, and not the thread with all others.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

/// Runs `future`; `None` if it panics. What it has is dropped by then.
pub async fn contain<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn a_panic_is_contained_and_a_value_passes() {
        let mut context = Context::from_waker(Waker::noop());
        let mut value = pin!(contain(async { 7 }));
        assert_eq!(value.as_mut().poll(&mut context), Poll::Ready(Some(7)));
        let told = std::hint::black_box(true);
        let mut panics = pin!(contain(async { assert!(!told, "told to fail") }));
        assert_eq!(panics.as_mut().poll(&mut context), Poll::Ready(None));
    }
}
