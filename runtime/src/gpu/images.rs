//! The compiled kernels, and which of them a device takes.

/// Compiled code and what it was compiled for.
pub(super) struct Image {
    pub(super) name: &'static str,
    step: &'static [u8],
    batch: &'static [u8],
    /// Whether it was made for compute capability 9.0: blocks keep more loads in flight, form clusters, and launches
    /// overlap.
    pub(super) sm_90: bool,
}

/// The image for a device of compute capability `major`.`minor`; `None` where there is none.
pub(super) fn image_for(major: i32, minor: i32) -> Option<&'static Image> {
    match (major, minor) {
        (9, 0) => Some(&SM_90A),
        (8, _) => Some(&SM_80),
        (9.., _) => Some(&COMPUTE_80),
        _ => None,
    }
}

impl Image {
    /// The code of the step kernels and of the batch kernels, as the driver wants it. `None` where a file inside the
    /// binary is damaged.
    pub(super) fn code(&self) -> Option<[Vec<u8>; 2]> {
        Some([unpack(self.step)?, unpack(self.batch)?])
    }
}

/// The content of a gzip file, with a zero byte at its end.
fn unpack(compressed: &[u8]) -> Option<Vec<u8>> {
    // A member without extra fields: 10 bytes of header, the deflated bytes, 8 bytes of checksum and length.
    let body = compressed.get(GZIP_HEADER_BYTES..compressed.len().checked_sub(GZIP_TRAILER_BYTES)?)?;
    let plain_header = compressed.starts_with(&[0x1f, 0x8b, 8, 0]);
    let mut code = miniz_oxide::inflate::decompress_to_vec_with_limit(body, CODE_BYTES_MAX).ok()?;
    let length = u32::try_from(code.len()).ok()?.to_le_bytes();
    code.push(0);
    (plain_header && compressed.ends_with(&length)).then_some(code)
}

static SM_90A: Image = Image {
    name: "sm_90a",
    step: include_bytes!("../../../kernels/cuda/prebuilt/step.sm_90a.cubin.gz"),
    batch: include_bytes!("../../../kernels/cuda/prebuilt/batch.sm_90a.cubin.gz"),
    sm_90: true,
};
static SM_80: Image = Image {
    name: "sm_80",
    step: include_bytes!("../../../kernels/cuda/prebuilt/step.sm_80.cubin.gz"),
    batch: include_bytes!("../../../kernels/cuda/prebuilt/batch.sm_80.cubin.gz"),
    sm_90: false,
};
static COMPUTE_80: Image = Image {
    name: "compute_80",
    step: include_bytes!("../../../kernels/cuda/prebuilt/step.compute_80.ptx.gz"),
    batch: include_bytes!("../../../kernels/cuda/prebuilt/batch.compute_80.ptx.gz"),
    sm_90: false,
};

const GZIP_HEADER_BYTES: usize = 10;
const GZIP_TRAILER_BYTES: usize = 8;
const CODE_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_unpacks_to_what_a_driver_takes() {
        for (image, start) in [(&SM_90A, &b"\x7fELF"[..]), (&SM_80, b"\x7fELF"), (&COMPUTE_80, b"//")] {
            for (code, kernel) in image.code().unwrap().iter().zip([&b"step_32"[..], b"linear_128"]) {
                assert!(code.starts_with(start) && code.ends_with(&[0]), "{}", image.name);
                assert!(code.windows(kernel.len()).any(|name| name == kernel), "{}", image.name);
            }
        }
        assert_eq!(image_for(9, 0).unwrap().name, "sm_90a");
        assert_eq!(image_for(8, 6).unwrap().name, "sm_80");
        assert_eq!(image_for(10, 0).unwrap().name, "compute_80");
        assert!(image_for(7, 5).is_none());
    }
}
