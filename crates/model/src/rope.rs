//! Rotary position embedding (Su et al. 2021) with the frequency scalings of the supported families. Element i of a
//! head is paired with i + rotary/2.

use std::f64::consts::TAU;

/// How a model turns its queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    /// Elements of a head that turn, from the first; the others are left as they are. Even, 0 where no position is told.
    pub rotary: usize,
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
    /// Pairs that turn less than `beta_slow` times in the original context are stretched by `factor`, those that turn
    /// more than `beta_fast` times kept, a linear blend between.
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// The borders of the blend are whole pairs.
        truncate: bool,
        attention_factor: f64,
    },
    /// Each pair has a factor of its own: one list for contexts up to the original one, one for longer ones. The list
    /// is chosen once, by the context that the model runs with, so that a token's keys never change.
    LongRope {
        short: Vec<f64>,
        long: Vec<f64>,
        original_context: f64,
        attention_factor: f64,
    },
}

/// What [`Rope`] comes to in a certain context.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Angle per position of each of the `rotary / 2` pairs.
    pub frequencies: Vec<f64>,
    /// Factor on the elements that turn, in queries and keys alike.
    pub amplitude: f64,
}

impl Rope {
    /// No rotation: the layer does not know positions.
    pub fn none() -> Rope {
        Rope { theta: 1.0, rotary: 0, scaling: RopeScaling::None }
    }

    /// The rotation of a model that runs with `context` tokens in a sequence at most.
    pub fn rotation(&self, context: usize) -> Rotation {
        let pairs = (0..self.rotary / 2).map(|i| (i, self.theta.powf(-2.0 * i as f64 / self.rotary as f64)));
        let frequencies = pairs.map(|(i, frequency)| self.scale(i, frequency, context)).collect();
        let amplitude = match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        };
        Rotation { frequencies, amplitude }
    }

    fn scale(&self, pair: usize, frequency: f64, context: usize) -> f64 {
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
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
            &RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                let dim = self.rotary as f64;
                let border = |turns: f64| dim * (original_context / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (border(beta_fast), border(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * stretched + frequency * (1.0 - stretched)
            }
            RopeScaling::LongRope { short, long, original_context, .. } => {
                let factors = if context as f64 > *original_context { long } else { short };
                frequency / factors[pair]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(theta: f64, rotary: usize, scaling: RopeScaling) -> Vec<f64> {
        Rope { theta, rotary, scaling }.rotation(1024).frequencies
    }

    #[test]
    fn plain_linear_and_none() {
        let f = frequencies(10_000.0, 4, RopeScaling::None);
        assert_eq!(f[0], 1.0);
        assert!((f[1] - 0.01).abs() < 1e-15);
        assert_eq!(frequencies(10_000.0, 4, RopeScaling::Linear { factor: 4.0 }), [f[0] / 4.0, f[1] / 4.0]);
        assert_eq!(Rope::none().rotation(1024), Rotation { frequencies: vec![], amplitude: 1.0 });
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let plain = frequencies(500_000.0, 64, RopeScaling::None);
        let scaled = frequencies(500_000.0, 64, scaling);
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

    #[test]
    fn longrope_is_chosen_by_the_context() {
        let scaling = RopeScaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original_context: 4096.0,
            attention_factor: 1.25,
        };
        let rope = Rope { theta: 10_000.0, rotary: 4, scaling };
        let plain = frequencies(10_000.0, 4, RopeScaling::None);
        for (context, factors) in [(1, [1.0, 2.0]), (4096, [1.0, 2.0]), (4097, [4.0, 8.0]), (131_072, [4.0, 8.0])] {
            let rotation = rope.rotation(context);
            assert_eq!(rotation.frequencies, [plain[0] / factors[0], plain[1] / factors[1]], "{context}");
            assert_eq!(rotation.amplitude, 1.25);
        }
    }
}
