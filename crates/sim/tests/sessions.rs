//! AttentionStore's experiment in small: the order of policies where the queue is long.

use kvist_cache::policy::Order;
use kvist_sim::sessions::{Costs, Experiment, Outcome, Policy, Users, run};

fn outcome(order: Order, queue_aware: bool, users: usize) -> Outcome {
    let experiment = Experiment {
        users: Users { count: users, ..Users::default() },
        policy: Policy { order, queue_aware },
        costs: Costs::default(),
        batch: 8,
        memory: 20,
        disk: 300,
        in_order: true,
        warm_up: 300,
        turns: 400,
        seed: 3,
    };
    run(experiment).unwrap()
}

#[test]
fn who_knows_the_queue_finds_more_and_finds_it_in_memory() {
    let [fifo, lru] = [Order::Fifo, Order::Lru].map(|order| outcome(order, false, 80));
    let [aware, ours] = [Order::Lru, Order::Returns].map(|order| outcome(order, true, 80));
    for o in [&fifo, &lru, &aware, &ours] {
        println!("{:?} {:?} {:?} {}", o.hits(), o.throughput(), o.ttft, o.waiting);
    }
    for blind in [&fifo, &lru] {
        let [hits, memory, _] = blind.hits();
        assert!(memory < 5.0 && hits + 20.0 < aware.hits()[0], "{blind:?}");
        assert!(aware.ttft[0] < blind.ttft[0] && aware.throughput()[0] > 1.2 * blind.throughput()[0]);
    }
    for o in [&aware, &ours] {
        let [hits, memory, optimum] = o.hits();
        assert!(memory > 0.9 * hits, "{o:?}");
        // The optimum counts whole chunks, a hit in memory also what is in an open one.
        assert!(hits < optimum + 5.0 && hits > optimum - 15.0, "{o:?}");
    }
}

#[test]
fn what_is_read_ahead_is_what_is_served_next_in_the_servers_order_too() {
    let second = 1_000_000;
    let experiment = Experiment {
        users: Users { count: 60, think: second, ..Users::default() },
        policy: Policy { order: Order::Returns, queue_aware: true },
        costs: Costs { step: 1_500, row: 200, kilotoken: 60, seek: 300, chunk: 500 },
        batch: 4,
        memory: 10,
        disk: 1000,
        in_order: false,
        warm_up: 300,
        turns: 400,
        seed: 3,
    };
    let outcome = run(experiment).unwrap();
    let [hits, memory, _] = outcome.hits();
    assert!(outcome.waiting > 30.0 && hits > 85.0 && memory > 0.9 * hits, "{outcome:?}");
}

#[test]
fn with_room_for_all_and_no_queue_all_are_equal() {
    let policies = [(Order::Fifo, false), (Order::Lru, false), (Order::Lru, true), (Order::Returns, true)];
    let rates = policies.map(|(order, aware)| outcome(order, aware, 8).hits()[0]);
    assert!(rates.iter().all(|&rate| rate > 95.0), "{rates:?}");
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let once = || format!("{:?}", outcome(Order::Returns, true, 40));
    assert_eq!(once(), once());
}

#[test]
fn lru_finds_more_than_fifo_until_what_comes_round_does_not_fit() {
    let hits = |order, aware, users| outcome(order, aware, users).hits()[0];
    // A queue that is long, conversations that just about fit: the order of AttentionStore.
    let [fifo, lru] = [Order::Fifo, Order::Lru].map(|order| hits(order, false, 60));
    let aware = hits(Order::Returns, true, 60);
    assert!(aware > lru + 8.0 && lru > fifo + 5.0, "{aware} {lru} {fifo}");
    // All come round in the order in which they went, and more than fits: what LRU drops is what is needed next.
    let [fifo, lru] = [Order::Fifo, Order::Lru].map(|order| hits(order, false, 80));
    assert!(fifo > lru + 15.0, "{lru} {fifo}");
}
