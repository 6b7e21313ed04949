//! Instruction sets: detected once at run time; holding a token is the proof that its instructions exist.

/// Proof that AVX2, FMA and F16C exist on this machine; made only by [`Avx2::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

/// Proof that AVX-512 F, BW, DQ, VL and VNNI (and everything of [`Avx2`]) exist; made only by [`Avx512::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

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

impl Avx512 {
    /// `None` where an instruction is missing or the machine is not x86-64.
    #[must_use]
    pub fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Avx2::detect().is_some()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
        {
            return Some(Self(()));
        }
        None
    }

    /// AVX2 is part of what this proves.
    #[must_use]
    pub fn avx2(self) -> Avx2 {
        Avx2(())
    }
}

/// The instruction set that a kernel call uses. Every variant gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    Portable,
    Avx2(Avx2),
    Avx512(Avx512),
}

impl Isa {
    /// The widest set that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// All sets that this machine has, narrowest first; never empty.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut found = vec![Self::Portable];
        found.extend(Avx2::detect().map(Self::Avx2));
        found.extend(Avx512::detect().map(Self::Avx512));
        found
    }

    /// The set of that name, if this machine has it.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `portable`, `avx2` or `avx512-vnni`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2(_) => "avx2",
            Self::Avx512(_) => "avx512-vnni",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_isa_is_found_by_its_name() {
        for isa in Isa::available() {
            assert_eq!(Isa::by_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::by_name("sse9"), None);
    }
}
