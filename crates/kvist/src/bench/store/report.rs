//! What the turns say, for people and as JSON.

use serde_json::{Value, json};

use super::scene::{Return, Turn};
use super::{Case, Measured, NEW};
use crate::bench::median;
use crate::size::{human, thousands};

pub fn name(how: Return) -> &'static str {
    match how {
        Return::Recompute => "recomputed",
        Return::Ram => "RAM",
        Return::Disk => "disk",
        Return::DiskAtOnce => "disk, all of it before the step",
        Return::Reopened => "disk, store opened anew",
        Return::Killed => "disk, after kill -9",
    }
}

impl Case {
    fn median(&self, of: impl Fn(&Turn) -> f64) -> f64 {
        median(&self.turns.iter().map(of).collect::<Vec<_>>())
    }

    fn first(&self) -> f64 {
        self.median(|t| t.first)
    }

    /// Seconds that the request waited for the disk alone, before and in its steps.
    fn blocked(&self) -> f64 {
        self.median(|t| t.held + t.waited)
    }

    fn is_from_disk(&self) -> bool {
        !matches!(self.how, Return::Recompute | Return::Ram)
    }
}

impl Measured {
    fn find(&self, how: Return, history: usize, new: usize) -> Option<&Case> {
        self.cases.iter().find(|c| (c.how, c.history, c.new) == (how, history, new) && !c.turns.is_empty())
    }

    /// max(bytes over the best bandwidth, the same turn on a RAM hit), where a case loads.
    fn floor(&self, case: &Case) -> Option<f64> {
        let ram = self.find(Return::Ram, case.history, case.new)?.first();
        case.is_from_disk().then(|| ram.max(case.median(|t| t.read as f64) / self.best))
    }

    /// Seconds that the history takes to load when nothing else runs.
    fn unoverlapped(&self, history: usize) -> Option<f64> {
        let at_once = |c: &&Case| c.how == Return::DiskAtOnce && c.history == history;
        let times: Vec<f64> = self.cases.iter().filter(at_once).flat_map(|c| &c.turns).map(|t| t.load).collect();
        (!times.is_empty()).then(|| median(&times))
    }

    /// Blocked share of the unoverlapped time.
    fn share(&self, case: &Case) -> Option<f64> {
        let load = self.unoverlapped(case.history)?;
        case.is_from_disk().then(|| case.blocked() / load)
    }

    /// Whether the new tokens take as long to compute as the history to load.
    fn suffices(&self, case: &Case) -> Option<bool> {
        let ram = self.find(Return::Ram, case.history, case.new)?.first();
        Some(ram >= self.unoverlapped(case.history)?)
    }
}

fn millis(seconds: f64) -> String {
    format!("{:.1} ms", 1e3 * seconds)
}

fn rate(bytes: f64) -> String {
    format!("{:.2} GB/s", bytes / 1e9)
}

fn or_nothing(value: Option<String>) -> String {
    value.unwrap_or_default()
}

pub fn table(m: &Measured) -> String {
    let [one, all] = [0, 1].map(|k| rate(median(&m.rates[k])));
    let mut out = format!(
        "Sequential reads past the page cache: {one} with 1 thread, {all} with {} (medians of {}); best {}.\n",
        m.io_threads,
        m.rates[0].len(),
        rate(m.best)
    );
    if let Some((throttle, beliefs)) = &m.throttle {
        return out + &throttled(m, *throttle, beliefs);
    }
    out += "Before each turn from disk the system was told to forget what it cached of the store's files \
            (posix_fadvise); what\nit fetched from the device meanwhile stands beside (/proc/self/io).\n";
    for &(history, bytes) in &m.bytes {
        out += &format!("\n{} tokens of history ({} of KV)\n", thousands(history as u64), human(bytes));
        out += &returns(m, history);
        out += &curve(m, history);
    }
    out
}

fn returns(m: &Measured, history: usize) -> String {
    let head = ["first token", "read", "device", "of floor", "blocked", "decrypt"];
    let mut out = format!("{:<33}", format!("with {NEW} new tokens"));
    head.iter().for_each(|h| out += &format!("{h:>12}"));
    out += "\n";
    let order = [Return::Recompute, Return::Ram, Return::Disk, Return::DiskAtOnce, Return::Reopened, Return::Killed];
    for case in order.iter().filter_map(|&how| m.find(how, history, NEW)) {
        let disk = |text: String| if case.is_from_disk() { text } else { String::new() };
        let device: Option<Vec<f64>> = case.turns.iter().map(|t| t.device.map(|n| n as f64)).collect();
        let columns = [
            millis(case.first()),
            disk(human(case.median(|t| t.read as f64) as u64)),
            disk(or_nothing(device.map(|d| human(median(&d) as u64)))),
            or_nothing(m.floor(case).map(|floor| format!("{:.2}x", case.first() / floor))),
            disk(millis(case.blocked())),
            disk(millis(case.median(|t| t.opening))),
        ];
        out += &format!("{:<33}", name(case.how));
        columns.iter().for_each(|c| out += &format!("{c:>12}"));
        out += "\n";
    }
    out
}

