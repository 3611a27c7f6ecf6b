//! Rotary position embedding (Su et al. 2021) with the frequency scalings of the supported families. Element i of a
//! head is paired with i + d/2.

use std::f64::consts::TAU;

/// How a model turns its queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every position divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a linear blend between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
}

impl Rope {
    /// Angle per position of each of the `head_dim / 2` pairs.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2).map(|i| self.scale(self.theta.powf(-2.0 * i as f64 / head_dim as f64))).collect()
    }

    fn scale(&self, frequency: f64) -> f64 {
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = TAU / frequency;
                if wavelength < original_context / high_freq_factor {
                    frequency
                } else if wavelength > original_context / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth =
                        (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_linear() {
        let plain = Rope { theta: 10_000.0, scaling: RopeScaling::None };
        let f = plain.frequencies(4);
        assert_eq!(f[0], 1.0);
        assert!((f[1] - 0.01).abs() < 1e-15);
        let linear = Rope { scaling: RopeScaling::Linear { factor: 4.0 }, ..plain };
        assert_eq!(linear.frequencies(4), [f[0] / 4.0, f[1] / 4.0]);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.frequencies(64);
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(64);
        let mut blended = 0;
        for (p, s) in plain.iter().zip(&scaled) {
            match TAU / p {
                w if w < 2048.0 => assert_eq!(s, p),
                w if w > 8192.0 => assert_eq!(*s, p / 32.0),
                _ => {
                    blended += 1;
                    assert!(*s > p / 32.0 && s < p);
                }
            }
        }
        assert!(blended > 0);
        assert!(scaled.is_sorted_by(|a, b| a > b));
    }
}
