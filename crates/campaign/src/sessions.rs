//! `kvist-campaign attention-store`: policies for memory and disk under conversations in a closed loop.

use kvist_base::Micros;
use kvist_cache::policy::Order;
use kvist_campaign::parallel;
use kvist_sim::sessions::{Costs, Experiment, Outcome, Policy, Users, run};

#[derive(clap::Args)]
pub struct Args {
    /// Loads: users at the same time; with `--arrive`, users in all.
    #[arg(long, value_delimiter = ',', default_values_t = [50, 100, 200, 400, 800])]
    users: Vec<usize>,
    /// Mean seconds between users who come for one conversation; without it, each begins another one when one ends.
    #[arg(long)]
    arrive: Option<f64>,
    /// Mean seconds of thought.
    #[arg(long, default_value_t = 60.0)]
    think: f64,
    /// Chunks of the disk. A conversation has 5 on average over its turns.
    #[arg(long, default_value_t = 1500)]
    disk: usize,
    /// Chunks of memory beside those of running sequences; default: a part in 80 of the disk.
    #[arg(long)]
    memory: Option<usize>,
    /// Sequences at a time.
    #[arg(long, default_value_t = 24)]
    batch: usize,
    /// Mean tokens that a user says, and that are answered.
    #[arg(long, value_name = "TOKENS", default_value_t = Users::default().says)]
    says: u32,
    #[arg(long, value_name = "TOKENS", default_value_t = Users::default().hears)]
    hears: u32,
    /// Microseconds of a step, of each of its rows, and of a thousand tokens attended to.
    #[arg(long, value_name = "MICROS", default_value_t = Costs::default().step)]
    step: Micros,
    #[arg(long, value_name = "MICROS", default_value_t = Costs::default().row)]
    row: Micros,
    #[arg(long, value_name = "MICROS", default_value_t = Costs::default().kilotoken)]
    kilotoken: Micros,
    /// Microseconds until a load begins to arrive, and of each of its chunks.
    #[arg(long, value_name = "MICROS", default_value_t = Costs::default().seek)]
    seek: Micros,
    #[arg(long, value_name = "MICROS", default_value_t = Costs::default().chunk)]
    chunk: Micros,
    /// Serve in order of arrival instead of the server's order.
    #[arg(long)]
    in_order: bool,
    /// Turns to warm up, and to measure.
    #[arg(long, default_value_t = 2000)]
    warm_up: usize,
    #[arg(long, default_value_t = 3000)]
    turns: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, |n| n.get()))]
    jobs: usize,
}

const POLICIES: [Policy; 5] = [
    Policy { order: Order::Fifo, queue_aware: false },
    Policy { order: Order::Lru, queue_aware: false },
    Policy { order: Order::Returns, queue_aware: false },
    Policy { order: Order::Lru, queue_aware: true },
    Policy { order: Order::Returns, queue_aware: true },
];

pub fn all(args: Args) -> Result<(), String> {
    let micros = |seconds: f64| (seconds * 1e6) as Micros;
    let Args { step, row, kilotoken, seek, chunk, .. } = args;
    let costs = Costs { step, row, kilotoken, seek, chunk };
    println!(
        "| users | policy | hits % | in memory % | optimum % | prefill saved % | TTFT s: mean, p50, p99 | of it prefill s | turns/s | waiting | not admitted |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for &count in &args.users {
        let experiment = |policy| Experiment {
            users: Users {
                count,
                arrive: args.arrive.map(micros),
                think: micros(args.think),
                says: args.says,
                hears: args.hears,
                ..Users::default()
            },
            policy,
            costs,
            batch: args.batch,
            memory: args.memory.unwrap_or(args.disk / 80).max(1),
            disk: args.disk,
            in_order: args.in_order,
            warm_up: args.warm_up,
            turns: args.turns,
            seed: args.seed,
        };
        let case = |i: u64| Ok(vec![(i, run(experiment(POLICIES[i as usize]))?)]);
        let mut outcomes = parallel::seeds(0..POLICIES.len() as u64, args.jobs, case, |all, more| all.extend(more))?;
        outcomes.sort_by_key(|outcome| outcome.0);
        for (i, outcome) in outcomes {
            println!("{}", line(count, POLICIES[i as usize], &outcome));
        }
    }
    Ok(())
}

fn line(users: usize, policy: Policy, outcome: &Outcome) -> String {
    let [hits, memory, optimum] = outcome.hits();
    let [mean, half, most] = outcome.ttft.map(|micros| micros as f64 / 1e6);
    let (saved, prefill) = (outcome.saved(), mean - outcome.queued as f64 / 1e6);
    let turns = outcome.throughput()[0];
    format!(
        "| {users} | {policy} | {hits:.1} | {memory:.1} | {optimum:.1} | {saved:.1} | {mean:.1}, {half:.1}, {most:.1} | {prefill:.2} | {turns:.2} | {:.0} | {} |",
        outcome.waiting, outcome.not_admitted
    )
}
