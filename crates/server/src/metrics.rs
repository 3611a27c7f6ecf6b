//! `/metrics`: Prometheus text format 0.0.4. vLLM's names where they exist, so that its dashboards and the load
//! generators that scrape it work unchanged; what only a KV-cache-first server has is `kvist_*`.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use kvist_base::{CHUNK, ExecutorInfo, Micros};
use kvist_engine::{EngineStats, Usage};
use kvist_store::{StoreStats, StoreTier};
use kvist_text::ReplyTable;

const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const ITL: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];
const ITERATION: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: the last counts what is above all of them.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Histogram { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|&b| b < value);
        self.counts[at] += 1;
        self.sum += value;
    }

    pub fn observe_micros(&mut self, value: Micros) {
        self.observe(value as f64 / 1e6);
    }
}

/// How a choice ended, in vLLM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ended {
    Stop,
    Length,
    Abort,
    Error,
}

/// What the engine thread records besides the engine's own counters.
#[derive(Clone, Debug)]
pub struct Book {
    pub ttft: Histogram,
    pub itl: Histogram,
    pub e2e: Histogram,
    pub queue: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub prompt: Histogram,
    pub generation: Histogram,
    pub computed: Histogram,
    pub choices: Histogram,
    pub iteration: Histogram,
    /// By [`Ended`].
    pub ended: [u64; 4],
    /// Requests that were not taken, by reason.
    pub refused: BTreeMap<&'static str, u64>,
    pub slow_readers: u64,
    pub step_panics: u64,
}

impl Default for Book {
    fn default() -> Self {
        Book {
            ttft: Histogram::new(TTFT),
            itl: Histogram::new(ITL),
            e2e: Histogram::new(LATENCY),
            queue: Histogram::new(LATENCY),
            prefill: Histogram::new(LATENCY),
            decode: Histogram::new(LATENCY),
            prompt: Histogram::new(TOKENS),
            generation: Histogram::new(TOKENS),
            computed: Histogram::new(TOKENS),
            choices: Histogram::new(CHOICES),
            iteration: Histogram::new(ITERATION),
            ended: [0; 4],
            refused: BTreeMap::new(),
            slow_readers: 0,
            step_panics: 0,
        }
    }
}

impl Book {
    /// A request that finished. `latency` is from its arrival.
    pub fn done(&mut self, usage: &Usage, latency: Micros, choices: u32) {
        self.e2e.observe_micros(latency);
        self.queue.observe_micros(usage.timings.queued);
        self.prefill.observe_micros(usage.timings.prefill);
        self.decode.observe_micros(usage.timings.decode);
        self.prompt.observe(f64::from(usage.prompt));
        self.generation.observe(f64::from(usage.generated));
        self.computed.observe(f64::from(usage.prompt - usage.cached));
        self.choices.observe(f64::from(choices));
    }
}

/// Everything that a scrape shows.
pub struct Scrape<'a> {
    pub model: &'a str,
    pub info: &'a ExecutorInfo,
    pub stats: &'a EngineStats,
    pub book: &'a Book,
    pub replies: &'a ReplyTable,
    pub tier: Option<&'a StoreTier>,
    pub spliced_tokens: u64,
    pub ignored_fields: u64,
    pub connections: usize,
}

