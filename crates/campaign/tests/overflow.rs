//! Text that goes on behind a cut. More of it: `cargo run --release -p kvist-campaign -- overflow`.

use kvist_campaign::overflow::{Way, measure};
use kvist_campaign::quality::model;
use kvist_kernels::Isa;

#[test]
fn carried_kv_is_as_good_as_recomputed() {
    let figures = measure(&model(None), Isa::detect(), 4, 3);
    let of = |way| figures.iter().find(|f| f.0 == way).map(|f| (f.1, f.2)).unwrap();
    let (recomputed, carried, wrong) = (of(Way::Recomputed), of(Way::Carried), of(Way::WrongPlaces));
    println!("{recomputed:?}\n{carried:?}\n{wrong:?}");
    assert!(carried.0.perplexity() < 1.05 * recomputed.0.perplexity());
    assert!(carried.1.perplexity() < 1.25 * recomputed.1.perplexity());
    // One row a document: that of its last token.
    assert_eq!((carried.0.computed, carried.1.computed), (3, 3));
    assert_eq!(recomputed.0.computed, 3 * 512);
    // Keys that are met as if they were born where they stand are worth little: that would be noticed.
    assert!(wrong.0.perplexity() > 1.5 * recomputed.0.perplexity());
}
