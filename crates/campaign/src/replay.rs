//! `kvist-campaign replay`: eviction policies on traces of requests.

use std::path::{Path, PathBuf};

use kvist_base::Micros;
use kvist_cache::policy::Facts;
use kvist_sim::replay::{Policy, SIZES, Table, Trace};

#[derive(clap::Args)]
pub struct Args {
    /// Traces: JSON lines with `timestamp`, `input_length`, `output_length`, `hash_ids`.
    #[arg(required = true)]
    traces: Vec<PathBuf>,
    /// Sizes of the cache in blocks of 512 tokens.
    #[arg(long, value_delimiter = ',', value_parser = size, default_values_t = SIZES)]
    blocks: Vec<usize>,
    /// Seconds for which requests wait, and are known, before they are served: for the queue-aware policy.
    #[arg(long, default_value_t = 10)]
    wait: u32,
    /// Only these requests of the trace, as A..B.
    #[arg(long, value_parser = crate::range)]
    rows: Option<std::ops::Range<u64>>,
    /// What each fact that is learnt from is worth: the policy with that alone, and without it.
    #[arg(long)]
    ablation: bool,
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<(), String> {
    let wait = Micros::from(args.wait) * 1_000_000;
    let mut policies = vec![Policy::Fifo, Policy::Lru, Policy::QueueAware { wait }, Policy::Returns, Policy::Optimum];
    if args.ablation {
        policies = vec![Policy::Lru, Policy::Learning { facts: 0 }];
        policies.extend((0..Facts::NAMES.len()).map(|fact| Policy::Learning { facts: 1 << fact }));
        policies.push(Policy::Returns);
        policies.extend((0..Facts::NAMES.len()).map(|fact| Policy::Learning { facts: !(1 << fact) }));
    }
    for file in &args.traces {
        let mut trace = read(file)?;
        if let Some(rows) = &args.rows {
            let end = rows.end.min(trace.rows.len() as u64);
            trace = trace.part(rows.start.min(end) as usize..end as usize);
        }
        let name = file.file_stem().map_or("-".into(), |name| name.to_string_lossy());
        let table = Table::new(&name, &trace, &args.blocks, &policies);
        if args.json {
            println!("{}", table.json());
        } else {
            println!("{table}");
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Trace, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    Trace::parse(&text).map_err(|e| format!("{}, {e}", file.display()))
}

/// `3000` or `3k`.
fn size(text: &str) -> Result<usize, String> {
    let (digits, factor) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1000));
    let n: usize = digits.parse().map_err(|e| format!("{text:?}: {e}"))?;
    n.checked_mul(factor).filter(|&n| n > 0).ok_or(format!("{text:?}: a number of blocks, for example 3k"))
}