impl Scrape<'_> {
    pub fn render(&self) -> String {
        let mut out = Exposition { text: String::new(), model: escape(self.model) };
        self.vllm(&mut out);
        // It takes the store's lock for a while.
        let store = self.tier.map(|tier| tier.store().stats());
        self.kvist(&mut out, store.as_ref().map_or(0, |store| store.returned));
        if let (Some(tier), Some(store)) = (self.tier, &store) {
            self.disk(&mut out, tier, store);
        }
        out.text
    }

    fn vllm(&self, out: &mut Exposition) {
        let (s, b) = (self.stats, self.book);
        out.gauge("vllm:num_requests_running", "Sequences in the running batch.", s.running);
        out.gauge("vllm:num_requests_waiting", "Sequences waiting to be run.", s.waiting);
        let used = f64::from(s.cache.pinned) / f64::from(s.cache.slabs.max(1));
        out.gauge("vllm:kv_cache_usage_perc", "Share of the KV pool that running sequences use, 0 to 1.", used);
        out.counter("vllm:prompt_tokens", "Prompt tokens of finished requests.", s.prompt_tokens);
        out.counter("vllm:generation_tokens", "Tokens generated.", s.generated_tokens);
        out.counter("vllm:prompt_tokens_cached", "Prompt tokens that were not computed.", s.cached_tokens);
        out.counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix tree.", s.prompt_tokens);
        out.counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix tree.", s.cached_tokens);
        out.counter("vllm:num_preemptions", "Sequences sent back to the queue for room.", s.preemptions);
        let words = ["stop", "length", "abort", "error"];
        let ended: Vec<_> = words.iter().zip(b.ended).map(|(w, n)| (format!("finished_reason=\"{w}\""), n)).collect();
        out.counters("vllm:request_success", "Choices that ended, by reason.", &ended);
        let refused: Vec<_> = b.refused.iter().map(|(r, n)| (format!("reason=\"{r}\""), *n)).collect();
        out.counters("vllm:admission_rejections", "Requests that were not taken, by reason.", &refused);
        out.histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", &b.ttft);
        out.histogram("vllm:inter_token_latency_seconds", "Between two tokens of a choice.", &b.itl);
        out.histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", &b.e2e);
        out.histogram("vllm:request_queue_time_seconds", "From submission to admission.", &b.queue);
        out.histogram("vllm:request_prefill_time_seconds", "From admission to the first token.", &b.prefill);
        out.histogram("vllm:request_decode_time_seconds", "From the first token to the end.", &b.decode);
        out.histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", &b.prompt);
        out.histogram("vllm:request_generation_tokens", "Tokens generated for a request.", &b.generation);
        out.histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens computed for a request.", &b.computed);
        out.histogram("vllm:request_params_n", "Choices of a request.", &b.choices);
        out.histogram("vllm:iteration_tokens_total", "Rows of a step.", &b.iteration);
        let labels = format!(
            "block_size=\"{CHUNK}\",cache_dtype=\"{}\",enable_prefix_caching=\"True\",num_gpu_blocks=\"{}\"",
            self.info.layout.codec, self.info.chunks
        );
        out.gauges(
            "vllm:cache_config_info",
            "The KV pool.",
            &[(labels.to_ascii_lowercase().replace("\"true\"", "\"True\""), 1)],
        );
    }

    /// `returned`: chunks that were computed again after they had to leave the disk.
    fn kvist(&self, out: &mut Exposition, returned: u64) {
        let (s, b, c) = (self.stats, self.book, &self.stats.cache);
        let bytes = |chunks: u32| u64::from(chunks) * self.info.layout.bytes as u64;
        let state = |name: &str| format!("tier=\"ram\",state=\"{name}\"");
        let mut held = vec![(state("active"), bytes(c.pinned)), (state("idle"), bytes(c.evictable))];
        if let Some(open) = &self.info.open {
            held.push((state("open"), u64::from(c.open) * open.layout.bytes as u64));
        }
        out.gauges("kvist_kv_bytes", "Bytes of KV held.", &held);
        out.gauge("kvist_kv_pool_bytes", "Bytes of the KV pool.", self.info.kv_bytes());
        out.gauge("kvist_kv_token_bytes", "Bytes of KV that a token takes.", self.info.layout.token_bytes());
        out.counter("kvist_kv_reopened", "Encoded chunks of which rows were computed again.", c.reopened);
        out.gauge("kvist_kv_tokens", "Tokens in the prefix tree.", c.tokens);
        out.gauge("kvist_kv_nodes", "Nodes of the prefix tree.", c.nodes);
        let room = labelled("reason", [("room", c.evictions), ("not_valid", c.unlinked)]);
        out.counters("kvist_kv_evictions", "Nodes that left the tree.", &room);
        let again = labelled("tier", [("ram", s.evicted_then_needed), ("disk", returned * CHUNK as u64)]);
        out.counters("kvist_kv_evicted_then_needed_tokens", "Tokens that came back after they had to go.", &again);
        out.counter("kvist_kv_forks", "Nodes made by copying the matched part of another.", c.forks);
        let sources = labelled("source", [("ram", s.cached_tokens - s.loaded_tokens), ("disk", s.loaded_tokens)]);
        out.counters(
            "kvist_kv_saved_prefill_tokens",
            "Prompt tokens that were not computed, by where they were.",
            &sources,
        );
        let saved = s.saved_time as f64 / 1e6;
        out.gauge(
            "kvist_kv_saved_prefill_seconds",
            "What computing them would have taken, by the times of steps.",
            saved,
        );
        let carried = s.carried_tokens;
        out.counter("kvist_kv_carried_tokens", "Tokens whose KV was taken over past a cut, copied or loaded.", carried);
        out.counter("kvist_kv_lost_rows", "Rows thrown back because a chunk was lost.", s.lost_rows);
        let reads = labelled("counting", [("shared", s.kv_bytes_read), ("unshared", s.kv_bytes_unshared)]);
        out.counters(
            "kvist_kv_read_bytes",
            "KV bytes that attention read, and would have read without sharing.",
            &reads,
        );
        let factor = s.kv_bytes_unshared as f64 / s.kv_bytes_read.max(1) as f64;
        out.gauge("kvist_kv_sharing_factor", "KV reads without sharing over KV reads.", factor);
        out.counter("kvist_steps", "Steps run.", s.steps);
        let rows = labelled("kind", [("prompt", s.prompt_rows), ("decode", s.decode_rows)]);
        out.counters("kvist_rows", "Rows run.", &rows);
        out.gauge("kvist_requests", "Requests that the engine knows.", s.known);
        out.gauge("kvist_connections", "Open connections.", self.connections);
        let replies = self.replies.stats();
        out.gauge("kvist_replies", "Replies whose ids are remembered.", replies.entries);
        out.gauge("kvist_reply_bytes", "Bytes of remembered replies.", replies.bytes);
        out.counter("kvist_spliced_tokens", "Prompt tokens taken from remembered replies.", self.spliced_tokens);
        out.counter("kvist_ignored_fields", "Fields of requests that the server does not know.", self.ignored_fields);
        out.counter("kvist_slow_readers", "Requests dropped because their reader fell behind.", b.slow_readers);
        out.counter("kvist_step_panics", "Steps that panicked.", b.step_panics);
    }
}

