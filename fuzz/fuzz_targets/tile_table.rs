//! Any text is a `kernel_config.ini` or an error; what it says of a shape makes a layout or is refused, and a layout
//! unpacks any bytes of its size to codes of 0 to 3.
#![no_main]

use gguf::TensorType;
use gguf::ternary::{BAND_ROWS, TileTable, Tiled};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let Ok(table) = TileTable::parse_ini(&text) else { return };
    for kind in [TensorType::Tl1, TensorType::Tl2] {
        for (rows, cols) in [(32, 256), (128, 256), (256, 768)] {
            let Some(tile) = table.get(rows, cols) else { continue };
            let Ok(layout) = Tiled::new(kind, rows, cols, tile) else { continue };
            let bytes: Vec<u8> = (0..layout.bytes()).map(|at| data[at % data.len()]).collect();
            let mut codes = vec![9; BAND_ROWS * cols];
            for band in 0..rows / BAND_ROWS {
                layout.codes(&bytes, band, &mut codes);
                assert!(codes.iter().all(|&code| code <= 3));
            }
        }
    }
});
