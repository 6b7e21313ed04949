//! Histograms as the log of the HdrHistogram tools (version 1.3): a line for each, by tag, in base64 of their second encoding.
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use miniz_oxide::deflate::compress_to_vec_zlib;

/// The log of one interval; values are microseconds, the maximum of each line is in milliseconds.
pub(crate) fn text<'a>(
    began: SystemTime,
    elapsed: Duration,
    histograms: impl Iterator<Item = (&'static str, &'a Histogram<u64>)>,
) -> String {
    let since_epoch = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut log = format!(
        "#[Histogram log format version 1.3]\n#[StartTime: {since_epoch:.3} (seconds since epoch)]\n\
         #[BaseTime: 0.000 (seconds since epoch)]\n#[MaxValueDivisor: 1000.0]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n"
    );
    for (tag, histogram) in histograms {
        let (seconds, max_ms) = (elapsed.as_secs_f64(), histogram.max() as f64 / 1e3);
        let mut encoded = Vec::new();
        net::base64::encode(&mut encoded, &compressed(histogram));
        let encoded = String::from_utf8_lossy(&encoded);
        let _ = writeln!(log, "Tag={tag},{since_epoch:.3},{seconds:.3},{max_ms:.3},{encoded}");
    }
    log
}

fn compressed(histogram: &Histogram<u64>) -> Vec<u8> {
    let deflated = compress_to_vec_zlib(&encoded(histogram), DEFLATE_LEVEL);
    let mut bytes = COMPRESSED_COOKIE.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(deflated.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&deflated);
    bytes
}

/// Cookie, length, offset, digits, bounds, ratio; then the counts of all values from 0 on, runs of zeros as their
/// negative number.
fn encoded(histogram: &Histogram<u64>) -> Vec<u8> {
    let mut counts = Vec::new();
    let mut zeros = 0_i64;
    for value in histogram.iter_all() {
        match value.count_at_value() {
            0 => zeros += 1,
            count => {
                if zeros > 0 {
                    put_zigzag(&mut counts, -std::mem::take(&mut zeros));
                }
                put_zigzag(&mut counts, count.cast_signed());
            }
        }
    }
    let mut bytes = Vec::with_capacity(HEAD_BYTES + counts.len());
    bytes.extend_from_slice(&COOKIE.to_be_bytes());
    bytes.extend_from_slice(&(counts.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&0_u32.to_be_bytes());
    bytes.extend_from_slice(&u32::from(histogram.sigfig()).to_be_bytes());
    bytes.extend_from_slice(&histogram.low().to_be_bytes());
    bytes.extend_from_slice(&histogram.high().to_be_bytes());
    bytes.extend_from_slice(&1.0_f64.to_be_bytes());
    bytes.extend_from_slice(&counts);
    bytes
}

/// ZigZag, then seven bits a byte, least first; the ninth byte, if there is one, has all of its eight.
fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1 ^ value >> 63).cast_unsigned();
    for _ in 0..8 {
        if rest < 0x80 {
            return out.push(rest as u8);
        }
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Of the second encoding, counts of one word at most.
const COOKIE: u32 = 0x1c84_9313;
const COMPRESSED_COOKIE: u32 = 0x1c84_9314;
const HEAD_BYTES: usize = 40;
const DEFLATE_LEVEL: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    #[test]
    fn numbers_are_zigzag_of_seven_bits() {
        let cases = [(0, "00"), (-1, "01"), (1, "02"), (64, "8001"), (-2000, "9f1f"), (i64::MIN, "ffffffffffffffffff")];
        for (value, expected) in cases {
            let mut bytes = Vec::new();
            put_zigzag(&mut bytes, value);
            assert_eq!(hex(&bytes), expected, "{value}");
        }
    }

    /// The bytes that another implementation (HdrHistogram of Python, 0.10) writes for the same values.
    #[test]
    fn the_encoding_is_that_of_the_hdr_histogram_tools() {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        [1, 1000, 5000, 5000, 1_000_000].into_iter().for_each(|value| histogram.record(value).unwrap());
        let expected = "1c8493130000000b0000000000000003000000000000000100000000d693a4003ff00000000000000102cb0f02f1\
                        2304fb7a02";
        assert_eq!(hex(&encoded(&histogram)), expected);
        let bytes = compressed(&histogram);
        assert_eq!(hex(&bytes[..4]), "1c849314");
        let inflated = miniz_oxide::inflate::decompress_to_vec_zlib(&bytes[8..]).unwrap();
        assert_eq!(inflated, encoded(&histogram));
    }

    #[test]
    fn the_log_has_a_line_for_each_histogram() {
        let mut histogram = Histogram::new_with_bounds(1, 1000, 3).unwrap();
        histogram.record(500).unwrap();
        let began = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        let log = text(began, Duration::from_secs(2), [("ttft", &histogram), ("itl", &histogram)].into_iter());
        let lines: Vec<&str> = log.lines().filter(|line| line.starts_with("Tag=")).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[1].starts_with("Tag=itl,1.500,2.000,0.500,HISTFA"), "{log}");
    }
}