impl Scrape<'_> {
    /// The tier below RAM.
    fn disk(&self, out: &mut Exposition, tier: &StoreTier, s: &StoreStats) {
        let (t, sums) = (self.stats.tier, tier.sums());
        out.gauge("kvist_disk_budget_bytes", "Bytes on disk that the store may take.", s.budget);
        let bytes = labelled("kind", [("live", s.live), ("dead", s.dead), ("foreign", s.foreign)]);
        out.gauges("kvist_disk_bytes", "Bytes on disk, by what they hold.", &bytes);
        out.gauge("kvist_disk_tokens", "Tokens whose KV can be loaded.", s.entries * CHUNK as u64);
        out.gauge("kvist_disk_queued_bytes", "Bytes of KV that wait to be written.", s.queued);
        out.gauge("kvist_disk_degraded", "Whether saving pauses because it failed.", u8::from(s.degraded.is_some()));
        out.counter("kvist_disk_written_bytes", "Bytes written.", s.written);
        out.counter("kvist_disk_copied_bytes", "Bytes of these that were copied to make room.", s.copied);
        out.counter("kvist_disk_read_bytes", "Bytes read.", s.read);
        out.counter("kvist_disk_saved_tokens", "Tokens whose KV was saved.", s.saved * CHUNK as u64);
        let unsaved = self.stats.cache.never_saved * CHUNK as u64;
        out.counter("kvist_disk_never_saved_tokens", "Tokens that left RAM before they were saved.", unsaved);
        let loads = labelled("for", [("urgent", t.loads - t.read_ahead), ("read_ahead", t.read_ahead)]);
        out.counters("kvist_disk_loads", "Loads begun, by who wanted them.", &loads);
        out.counter("kvist_disk_loads_dropped", "Loads that nobody wanted any more.", t.dropped);
        out.counter("kvist_disk_loads_stalled", "Loads given up because nothing came.", sums.stalls);
        out.counter("kvist_disk_loads_too_slow", "Loads given up because computing was faster.", t.too_slow);
        out.counter("kvist_disk_loading_tokens", "Tokens that loads were begun for.", t.tokens);
        let awaited = "Tokens of these that had not arrived when a running request needed them.";
        out.counter("kvist_disk_awaited_tokens", awaited, t.awaited);
        out.counter("kvist_disk_lost_chunks", "Chunks that did not come.", t.lost);
        out.counter("kvist_disk_corrupt_chunks", "Chunks that did not verify.", s.corrupt);
        let errors =
            labelled("operation", [("read", s.read_errors), ("write", s.write_errors), ("sync", s.sync_errors)]);
        out.counters("kvist_disk_errors", "Operations that failed.", &errors);
        let e = s.evicted;
        let gone = labelled(
            "reason",
            [("budget", e.budget), ("damaged", e.damaged), ("abandoned", e.abandoned), ("forgotten", e.forgotten)],
        );
        out.counters("kvist_disk_evictions", "Chunks that left the disk.", &gone);
        let refused = "Chunks that were not saved as they were worth less than what would have had to go.";
        out.counter("kvist_disk_not_admitted", refused, s.not_admitted);
        out.gauge("kvist_disk_read_rate", "Bytes per second that loads are believed to take.", sums.rate);
        out.gauge("kvist_disk_load_seconds", "Seconds from the beginning of loads to their end.", sums.seconds);
        out.gauge("kvist_disk_waited_seconds", "Seconds of these that steps waited for slices.", sums.waited);
        out.gauge("kvist_disk_copied_seconds", "Seconds that threads copied slices into the pool.", sums.copied);
        out.gauge("kvist_disk_read_seconds", "Seconds that threads read.", s.read_seconds);
        out.gauge("kvist_disk_open_seconds", "Seconds that threads verified and decrypted.", s.open_seconds);
        out.gauge("kvist_disk_write_seconds", "Seconds that writing took.", s.write_seconds);
        out.gauge("kvist_disk_sync_seconds", "Seconds that waiting for the medium took.", s.sync_seconds);
    }
}

