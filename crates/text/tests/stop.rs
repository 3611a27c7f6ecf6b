//! Stop strings against a naive search in the whole text.

use kvist_text::StopMatcher;
use proptest::prelude::*;

/// Where the text ends and which stop string ends it: the first place behind `skipped` bytes where one is complete;
/// there the longest, then the first given.
fn naive(text: &str, stops: &[String], skipped: usize) -> Option<(usize, usize)> {
    (skipped + 1..=text.len()).find_map(|end| {
        let here =
            stops.iter().enumerate().filter(|(_, s)| !s.is_empty() && text.as_bytes()[..end].ends_with(s.as_bytes()));
        let longest = here.rev().max_by_key(|(_, s)| s.len());
        longest.map(|(index, s)| (end - s.len(), index))
    })
}

/// Streams the pieces, the first `skip` of them past the stop strings; returns what came out after each, and the stop.
fn stream(pieces: &[&str], stops: &[String], skip: usize, include: bool) -> (Vec<String>, Option<usize>) {
    let mut matcher = StopMatcher::new(stops).including(include);
    let mut out: Vec<String> = pieces[..skip].iter().map(|piece| matcher.skip(piece)).collect();
    for piece in &pieces[skip..] {
        let stopped = matcher.push(piece);
        out.push(stopped.text);
        if stopped.stop.is_some() {
            assert_eq!(matcher.push("more"), Default::default());
            assert_eq!(matcher.finish(), "");
            return (out, stopped.stop);
        }
    }
    out.push(matcher.finish());
    (out, None)
}

fn cut(text: &str, cuts: &[prop::sample::Index]) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut at: Vec<usize> = cuts.iter().map(|c| c.index(chars.len() + 1)).chain([0, chars.len()]).collect();
    at.sort_unstable();
    at.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_the_naive_search(
        text in "[abé樹]{0,24}",
        stops in prop::collection::vec("[abé樹]{0,5}", 0..5),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        skip in any::<prop::sample::Index>(),
        skips in any::<bool>(),
        include in any::<bool>(),
    ) {
        let pieces = cut(&text, &cuts);
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let skip = if skips { skip.index(pieces.len() + 1) } else { 0 };
        let (out, stop) = stream(&pieces, &stops, skip, include);
        let skipped = pieces[..skip].concat().len();
        let (end, index) = naive(&text, &stops, skipped).map_or((text.len(), None), |(end, index)| {
            (end + if include { stops[index].len() } else { 0 }, Some(index))
        });
        prop_assert_eq!(out.concat(), &text[..end]);
        prop_assert_eq!(stop, index);
        // Nothing is held that cannot become a stop string.
        let mut seen = 0;
        let mut given = 0;
        for (piece, text_out) in pieces.iter().zip(&out) {
            seen += piece.len();
            given += text_out.len();
            let held = &text[given..seen.max(given)];
            prop_assert!(stop.is_some() || held.is_empty() || stops.iter().any(|s| s.starts_with(held)));
        }
    }
}

#[test]
fn holds_back_and_lets_go() {
    let mut matcher = StopMatcher::new(&["</s>", "\nUser:"]);
    assert_eq!(matcher.push("Hi <").text, "Hi ");
    assert_eq!(matcher.push("/b>\n").text, "</b>");
    assert_eq!(matcher.push("Use").text, "");
    assert_eq!(matcher.push("d\nUs").text, "\nUsed");
    let end = matcher.push("er: next");
    assert_eq!((end.text.as_str(), end.stop), ("", Some(1)));
}

#[test]
fn without_stop_strings_nothing_is_held() {
    let mut matcher = StopMatcher::new::<&str>(&[]);
    assert_eq!(matcher.push("abc").text, "abc");
    let mut empty = StopMatcher::new(&[""]);
    assert_eq!(empty.push("abc").text, "abc");
    assert_eq!(empty.finish(), "");
}
