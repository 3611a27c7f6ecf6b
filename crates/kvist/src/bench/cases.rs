//! What `kvist bench engine` measures, and how llama.cpp is asked for the same.

use kvist_base::CHUNK;

/// Tokens that each sequence of a decode case generates in a turn.
pub const STEPS: usize = 32;
/// Tokens below a shared prompt that each sequence has of its own: one, so that they part.
pub const OWN: usize = 1;
/// Rows of a step that is not computed.
pub const SKIMMED_ROWS: usize = 4096;
/// Steps of those who decode alone before another prompt arrives: enough for the engine to know what they take.
pub const ALONE: usize = 32;
/// Tokens of the prompts of those who decode while another prompt arrives.
pub const STREAM_PROMPT: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub name: &'static str,
    pub kind: Kind,
    /// Only run with `--full`, or by its name.
    pub long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A prompt of so many tokens, alone.
    Prefill(usize),
    /// Sequences decode together after prompts of so many tokens.
    Decode { sequences: usize, prompt: usize, shared: bool },
    /// A conversation whose history is in memory goes on with new tokens, up to the first token of the reply.
    Turn { history: usize, new: usize },
    /// A prompt arrives while sequences decode: the time between two tokens of theirs.
    Arrival { streams: usize, prompt: usize },
}

const fn case(name: &'static str, kind: Kind, long: bool) -> Case {
    Case { name, kind, long }
}

const fn decode(sequences: usize, prompt: usize, shared: bool) -> Kind {
    Kind::Decode { sequences, prompt, shared }
}

pub const CASES: [Case; 11] = [
    case("prefill-512", Kind::Prefill(512), false),
    case("prefill-4096", Kind::Prefill(4096), true),
    case("decode-1", decode(1, 1, false), false),
    case("decode-1-at-4096", decode(1, 4096, false), true),
    case("decode-1-at-16384", decode(1, 16_384, false), true),
    case("decode-32-shared-1024", decode(32, 1024, true), false),
    case("decode-32-shared-4096", decode(32, 4096, true), true),
    case("decode-8-private-1024", decode(8, 1024, false), false),
    case("decode-32-private-1024", decode(32, 1024, false), false),
    case("turn-64-on-4096", Kind::Turn { history: 4096, new: 64 }, true),
    case("arrival-8192-beside-4", Kind::Arrival { streams: 4, prompt: 8192 }, true),
];

pub fn names() -> [&'static str; CASES.len()] {
    CASES.map(|case| case.name)
}

/// Tokens that a sequence generates at most: the first ones go on while the last prompts are skimmed.
pub fn most_tokens(sequences: usize, prompt: usize) -> usize {
    // The engine takes some steps to know what rows cost.
    STEPS + sequences * prompt / (SKIMMED_ROWS / 2) + 16
}

impl Kind {
    /// Tokens of the longest sequence.
    pub fn longest(self) -> usize {
        match self {
            Kind::Prefill(tokens) => tokens + 1,
            Kind::Decode { sequences, prompt, .. } => prompt + most_tokens(sequences, prompt),
            Kind::Turn { history, new } => history + new + 1,
            // Those who decode go on until the prompt is there, in as many steps as it has tokens at most.
            Kind::Arrival { prompt, .. } => STREAM_PROMPT + ALONE + prompt,
        }
    }

    /// Chunks of the pool that it takes, and as many open ones.
    pub fn chunks(self) -> [u32; 2] {
        let of = |tokens: usize| tokens.div_ceil(CHUNK) + 2;
        let (chunks, open) = match self {
            Kind::Decode { sequences, prompt, shared: true } => {
                (of(prompt) + sequences * of(most_tokens(sequences, prompt)), sequences)
            }
            Kind::Decode { sequences, .. } => (sequences * of(self.longest()), sequences),
            Kind::Prefill(_) | Kind::Turn { .. } => (of(self.longest()), 1),
            Kind::Arrival { streams, prompt } => (of(prompt) + streams * of(self.longest()), streams + 1),
        };
        [chunks as u32, open as u32]
    }

    /// Arguments of `llama-bench` for the same, besides model and threads.
    pub fn llama_bench(self) -> Option<[usize; 3]> {
        match self {
            Kind::Prefill(tokens) => Some([tokens, 0, 0]),
            Kind::Decode { sequences: 1, prompt, .. } => Some([0, STEPS, if prompt > 1 { prompt } else { 0 }]),
            Kind::Turn { history, new } => Some([new, 0, history]),
            _ => None,
        }
    }

    /// The same of `llama-batched-bench`. It computes the prompt once, and where nothing is shared copies its KV.
    pub fn llama_batched_bench(self) -> Option<Vec<String>> {
        let Kind::Decode { sequences: sequences @ 2.., prompt, shared } = self else { return None };
        let cells =
            if shared { prompt + sequences * STEPS } else { sequences * (prompt + STEPS).next_multiple_of(256) };
        let (cells, prompt) = (cells.next_multiple_of(256).to_string(), prompt.to_string());
        let (steps, sequences) = (STEPS.to_string(), sequences.to_string());
        let unified = if shared { "-kvu" } else { "-no-kvu" };
        let args = ["-pps", unified, "-c", &cells, "-npp", &prompt, "-ntg", &steps, "-npl", &sequences];
        Some(args.map(str::to_owned).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_measured_and_each_once() {
        for (i, case) in CASES.iter().enumerate() {
            assert!(CASES[..i].iter().all(|other| other.name != case.name && other.kind != case.kind));
            let numbers: Vec<usize> = case.name.split('-').filter_map(|part| part.parse().ok()).collect();
            let said = match case.kind {
                Kind::Prefill(tokens) => vec![tokens],
                Kind::Decode { sequences, prompt: 1, .. } => vec![sequences],
                Kind::Decode { sequences, prompt, .. } => vec![sequences, prompt],
                Kind::Turn { history, new } => vec![new, history],
                Kind::Arrival { streams, prompt } => vec![prompt, streams],
            };
            assert_eq!(numbers, said);
        }
    }

    #[test]
    fn peers_are_asked_for_the_same() {
        let of = |name: &str| CASES.iter().find(|case| case.name == name).unwrap().kind;
        assert_eq!(of("prefill-512").llama_bench(), Some([512, 0, 0]));
        assert_eq!(of("decode-1").llama_bench(), Some([0, STEPS, 0]));
        assert_eq!(of("decode-1-at-4096").llama_bench(), Some([0, STEPS, 4096]));
        assert_eq!(of("turn-64-on-4096").llama_bench(), Some([64, 0, 4096]));
        let batched = |name: &str| of(name).llama_batched_bench().map(|args| args.join(" "));
        let shared = "-pps -kvu -c 2048 -npp 1024 -ntg 32 -npl 32";
        assert_eq!(batched("decode-32-shared-1024").as_deref(), Some(shared));
        let private = "-pps -no-kvu -c 10240 -npp 1024 -ntg 32 -npl 8";
        assert_eq!(batched("decode-8-private-1024").as_deref(), Some(private));
        for case in CASES.iter().filter(|case| !matches!(case.kind, Kind::Arrival { .. })) {
            assert!(case.kind.llama_bench().is_some() != case.kind.llama_batched_bench().is_some(), "{}", case.name);
        }
    }
}
