use std::fmt;
use std::str::FromStr;

/// An instruction-set path. Results are bit for bit reproducible on one path; paths may differ from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 F, BW, VL, DQ, BF16 and VNNI (every machine with the fifth has the sixth).
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// No instruction beyond the target's baseline.
    Portable,
}

impl Isa {
    /// Every path, best first.
    const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The best path of this machine.
    pub fn detect() -> Isa {
        Isa::available()[0]
    }

    /// The paths that this machine can run, best first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine can run the path.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512vl")
                    && has!("avx512dq")
                    && has!("avx512bf16")
                    && has!("avx512vnni")
            }
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Isa::Portable => true,
        }
    }

    /// Whether this machine can run the path.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Isa::Portable
    }

    /// Every public kernel calls this first: it is what makes the `target_feature` calls behind it sound.
    #[inline]
    pub(crate) fn require(self) {
        assert!(self.is_available(), "this machine cannot run the {self} path");
    }

    fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = Isa::ALL.into_iter().find(|isa| isa.name() == s);
        found.ok_or_else(|| format!("unknown instruction set `{s}`: one of avx512, avx2, portable"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_the_baseline_always_runs() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert!("sse".parse::<Isa>().is_err());
        assert_eq!(Isa::available().last(), Some(&Isa::Portable));
        assert!(Isa::detect().is_available());
    }
}
