//! What the machine can do, measured in the run that it judges.

use kvist_kernels::{Isa, Pool, probe};
use serde_json::{Value, json};

use crate::bench::median;
use crate::machine;
use crate::size::count;

const ROUNDS: usize = 25;
/// Of a look, some 30 ms: threads that were asleep may wake on one core, and are parted with the scheduler's next tick. With 8
/// rounds runs beside llama.cpp, during whose turns ours sleep, were called void on an idle machine. The median counts:
/// beside others who share our cores some rounds reach the limit while most take half as long again.
const LOOK_ROUNDS: usize = 100;
const STREAM_ROUNDS: usize = 5;
/// Below this share of what the hardware offers, the machine was busy.
const VALID: f64 = 0.9;

#[derive(Clone, Debug)]
pub struct Limits {
    pub isa: Isa,
    pub threads: usize,
    /// Read bandwidth of memory in GB/s: the median of all looks. Of some virtual machines it changes by a third within
    /// seconds, and the best would be a limit that most of the run did not have.
    pub bandwidth: f64,
    /// The lowest and the highest.
    pub bandwidths: [f64; 2],
    /// bf16 dot products in GFLOP/s.
    pub peak: f64,
    /// Dot products of quantised rows in GOP/s: with codes of at most 6 bits, and of 8.
    pub integer_peaks: [f64; 2],
    /// Dot products of 16 bits in GOP/s: attention.
    pub short_peak: f64,
    pub clock_ghz: f64,
    /// The best probe's operations per cycle over what the hardware offers.
    pub per_cycle: f64,
    /// What looks between the measurements reached of the peak: the median of their medians.
    pub steadiness: f64,
}

/// Measures the limits, and all through a run whether the machine still has them.
pub struct Probe {
    isa: Isa,
    pool: Pool,
    peak: probe::Peak,
    integer_peaks: [f64; 2],
    short_peak: f64,
    /// GFLOP/s of each look, the median, and the best of all.
    looks: Vec<f64>,
    best: f64,
    /// GB/s at the start and of each look.
    bandwidths: Vec<f64>,
}

impl Probe {
    pub fn new(isa: Isa, threads: usize) -> Probe {
        let pool = Pool::new(threads);
        let peak = probe::peak(isa, &pool, ROUNDS);
        let bandwidths = vec![probe::bandwidth(&pool, STREAM_ROUNDS)];
        let integer_peaks = integer_peaks(isa, &pool);
        let short_peak = probe::short_peak(isa, &pool, LOOK_ROUNDS);
        Probe { isa, pool, peak, integer_peaks, short_peak, looks: Vec::new(), best: 0.0, bandwidths }
    }

    /// To be called before each measurement. Takes some 200 milliseconds.
    pub fn look(&mut self) {
        self.bandwidths.push(probe::bandwidth(&self.pool, STREAM_ROUNDS));
        let rates = probe::rates(self.isa, &self.pool, LOOK_ROUNDS);
        self.looks.push(median(&rates));
        self.best = rates.into_iter().fold(self.best, f64::max);
    }

    /// The limits, from the start, all looks and the end of the run.
    pub fn finish(mut self) -> Limits {
        self.bandwidths.push(probe::bandwidth(&self.pool, STREAM_ROUNDS));
        let again = probe::peak(self.isa, &self.pool, ROUNDS);
        let best = if again.gflops > self.peak.gflops { again } else { self.peak };
        let integer = integer_peaks(self.isa, &self.pool);
        let peak = best.gflops.max(self.best);
        let steadiness = if self.looks.is_empty() { 1.0 } else { median(&self.looks) / peak };
        Limits {
            isa: self.isa,
            threads: self.pool.threads(),
            bandwidth: median(&self.bandwidths),
            bandwidths: [f64::min, f64::max].map(|f| self.bandwidths.iter().copied().reduce(f).unwrap_or(f64::NAN)),
            peak,
            integer_peaks: std::array::from_fn(|i| self.integer_peaks[i].max(integer[i])),
            short_peak: self.short_peak.max(probe::short_peak(self.isa, &self.pool, LOOK_ROUNDS)),
            clock_ghz: best.clock_ghz,
            per_cycle: best.share,
            steadiness,
        }
    }
}

fn integer_peaks(isa: Isa, pool: &Pool) -> [f64; 2] {
    [false, true].map(|wide| probe::integer_peak(isa, pool, wide, LOOK_ROUNDS))
}

impl Limits {
    /// Bytes that measuring with so many threads takes for a moment.
    pub fn bytes(threads: usize) -> u64 {
        probe::bytes(threads) as u64
    }

    /// The share of what the machine can do that it had for this run.
    pub fn check(&self) -> f64 {
        self.per_cycle.min(self.steadiness)
    }

    /// Seconds that reading these bytes or doing this arithmetic takes at least: operations with weights of so many bytes each,
    /// and those of attention.
    pub fn floor(&self, bytes: f64, dense: (f64, f64), attention: f64) -> f64 {
        let arithmetic = dense.0 / self.peak_of(dense.1) + attention / self.short_peak;
        (bytes / self.bandwidth).max(arithmetic) / 1e9
    }

