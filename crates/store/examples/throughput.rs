//! How fast chunks go to disk and come back: `throughput DIR [CHUNKS] [LAYERS] [SLICE KIB] [THREADS]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvist_base::{CHUNK, DomainId, TokenId};
use kvist_store::{Encryption, Fingerprint, Priority, RealVfs, Store, StoreConfig};

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().expect("a directory for the store"));
    let mut number = |or: usize| args.next().map_or(or, |a| a.parse().expect("a number"));
    let (chunks, layers, slice, threads) = (number(64), number(16), number(128) << 10, number(4));
    for encryption in [Encryption::Keys(dir.join("key")), Encryption::Off] {
        let fingerprint = Fingerprint { digest: [1; 32], text: "throughput".into() };
        let slices = vec![slice; layers];
        let name = format!("{encryption:?}").chars().take_while(|c| c.is_alphabetic()).collect::<String>();
        let mut config = StoreConfig::new(dir.join(&name), 16 << 30, fingerprint, slices, encryption);
        (config.io_threads, config.saves, config.staging) = (threads, 4 << 30, 1 << 30);
        let bytes = (chunks * layers * slice) as f64;
        let (store, _) = Store::open(Arc::new(RealVfs::new()), config.clone()).expect("a store");
        let domain = DomainId(1);
        store.register(domain, "tenant").expect("a key");
        let seed = store.stats().entries as u32;
        let path: Vec<TokenId> = (0..(chunks * CHUNK) as u32).map(|t| t ^ seed << 16).collect();
        let data = vec![vec![7; layers * slice]; chunks];
        let start = Instant::now();
        store.save(domain, &path, 0, data);
        let queued = start.elapsed();
        assert!(store.flush(Duration::from_secs(600)));
        let took = start.elapsed().as_secs_f64();
        let stats = store.stats();
        println!(
            "{name}: saved {:.2} GB/s (queued in {queued:?}; {:.3} s writing, {:.3} s syncing)",
            bytes / took / 1e9,
            stats.write_seconds,
            stats.sync_seconds
        );
        for cached in [true, true, false] {
            if !cached {
                store.forget_cache();
            }
            let start = Instant::now();
            let load = store.load(domain, &path, 0..chunks, Priority::Urgent);
            let mut to = vec![0; slice];
            let mut first = Duration::ZERO;
            for layer in 0..layers {
                (0..chunks).for_each(|i| load.wait(layer, i, &mut to).expect("a slice"));
                if layer == 0 {
                    first = start.elapsed();
                }
            }
            let took = start.elapsed().as_secs_f64();
            let (read, open) = load.times();
            println!(
                "{name}: loaded {:.2} GB/s from {}, first layer after {first:?}; all threads: reading {:.2} GB/s, opening {:.2} GB/s",
                bytes / took / 1e9,
                if cached { "the page cache" } else { "disk" },
                bytes / read as f64 / 1e3,
                bytes / open as f64 / 1e3,
            );
        }
        drop(store);
        let start = Instant::now();
        let (_, restored) = Store::open(Arc::new(RealVfs::new()), config).expect("a store");
        println!("{restored}; {:?}", start.elapsed());
    }
}
