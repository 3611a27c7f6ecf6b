//! Sizes in bytes as people write them.

/// Units that are printed, largest first.
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Parses `4GiB`, `1.5 GiB`, `512M` (binary, as `512MiB`), `10GB` (decimal) or a plain number of bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size such as 4GiB, 512MiB or 1000000");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(|| format!("{text:?} is too large"));
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * unit as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(format!("{text:?} is too large")) }
}

/// The size without loss, in the largest unit that divides it.
pub fn exact(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or(bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// The size with about three digits, for reading.
pub fn human(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit);
    unit.map_or(format!("{bytes} B"), |(name, unit)| {
        let value = bytes as f64 / *unit as f64;
        if value < 100.0 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
    })
}

/// A number of things: `1 thread`, `4,096 threads`.
pub fn count(n: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(n as u64), if n == 1 { "" } else { "s" })
}

/// A count with its thousands apart: `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("512MiB", 512 << 20),
            ("512m", 512 << 20),
            ("1.5GiB", 3 << 29),
            (".5KiB", 512),
            ("10GB", 10_000_000_000),
            ("16b", 16),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "4GiBs", "1.2.3GiB", "four", "99999999999TiB", "1e30"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exact_sizes_come_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 3 << 29, 5037 << 20, 4 << 30, 7 << 40, 10_000_000_000] {
            assert_eq!(parse(&exact(bytes)), Ok(bytes), "{}", exact(bytes));
        }
        assert_eq!(exact(5037 << 20), "5037MiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(human(500), "500 B");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(12), "12");
    }
}
