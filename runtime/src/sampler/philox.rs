//! Philox4x32-10: random numbers as a function of seed and counter (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

/// Four random words for a counter and a key.
pub(super) fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let (high0, low0) = wide_product(MULTIPLIERS[0], counter[0]);
        let (high1, low1) = wide_product(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}

/// A number in [0, 1) with 53 random bits, for `seed` at `position`.
pub(super) fn uniform(seed: u64, position: u64) -> f64 {
    let [key_low, key_high] = halves(seed);
    let [low, high] = halves(position);
    let words = philox4x32([low, high, 0, 0], [key_low, key_high]);
    let (high, low) = (f64::from(words[0] >> 5), f64::from(words[1] >> 6)); // 27 and 26 bits
    (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
}

fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let [low, high] = halves(u64::from(a) * u64::from(b));
    (high, low)
}

/// Low and high word.
fn halves(wide: u64) -> [u32; 2] {
    let bytes = wide.to_le_bytes();
    let (words, _) = bytes.as_chunks::<4>();
    [u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1])]
}

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

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
