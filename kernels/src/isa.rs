//! Instruction sets: detected once at run time; holding a token is the proof that its instructions exist.
#![cfg_attr(
    all(target_arch = "x86_64", target_os = "linux"),
    expect(
        unsafe_code,
        reason = "AMX is asked for by a register that the standard library doesn't look at, and a system call"
    )
)]

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::env::consts::ARCH;
use std::fmt;
use std::str::FromStr;
#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicBool, Ordering};

/// Proof that AVX2, FMA and F16C exist on this machine; made only by [`Avx2::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that AVX-VNNI (and everything of [`Avx2`]) exists; made only by [`AvxVnni::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvxVnni(());

/// Proof that AVX-512 F, BW, DQ and VL (and everything of [`Avx2`]) exist; made only by [`Avx512Bw::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Bw(());

/// Proof that AVX-512 VNNI (and everything of [`Avx512Bw`]) exists; made only by [`Avx512Vnni::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Vnni(());

/// Proof that AMX's tiles and their int8 products (and everything of [`Avx512Vnni`]) exist, and that the kernel lets this
/// process use them; made only by [`AmxInt8::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmxInt8(());

/// Proof that NEON exists, which is part of every 64-bit ARM processor that the standard library supports; made only by
/// [`Neon::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

/// Proof that NEON's dot products of int8 (and everything of [`Neon`]) exist; made only by [`NeonDotprod::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeonDotprod(());

/// Proof that NEON's products of int8 matrices (and everything of [`NeonDotprod`]) exist; made only by
/// [`NeonI8mm::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeonI8mm(());

impl Avx2 {
    /// `None` where an instruction is missing or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // All of AMD's processors have had SSE4a since 2007, and no other maker's but Hygon's, which are AMD's.
            IS_AMD.store(is_x86_feature_detected!("sse4a"), Ordering::Relaxed);
            return Some(Self(()));
        }
        None
    }
}

impl AvxVnni {
    /// `None` where an instruction is missing or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx2::detect().is_some() && is_x86_feature_detected!("avxvnni") {
            return Some(Self(()));
        }
        None
    }
}

impl AvxVnni {
    /// AVX2, FMA and F16C are part of what this proves.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn avx2(self) -> Avx2 {
        Avx2(())
    }
}

impl Avx512Bw {
    /// `None` where an instruction is missing or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Some(Self(()));
        }
        None
    }
}

impl Avx512Bw {
    /// AVX2, FMA and F16C are part of what this proves.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn avx2(self) -> Avx2 {
        Avx2(())
    }
}

impl Avx512Vnni {
    /// `None` where an instruction is missing or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx512Bw::detect().is_some() && is_x86_feature_detected!("avx512vnni") {
            return Some(Self(()));
        }
        None
    }

    /// AVX-512 F, BW, DQ and VL are part of what this proves.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bw(self) -> Avx512Bw {
        Avx512Bw(())
    }
}

/// Whether AMD made this processor, whose caches want to be asked otherwise. Known once there is a token.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn is_amd() -> bool {
    IS_AMD.load(Ordering::Relaxed)
}

/// A byte of its own, which a loop may look at for every line.
#[cfg(target_arch = "x86_64")]
static IS_AMD: AtomicBool = AtomicBool::new(false);

impl AmxInt8 {
    /// `None` where an instruction is missing, the kernel keeps the tiles' state for itself or is none that we know how to
    /// ask, or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if Avx512Vnni::detect().is_some() && tiles::exist() && tiles::permitted() {
            return Some(Self(()));
        }
        None
    }

    /// AVX-512 VNNI and what it proves are part of what this proves.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn vnni(self) -> Avx512Vnni {
        Avx512Vnni(())
    }
}

impl Neon {
    /// `None` where an instruction is missing or the machine is not aarch64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if is_aarch64_feature_detected!("neon") {
            return Some(Self(()));
        }
        None
    }
}

