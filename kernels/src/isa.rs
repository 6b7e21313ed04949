//! Instruction sets: detected once at run time; holding a token is the proof that its instructions exist.

use std::fmt;
use std::str::FromStr;

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

impl Avx2 {
    /// `None` where an instruction is missing or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
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
}

/// What of an [`Isa`] float kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatIsa {
    Portable,
    Avx2(Avx2),
    Avx512Bw(Avx512Bw),
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
        found
    }

    /// `portable`, `avx2`, `avx-vnni`, `avx512` or `avx512-vnni`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2(_) => "avx2",
            Self::AvxVnni(_) => "avx-vnni",
            Self::Avx512Bw(_) => "avx512",
            Self::Avx512Vnni(_) => "avx512-vnni",
        }
    }

    pub(crate) fn floats(self) -> FloatIsa {
        match self {
            Self::Portable => FloatIsa::Portable,
            Self::Avx2(proof) => FloatIsa::Avx2(proof),
            Self::AvxVnni(_) => FloatIsa::Avx2(Avx2(())),
            Self::Avx512Bw(proof) => FloatIsa::Avx512Bw(proof),
            Self::Avx512Vnni(_) => FloatIsa::Avx512Bw(Avx512Bw(())),
        }
    }
}

impl FromStr for Isa {
    type Err = NoSuchIsa;

    fn from_str(name: &str) -> Result<Self, NoSuchIsa> {
        Self::available().into_iter().find(|isa| isa.name() == name).ok_or(NoSuchIsa)
    }
}

/// A name that this machine has no instruction set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchIsa;

impl fmt::Display for NoSuchIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        write!(f, "this machine has {}", names.join(", "))
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
        assert_eq!("sse9".parse::<Isa>(), Err(NoSuchIsa));
        assert!(NoSuchIsa.to_string().starts_with("this machine has portable"));
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
    }
}
