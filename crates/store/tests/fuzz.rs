//! Sound inputs are taken; the campaign mutates them.

use kvist_store::campaign::fuzz;

#[test]
fn sound_segments_and_records_are_taken() {
    let segments = fuzz::segments();
    let taken = segments.iter().filter(|s| fuzz::open_segment(s).is_ok()).count();
    // One segment of several may hold nothing that is found without the others.
    assert!(taken * 3 > segments.len(), "{taken} of {}", segments.len());
    for record in fuzz::records() {
        // A trailer says where its footer is, which is not here.
        assert!(fuzz::decode_record(&record).is_ok() || record[0] == 5, "kind {}", record[0]);
    }
}
