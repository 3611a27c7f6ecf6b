//! What somebody who mistyped a name may have meant.

/// The nearest of some names if it is at most this far away; capital letters do not count.
pub fn of<'a>(asked: &str, names: impl IntoIterator<Item = &'a str>, most: usize) -> Option<&'a str> {
    let asked = asked.to_lowercase();
    let far = |name: &str| distance(&name.to_lowercase(), &asked);
    let (far, name) = names.into_iter().map(|name| (far(name), name)).min_by_key(|(far, _)| *far)?;
    (far <= most).then_some(name)
}

/// Levenshtein distance.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_found_if_it_is_near() {
        let names = ["kv-ram", "kv-type", "threads"];
        assert_eq!(of("kv-rm", names, 2), Some("kv-ram"));
        assert_eq!(of("KV-RAM", names, 0), Some("kv-ram"));
        assert_eq!(of("something", names, 2), None);
        assert_eq!(of("x", [], 2), None);
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("é", "e")), (3, 3, 1));
    }
}