    /// Operations per second (1e9) with weights of so many bytes each: below 16 bits they are multiplied as integers.
    pub fn peak_of(&self, weight_bytes: f64) -> f64 {
        match weight_bytes {
            2.0.. => self.peak,
            1.0.. => self.integer_peaks[1],
            _ => self.integer_peaks[0],
        }
    }

    pub fn is_valid(&self) -> bool {
        self.check() >= VALID
    }

    /// For people.
    pub fn line(&self) -> String {
        let mut void = String::new();
        if !self.is_valid() {
            void += "\nVOID: the machine was busy; run it again.";
        }
        if self.per_cycle < VALID {
            let share = 100.0 * self.per_cycle;
            void += &format!(
                "\n  The arithmetic limit came out at {share:.0} % of the hardware's: it and all shares of it are wrong."
            );
        }
        if self.steadiness < VALID {
            let share = 100.0 * self.steadiness;
            void += &format!(
                "\n  Between the measurements {share:.0} % of the limit was left: all times, rates and shares are too \
                 bad; ratios of two of them (gain) suffer least."
            );
        }
        let [lowest, highest] = self.bandwidths;
        format!(
            "{}, {}: reads {:.1} GB/s ({lowest:.1} to {highest:.1}), {:.0} GFLOP/s bf16 and \
             {:.0} GOP/s in 16 bits at {:.2} GHz, clock check {:.0} %{void}",
            self.isa,
            count(self.threads, "thread"),
            self.bandwidth,
            self.peak,
            self.short_peak,
            self.clock_ghz,
            100.0 * self.check()
        )
    }

    pub fn json(&self) -> Value {
        json!({
            "cpu": machine::cpu(),
            "isa": self.isa.to_string(),
            "threads": self.threads,
            "read_gb_per_second": self.bandwidth,
            "read_gb_per_second_lowest_highest": self.bandwidths,
            "bf16_gflop_per_second": self.peak,
            "integer_gop_per_second": {
                "up_to_6_bits": self.integer_peaks[0],
                "8_bits": self.integer_peaks[1],
                "16_bits": self.short_peak,
            },
            "clock_ghz": self.clock_ghz,
            "operations_per_cycle_share": self.per_cycle,
            "steadiness": self.steadiness,
            "valid": self.is_valid(),
        })
    }
}

#[cfg(test)]
impl Limits {
    pub fn unknown(isa: Isa, threads: usize) -> Limits {
        let integer_peaks = [1.0; 2];
        Limits {
            isa,
            threads,
            bandwidth: 1.0,
            bandwidths: [1.0; 2],
            peak: 1.0,
            integer_peaks,
            short_peak: 1.0,
            clock_ghz: 1.0,
            per_cycle: 1.0,
            steadiness: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_voids_the_run() {
        let good = Limits::unknown(Isa::Portable, 4);
        assert!(good.is_valid() && !good.line().contains("VOID"));
        for busy in [Limits { per_cycle: 0.89, ..good.clone() }, Limits { steadiness: 0.5, ..good.clone() }] {
            assert!(!busy.is_valid() && busy.line().contains("VOID") && busy.json()["valid"] == false);
        }
    }

    #[test]
    fn a_void_run_says_which_figures_suffer() {
        let good = Limits::unknown(Isa::Portable, 1);
        assert!(good.line().starts_with("portable, 1 thread: "));
        let probe = Limits { per_cycle: 0.5, ..good.clone() }.line();
        assert!(probe.contains("50 % of the hardware's") && !probe.contains("Between"), "{probe}");
        let runs = Limits { steadiness: 0.5, ..good }.line();
        assert!(runs.contains("Between the measurements 50 %") && !runs.contains("hardware"), "{runs}");
    }

    #[test]
    fn the_floor_is_the_slower_of_both() {
        let limits = Limits { bandwidth: 10.0, peak: 100.0, short_peak: 50.0, ..Limits::unknown(Isa::Portable, 1) };
        assert_eq!(limits.floor(1e9, (1e9, 2.0), 1e9), 0.1);
        assert_eq!(limits.floor(1e9, (20e9, 2.0), 0.0), 0.2);
        assert_eq!(limits.floor(1e9, (20e9, 2.0), 5e9), 0.3);
    }

    #[test]
    fn weights_are_multiplied_at_the_peak_of_their_form() {
        let limits = Limits { peak: 5.0, integer_peaks: [20.0, 10.0], ..Limits::unknown(Isa::Portable, 2) };
        assert_eq!([4.0, 2.0, 1.0625, 0.82, 0.5625].map(|bytes| limits.peak_of(bytes)), [5.0, 5.0, 10.0, 20.0, 20.0]);
    }

    #[test]
    fn a_probe_sees_what_it_looked_at() {
        let mut probe = Probe::new(Isa::Portable, 2);
        (0..3).for_each(|_| probe.look());
        let limits = probe.finish();
        let [lowest, highest] = limits.bandwidths;
        assert!(0.0 < lowest && lowest <= limits.bandwidth && limits.bandwidth <= highest);
        assert!(limits.peak > 0.0 && limits.steadiness > 0.0 && limits.steadiness <= 1.0);
    }
}