/// Samples that differ by the value of one label.
fn labelled<const N: usize>(label: &str, samples: [(&str, u64); N]) -> [(String, u64); N] {
    samples.map(|(value, n)| (format!("{label}=\"{value}\""), n))
}

struct Exposition {
    text: String,
    model: String,
}

impl Exposition {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{name}{{engine=\"0\",model_name=\"{}\"{comma}{labels}}} {value}", self.model);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.gauges(name, help, &[(String::new(), value)]);
    }

    fn gauges(&mut self, name: &str, help: &str, samples: &[(String, impl Display)]) {
        self.head(name, help, "gauge");
        samples.iter().for_each(|(labels, value)| self.sample(name, labels, value));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, &[(String::new(), value)]);
    }

    /// Counters carry `_total` on the wire.
    fn counters(&mut self, name: &str, help: &str, samples: &[(String, u64)]) {
        let name = format!("{name}_total");
        self.head(&name, help, "counter");
        samples.iter().for_each(|(labels, value)| self.sample(&name, labels, value));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut total = 0;
        let bounds = histogram.bounds.iter().map(|b| b.to_string()).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            total += count;
            self.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), total);
        }
        self.sample(&format!("{name}_sum"), "", histogram.sum);
        self.sample(&format!("{name}_count"), "", total);
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let mut h = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 2.5, 9.0].iter().for_each(|&v| h.observe(v));
        let mut out = Exposition { text: String::new(), model: escape("a\"b") };
        out.histogram("x", "help", &h);
        let labels = "engine=\"0\",model_name=\"a\\\"b\"";
        assert_eq!(
            out.text,
            format!(
                "# HELP x help\n# TYPE x histogram\nx_bucket{{{labels},le=\"1\"}} 2\nx_bucket{{{labels},le=\"2\"}} \
                 3\nx_bucket{{{labels},le=\"+Inf\"}} 5\nx_sum{{{labels}}} 14.5\nx_count{{{labels}}} 5\n"
            )
        );
    }
}