fn curve(m: &Measured, history: usize) -> String {
    let load = or_nothing(m.unoverlapped(history).map(millis));
    let mut out = format!("\nLoading alone takes {load}. First token by new tokens, blocked as a share of that:\n");
    out += &format!("{:<12}", "new");
    ["RAM", "disk", "of floor", "blocked", "all before", "of floor", "blocked"]
        .iter()
        .for_each(|h| out += &format!("{h:>12}"));
    out += "\n";
    let rams = m.cases.iter().filter(|c| c.how == Return::Ram && c.history == history);
    for ram in rams.filter(|c| !c.turns.is_empty()) {
        let mut columns = vec![millis(ram.first())];
        for how in [Return::Disk, Return::DiskAtOnce] {
            let Some(case) = m.find(how, history, ram.new) else { continue };
            columns.push(millis(case.first()));
            columns.push(or_nothing(m.floor(case).map(|floor| format!("{:.2}x", case.first() / floor))));
            columns.push(or_nothing(m.share(case).map(|share| format!("{:.0} %", 100.0 * share))));
        }
        // Where the new tokens take less time than the load, it cannot be hidden.
        let mark = if m.suffices(ram) == Some(false) { " (few)" } else { "" };
        out += &format!("{:<12}", format!("{}{mark}", ram.new));
        columns.iter().for_each(|c| out += &format!("{c:>12}"));
        out += "\n";
    }
    out
}

/// What was done, turn by turn, with a disk that is held back.
fn throttled(m: &Measured, throttle: f64, beliefs: &[f64]) -> String {
    let mut out = format!("The store's disk is held back to {}/s.\n", human(throttle as u64));
    let mut beliefs = beliefs.iter();
    for &(history, bytes) in &m.bytes {
        let Some(computed) = m.find(Return::Recompute, history, NEW) else { continue };
        let seconds = computed.first();
        let even = bytes as f64 / seconds;
        out += &format!(
            "\n{} tokens of history ({} of KV): computed in {seconds:.2} s, so below {}/s it is computed again.\n",
            thousands(history as u64),
            human(bytes),
            human(even as u64)
        );
        for (i, turn) in m.find(Return::Disk, history, NEW).map_or(&[][..], |c| &c.turns).iter().enumerate() {
            let what = if turn.cached >= history { "loaded" } else { "computed" };
            out += &format!(
                "return {}: {what}, {} of {} tokens from disk, first token after {:.2} s\n",
                i + 1,
                thousands(turn.cached as u64),
                thousands(history as u64),
                turn.first
            );
        }
    }
    if let Some(belief) = beliefs.next_back() {
        out += &format!("\nThe store believes in {}/s now.\n", human(*belief as u64));
    }
    out
}

pub fn json(m: &Measured) -> Value {
    let case = |c: &Case| {
        let turn = |t: &Turn| {
            json!({
                "first_token_seconds": t.first,
                "cached_tokens": t.cached,
                "held_seconds": t.held,
                "waited_seconds": t.waited,
                "copied_seconds": t.copied,
                "load_seconds": t.load,
                "read_bytes": t.read,
                "device_bytes": t.device,
                "reading_seconds": t.reading,
                "decrypting_seconds": t.opening,
            })
        };
        json!({
            "case": name(c.how),
            "history": c.history,
            "new": c.new,
            "first_token_seconds": c.first(),
            "floor_seconds": m.floor(c),
            "of_floor": m.floor(c).map(|floor| c.first() / floor),
            "blocked_seconds": c.blocked(),
            "blocked_share": m.share(c),
            "new_tokens_suffice": m.suffices(c),
            "turns": c.turns.iter().map(turn).collect::<Vec<_>>(),
        })
    };
    json!({
        "sequential_bytes_per_second": {"one": m.rates[0], "all": m.rates[1], "threads": m.io_threads, "best": m.best},
        "histories": m.bytes.iter().map(|&(history, bytes)| json!({
            "tokens": history, "bytes": bytes, "unoverlapped_seconds": m.unoverlapped(history),
        })).collect::<Vec<_>>(),
        "throttle": m.throttle.as_ref().map(|(rate, beliefs)| json!({"bytes_per_second": rate, "believed": beliefs})),
        "cases": m.cases.iter().filter(|c| !c.turns.is_empty()).map(case).collect::<Vec<_>>(),
    })
}