impl NeonDotprod {
    /// `None` where an instruction is missing or the machine is not aarch64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if Neon::detect().is_some() && is_aarch64_feature_detected!("dotprod") {
            return Some(Self(()));
        }
        None
    }

    /// NEON is part of what this proves.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn neon(self) -> Neon {
        Neon(())
    }
}

impl NeonI8mm {
    /// `None` where an instruction is missing or the machine is not aarch64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "aarch64")]
        if NeonDotprod::detect().is_some() && is_aarch64_feature_detected!("i8mm") {
            return Some(Self(()));
        }
        None
    }

    /// NEON's dot products are part of what this proves.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn dotprod(self) -> NeonDotprod {
        NeonDotprod(())
    }
}

/// What the standard library doesn't say of AMX.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Whether the processor has them and the kernel has switched their state on.
    pub(super) fn exist() -> bool {
        let states = || {
            // SAFETY: XGETBV exists where the kernel uses XSAVE, as leaf 1 has just said.
            unsafe { xcr0() }
        };
        let uses_xsave = __cpuid(1).ecx & OSXSAVE != 0;
        uses_xsave && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8 && states() & TILE_STATES == TILE_STATES
    }

    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does.
        unsafe { _xgetbv(0) }
    }

    /// Asks that this process may have tiles in its state, threads to come included. Asking again changes nothing; a
    /// kernel that doesn't know the question, or refuses it, says so.
    pub(super) fn permitted() -> bool {
        let answer: i64;
        // SAFETY: the system call takes numbers only and writes no memory of this process; what it clobbers is named.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => answer,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        answer == 0
    }

    const OSXSAVE: u32 = 1 << 27;
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    /// Configuration and data of tiles.
    const TILE_STATES: u64 = 1 << 17 | 1 << 18;
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
}

/// The instruction set that a kernel call uses. Every variant gives the same bits.
///
/// Two things differ between them: how int8 products are summed, and how wide floats are. A kernel without int8
/// products needs no more than [`Isa::floats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Portable,
    Avx2(Avx2),
    AvxVnni(AvxVnni),
    Avx512Bw(Avx512Bw),
    Avx512Vnni(Avx512Vnni),
    AmxInt8(AmxInt8),
    NeonDotprod(NeonDotprod),
    NeonI8mm(NeonI8mm),
}

/// What of an [`Isa`] float kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatIsa {
    Portable,
    Avx2(Avx2),
    Avx512Bw(Avx512Bw),
    Neon(Neon),
}

impl Isa {
    /// The best set that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// All sets that this machine has, the best last; never empty.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::Portable];
        found.extend(Avx2::detect().map(Self::Avx2));
        found.extend(AvxVnni::detect().map(Self::AvxVnni));
        found.extend(Avx512Bw::detect().map(Self::Avx512Bw));
        found.extend(Avx512Vnni::detect().map(Self::Avx512Vnni));
        found.extend(AmxInt8::detect().map(Self::AmxInt8));
        found.extend(NeonDotprod::detect().map(Self::NeonDotprod));
        found.extend(NeonI8mm::detect().map(Self::NeonI8mm));
        found
    }

    /// `portable`, `avx2`, `avx-vnni`, `avx512`, `avx512-vnni`, `amx-int8`, `neon-dotprod` or `neon-i8mm`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2(_) => "avx2",
            Self::AvxVnni(_) => "avx-vnni",
            Self::Avx512Bw(_) => "avx512",
            Self::Avx512Vnni(_) => "avx512-vnni",
            Self::AmxInt8(_) => "amx-int8",
            Self::NeonDotprod(_) => "neon-dotprod",
            Self::NeonI8mm(_) => "neon-i8mm",
        }
    }

    pub(crate) fn floats(self) -> FloatIsa {
        match self {
            Self::Portable => FloatIsa::Portable,
            Self::Avx2(proof) => FloatIsa::Avx2(proof),
            Self::AvxVnni(_) => FloatIsa::Avx2(Avx2(())),
            Self::Avx512Bw(proof) => FloatIsa::Avx512Bw(proof),
            Self::Avx512Vnni(_) | Self::AmxInt8(_) => FloatIsa::Avx512Bw(Avx512Bw(())),
            Self::NeonDotprod(_) | Self::NeonI8mm(_) => FloatIsa::Neon(Neon(())),
        }
    }
}

