//! The last requests of a shard, for whoever asks what served one of them: written by its executor, read by all.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::seqlock::Place;

/// What is kept of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    pub id: u128,
    pub generation: u32,
    pub outcome: Outcome,
    pub device: Device,
    pub sequences: u32,
    pub seed: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub received_unix_ms: u64,
    pub queue_us: u64,
    /// From arrival to the first token.
    pub first_token_us: Option<u64>,
    pub total_us: u64,
}

/// What computed a request to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The CPU, after a GPU gave it back.
    CpuInPlaceOfGpu,
    /// The GPU of that number.
    Gpu(u8),
}

impl Device {
    /// As answers spell it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Cpu | Self::CpuInPlaceOfGpu => "cpu".to_owned(),
            Self::Gpu(ordinal) => format!("cuda:{ordinal}"),
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Cpu => 0,
            Self::CpuInPlaceOfGpu => 1,
            Self::Gpu(ordinal) => ordinal.saturating_add(2),
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Cpu,
            1 => Self::CpuInPlaceOfGpu,
            gpu => Self::Gpu(gpu - 2),
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    #[default]
    Cancelled,
    Stop,
    Length,
    Failed,
}

impl Outcome {
    /// As answers spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Failed => "failed",
        }
    }
}

/// The receipts of one shard.
pub struct Receipts {
    places: Box<[Place<WORDS>]>,
    written: AtomicU64,
}

impl Default for Receipts {
    fn default() -> Self {
        Self { places: (0..RECEIPTS_MAX).map(|_| Place::new()).collect(), written: AtomicU64::new(0) }
    }
}

impl Receipts {
    /// Keeps `receipt` in the place of the oldest. Only one thread calls this.
    pub fn write(&self, receipt: &Receipt) {
        let written = self.written.load(Ordering::Relaxed);
        self.places[usize::try_from(written).unwrap_or(0) % RECEIPTS_MAX].write(to_words(receipt));
        self.written.store(written + 1, Ordering::Relaxed);
    }

    /// The receipt of request `id`, if it is among the last.
    #[must_use]
    pub fn find(&self, id: u128) -> Option<Receipt> {
        self.places.iter().filter_map(Place::read).map(from_words).find(|receipt| receipt.id == id)
    }
}

/// A request's id as a number; `None` for what is none.
#[must_use]
pub fn parse_id(text: &str) -> Option<u128> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let plain = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if plain { u128::from_str_radix(&digits, 16).ok() } else { None }
}

/// A request's id as answers spell it.
#[must_use]
pub fn format_id(id: u128) -> String {
    let digits = format!("{id:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[expect(clippy::cast_possible_truncation, reason = "halves of the id")]
fn to_words(receipt: &Receipt) -> [u64; WORDS] {
    [
        (receipt.id >> 64) as u64,
        receipt.id as u64,
        u64::from(receipt.generation) << 32
            | u64::from(receipt.sequences.min(SEQUENCES_MAX)) << 16
            | u64::from(receipt.device.code()) << 8
            | receipt.outcome as u64,
        receipt.seed,
        receipt.prompt_tokens,
        receipt.completion_tokens,
        receipt.received_unix_ms,
        receipt.queue_us,
        receipt.first_token_us.unwrap_or(u64::MAX),
        receipt.total_us,
    ]
}

#[expect(clippy::cast_possible_truncation, reason = "fields of fewer bits")]
fn from_words(words: [u64; WORDS]) -> Receipt {
    let [high, low, packed, seed, prompt_tokens, completion_tokens, received_unix_ms, queue_us, first, total_us] =
        words;
    let outcomes = [Outcome::Cancelled, Outcome::Stop, Outcome::Length, Outcome::Failed];
    Receipt {
        id: u128::from(high) << 64 | u128::from(low),
        generation: (packed >> 32) as u32,
        outcome: outcomes[(packed & 3) as usize],
        device: Device::from_code((packed >> 8) as u8),
        sequences: (packed as u32) >> 16,
        seed,
        prompt_tokens,
        completion_tokens,
        received_unix_ms,
        queue_us,
        first_token_us: (first != u64::MAX).then_some(first),
        total_us,
    }
}

const WORDS: usize = 10;
/// Those of one request are far fewer.
const SEQUENCES_MAX: u32 = 0xffff;
/// Requests that a shard remembers.
pub const RECEIPTS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(id: u128) -> Receipt {
        Receipt {
            id,
            generation: 7,
            outcome: Outcome::Length,
            device: [Device::Cpu, Device::CpuInPlaceOfGpu, Device::Gpu(0), Device::Gpu(63)][(id % 4) as usize],
            sequences: 2048,
            seed: u64::MAX,
            prompt_tokens: 3,
            completion_tokens: (id & 0xff) as u64,
            received_unix_ms: 1,
            queue_us: 2,
            first_token_us: id.is_multiple_of(2).then_some(5),
            total_us: id as u64,
        }
    }

    #[test]
    fn the_last_ones_are_found_and_older_ones_are_gone() {
        let receipts = Receipts::default();
        assert_eq!(receipts.find(0), None);
        let first = u128::MAX - 5000;
        for id in first..first + 1500 {
            receipts.write(&receipt(id));
        }
        assert_eq!(receipts.find(first + 1499), Some(receipt(first + 1499)));
        assert_eq!(receipts.find(first + 476), Some(receipt(first + 476)));
        assert_eq!(receipts.find(first + 475), None);
    }

    #[test]
    fn a_reader_never_sees_half_a_receipt() {
        let receipts = Receipts::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200_000).for_each(|id| receipts.write(&receipt(id))));
            for _ in 0..200 {
                for found in receipts.places.iter().filter_map(Place::read).map(from_words) {
                    assert_eq!(found, receipt(found.id));
                }
            }
        });
    }

    #[test]
    fn ids_read_with_and_without_dashes() {
        assert_eq!(parse_id("00000000-0000-4000-8000-00000000002a"), Some(0x4000_8000_0000_0000_002a));
        let id = "00000000-0000-4000-8000-00000000002a";
        assert_eq!(parse_id(id).map(format_id).as_deref(), Some(id));
        for text in ["", "2a", "00000000-0000-4000-8000-00000000002g", "+0000000000000000000000000000000"] {
            assert_eq!(parse_id(text), None, "{text}");
        }
    }
}
