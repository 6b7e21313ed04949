//! No order of the threads' steps loses a wake-up: a model checker tries them all, on the code that serves.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use loom::sync::atomic::AtomicUsize;
use loom::sync::{Arc, Notify};
use sync::Ordering;

/// What the code under test is built from, as the model checker has it.
mod sync {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering};
}

/// A futex word.
mod futex {
    use loom::sync::{Condvar, Mutex};

    #[derive(Default)]
    pub(super) struct Word(Mutex<u32>, Condvar);

    impl Word {
        pub(super) fn get(&self) -> u32 {
            *self.0.lock().unwrap()
        }

        pub(super) fn add_one_and_wake(&self) {
            *self.0.lock().unwrap() += 1;
            self.1.notify_all();
        }

        pub(super) fn wait_while(&self, number: u32) {
            let now = self.0.lock().unwrap();
            if *now == number {
                drop(self.1.wait(now).unwrap());
            }
        }
    }
}

#[expect(unreachable_pub, reason = "it is public where it is at home")]
#[path = "../src/mailbox/bell.rs"]
mod bell;

/// What a ring of records looks like to the protocol: how many were put in, seen as the ring's index is.
#[derive(Default)]
struct Records(AtomicUsize);

impl Records {
    fn push(&self) {
        // One producer, as in the ring: its own last index needs no order.
        let count = self.0.load(Ordering::Relaxed);
        self.0.store(count + 1, Ordering::Release);
    }

    fn more_than(&self, taken: usize) -> bool {
        self.0.load(Ordering::Acquire) > taken
    }
}

const RECORDS: usize = 2;

#[test]
fn a_leader_misses_no_record() {
    loom::model(|| {
        let shared = Arc::new((bell::LeaderBell::default(), Records::default()));
        let ringer = Arc::clone(&shared);
        let thread = loom::thread::spawn(move || {
            for _ in 0..RECORDS {
                ringer.1.push();
                ringer.0.ring();
            }
        });
        let (bell, records) = &*shared;
        let mut taken = 0;
        while taken < RECORDS {
            if records.more_than(taken) {
                taken += 1;
            } else {
                bell.sleep_unless(0, || records.more_than(taken));
            }
        }
        thread.join().unwrap();
    });
}

#[test]
fn an_executor_misses_no_record_of_two_ringers() {
    let mut model = loom::model::Builder::new();
    // Three threads in every order would take minutes; wake-ups are lost in one or two switches.
    model.preemption_bound = Some(3);
    model.check(|| {
        let shared = Arc::new((bell::Asleep::default(), Notify::new(), [Records::default(), Records::default()]));
        let threads = [0, 1].map(|own| {
            let ringer = Arc::clone(&shared);
            loom::thread::spawn(move || {
                ringer.2[own].push();
                if ringer.0.must_be_woken() {
                    ringer.1.notify();
                }
            })
        });
        let (asleep, descriptor, rings) = &*shared;
        let mut taken = [0, 0];
        while taken != [1, 1] {
            let mut found = false;
            for (ring, taken) in rings.iter().zip(&mut taken) {
                if ring.more_than(*taken) {
                    *taken += 1;
                    found = true;
                }
            }
            if found {
                continue;
            }
            asleep.prepare();
            if !rings.iter().zip(&taken).any(|(ring, taken)| ring.more_than(*taken)) {
                descriptor.wait();
            }
            asleep.awake();
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
