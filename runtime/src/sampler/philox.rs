//! Random numbers as a function of seed and position.

use kernels::draw::{halves, philox};

/// Four random words for a counter and a key.
fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox(counter.map(|word| [word]), key).map(|[word]| word)
}

/// A number in [0, 1) with 53 random bits, for `seed` at `position`.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    let [low, high] = halves(position);
    let words = philox4x32([low, high, 0, 0], halves(seed));
    let (high, low) = (f64::from(words[0] >> 5), f64::from(words[1] >> 6)); // 27 and 26 bits
    (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn uniform_numbers_fill_the_unit_interval() {
        let mut counts = [0u32; 10];
        for position in 0..10_000 {
            let u = uniform(42, position);
            assert!((0.0..1.0).contains(&u));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 9")]
            let bin = (u * 10.0) as usize;
            counts[bin] += 1;
        }
        assert!(counts.iter().all(|&count| (880..1120).contains(&count)), "{counts:?}");
        assert_ne!(uniform(1, 0), uniform(2, 0));
    }
}