/// The names of all sets, and the architecture of each; any machine has the portable one.
const NAMES: [(&str, &str); 8] = [
    ("portable", ""),
    ("avx2", "x86_64"),
    ("avx-vnni", "x86_64"),
    ("avx512", "x86_64"),
    ("avx512-vnni", "x86_64"),
    ("amx-int8", "x86_64"),
    ("neon-dotprod", "aarch64"),
    ("neon-i8mm", "aarch64"),
];

impl FromStr for Isa {
    type Err = NoSuchIsa;

    fn from_str(name: &str) -> Result<Self, NoSuchIsa> {
        let found = Self::available().into_iter().find(|isa| isa.name() == name);
        found.ok_or_else(|| match NAMES.into_iter().find(|known| known.0 == name) {
            Some((name, architecture)) if architecture != ARCH => NoSuchIsa::Elsewhere { name, architecture },
            Some((name, _)) => NoSuchIsa::Lacking { name },
            None => NoSuchIsa::Unknown,
        })
    }
}

/// A name that this machine has no instruction set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSuchIsa {
    /// It is the name of none.
    Unknown,
    /// It is one of another architecture.
    Elsewhere { name: &'static str, architecture: &'static str },
    /// Its instructions are missing here.
    Lacking { name: &'static str },
}

impl fmt::Display for NoSuchIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("no such instruction set")?,
            Self::Elsewhere { name, architecture } => write!(f, "{name} is for {architecture}, this is {ARCH}")?,
            Self::Lacking { name } => write!(f, "this processor lacks {name}")?,
        }
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        write!(f, "; this machine has {}", names.join(", "))
    }
}

impl std::error::Error for NoSuchIsa {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_isa_is_found_by_its_name() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
    }

    #[test]
    fn names_that_mean_nothing_here_say_why() {
        assert_eq!("sse9".parse::<Isa>(), Err(NoSuchIsa::Unknown));
        assert!(NoSuchIsa::Unknown.to_string().starts_with("no such instruction set; this machine has portable"));
        for (name, architecture) in NAMES {
            match name.parse::<Isa>() {
                Ok(isa) => assert_eq!(isa.name(), name),
                Err(NoSuchIsa::Lacking { name: lacking }) => assert_eq!((lacking, architecture), (name, ARCH)),
                Err(error) => {
                    assert_ne!(architecture, ARCH);
                    assert_eq!(error, NoSuchIsa::Elsewhere { name, architecture });
                    assert!(error.to_string().starts_with(&format!("{name} is for {architecture}, this is {ARCH}; ")));
                }
            }
        }
    }

    /// An empty list of sets, or one without its floats, would make every agreement test agree.
    #[test]
    fn what_the_processor_says_is_available() {
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        assert_eq!(names[0], "portable");
        #[cfg(target_arch = "x86_64")]
        for (name, exists) in [
            ("avx2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            ("avx-vnni", is_x86_feature_detected!("avxvnni")),
            ("avx512", is_x86_feature_detected!("avx512bw")),
            ("avx512-vnni", is_x86_feature_detected!("avx512vnni")),
        ] {
            assert_eq!(names.contains(&name), exists, "{name}");
        }
        #[cfg(target_arch = "aarch64")]
        for (name, exists) in [
            ("neon-dotprod", is_aarch64_feature_detected!("dotprod")),
            ("neon-i8mm", is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm")),
        ] {
            assert_eq!(names.contains(&name), exists, "{name}");
        }
    }

    /// A processor whose AMX isn't found would be as slow as one without, and nobody would know.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn amx_is_available_where_the_kernel_lists_it() {
        let Ok(processors) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let flags: Vec<&str> =
            processors.lines().find(|line| line.starts_with("flags")).unwrap_or_default().split(' ').collect();
        assert_eq!(AmxInt8::detect().is_some(), flags.contains(&"amx_tile") && flags.contains(&"amx_int8"));
    }
}
