use std::fmt;
use std::str::FromStr;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// An instruction-set path. Results are bit for bit reproducible on one path; paths may differ from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 F, BW, VL, DQ, VNNI and BF16 (Zen 4, Cooper Lake, Sapphire Rapids and later). Products of bf16 weights have bits
    /// of their own; attention is that of [`Isa::Avx512Vnni`].
    Avx512,
    /// AVX-512 F, BW, VL, DQ and VNNI (Cascade Lake, Ice Lake and later). The same bits as [`Isa::Avx2`]: products of
    /// bf16 are the same multiply-adds, and sums over lanes are over as many.
    Avx512Vnni,
    /// AVX2 with AVX-VNNI (Alder Lake and later). The same bits as [`Isa::Avx2`]: integer products are exact.
    AvxVnni,
    /// AVX2, FMA and F16C.
    Avx2,
    /// No instruction beyond the target's baseline.
    Portable,
}

impl Isa {
    /// Every path, best first.
    pub const ALL: [Isa; 5] = [Isa::Avx512, Isa::Avx512Vnni, Isa::AvxVnni, Isa::Avx2, Isa::Portable];

    /// Their names, in the same order.
    pub const NAMES: [&str; 5] = ["avx512", "avx512vnni", "avxvnni", "avx2", "portable"];

    /// The best path of this machine.
    pub fn detect() -> Isa {
        Isa::available()[0]
    }

    /// The paths that this machine can run, best first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine can run the path.
    pub fn is_available(self) -> bool {
        self.missing().is_empty()
    }

    /// What this machine lacks for the path.
    #[cfg(target_arch = "x86_64")]
    pub fn missing(self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        macro_rules! need {
            ($($feature:tt),*) => {
                $(if !std::arch::is_x86_feature_detected!($feature) {
                    missing.push($feature);
                })*
            };
        }
        if self != Isa::Portable {
            need!("avx2", "fma", "f16c");
        }
        if self == Isa::AvxVnni {
            need!("avxvnni");
        }
        if matches!(self, Isa::Avx512 | Isa::Avx512Vnni) {
            need!("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni");
        }
        if self == Isa::Avx512 {
            need!("avx512bf16");
        }
        missing
    }

    /// What this machine lacks for the path.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn missing(self) -> Vec<&'static str> {
        if self == Isa::Portable { Vec::new() } else { vec!["an x86-64 CPU"] }
    }

    /// The path that needs least among those with the bits of this one: what the paths have in common is known by it.
    pub fn bits(self) -> Isa {
        if matches!(self, Isa::Avx512Vnni | Isa::AvxVnni) { Isa::Avx2 } else { self }
    }

    /// Whether this is a CPU of AMD, which reads memory ahead in a way of its own.
    #[inline]
    pub(crate) fn of_amd() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            static AMD: OnceLock<bool> = OnceLock::new();
            *AMD.get_or_init(|| {
                let id = std::arch::x86_64::__cpuid(0);
                [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
            })
        }
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether its vectors have 512 bits where that counts.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Isa::Avx512 | Isa::Avx512Vnni)
    }

    /// Every public kernel calls this first: it is what makes the `target_feature` calls behind it sound.
    #[inline]
    pub(crate) fn require(self) {
        assert!(self.is_available(), "this machine cannot run the {self} path");
    }

    fn name(self) -> &'static str {
        Isa::NAMES[self as usize]
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
        found.ok_or_else(|| format!("unknown instruction set `{s}`: one of {}", Isa::NAMES.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_the_baseline_always_runs() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
            assert!(!isa.is_available() || isa.bits().is_available());
        }
        assert!("sse".parse::<Isa>().is_err());
        assert_eq!(Isa::available().last(), Some(&Isa::Portable));
        assert!(Isa::detect().is_available());
    }
}
