//! The start-up page.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use crate::memory::{Budget, Limit};
use crate::size::{count, human, thousands};

/// What the page tells.
pub struct Page<'a> {
    pub model: &'a str,
    pub embedded: bool,
    pub parameters: u64,
    /// How the weights are kept.
    pub kind: String,
    /// The context that the model was made for.
    pub model_context: usize,
    pub budget: &'a Budget,
    pub isa: String,
    pub threads: usize,
    pub address: SocketAddr,
    /// Whether requests need a key.
    pub keys: bool,
    /// Whether the model takes chat messages.
    pub chat: bool,
    /// What is kept on disk and was found there, or that nothing is.
    pub disk: String,
    /// Tokens that are shared by all tenants, if prompts are published.
    pub public: Option<usize>,
    pub ready: Duration,
}

/// URL under which this machine reaches the server.
pub fn url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    format!("http://{address}")
}

impl Page<'_> {
    pub fn render(&self) -> String {
        let (budget, url) = (self.budget, url(self.address));
        let mut out = format!("kvist {}\n\n", env!("CARGO_PKG_VERSION"));
        let mut line = |name: &str, text: String| {
            let _ = writeln!(out, "  {name:<9} {text}");
        };
        let millions = self.parameters as f64 / 1e6;
        line(
            "model",
            format!("{}, {millions:.1} M parameters in {}, {}", self.model, self.kind, human(budget.weights)),
        );
        if self.embedded {
            line("", "compiled into the binary, to try things out; for a real model: kvist serve MODEL".into());
        }
        line("machine", format!("{}, {}", self.isa, count(self.threads, "thread")));
        line(
            "KV cache",
            format!(
                "{} in {}: {} tokens at {} a token, {} at full context",
                human(budget.kv),
                budget.pool.codec,
                thousands(budget.capacity() as u64),
                human(budget.token_bytes),
                count(budget.conversations(), "conversation"),
            ),
        );
        line("disk", self.disk.clone());
        let context = thousands(budget.context as u64);
        line(
            "context",
            match budget.limit {
                Limit::Model => format!("{context} tokens, the model's"),
                Limit::Asked => format!("{context} tokens, by --ctx"),
                Limit::Pool => {
                    let model = thousands(self.model_context as u64);
                    format!("{context} tokens of the model's {model}: --kv-ram holds no more")
                }
            },
        );
        let reach = if self.address.ip().is_loopback() { "this machine" } else { "everybody who reaches it" };
        line("access", if self.keys { "with a key only".into() } else { format!("open to {reach}, no key needed") });
        if let Some(tokens) = self.public {
            line("public", format!("{} tokens of prompts are shared by all tenants", thousands(tokens as u64)));
        }
        line("ready", format!("in {:.2} s at {url}", self.ready.as_secs_f64()));
        let key = if self.keys { " -H \"Authorization: Bearer $KEY\"" } else { "" };
        let (path, body) = match self.chat {
            true => ("chat/completions", r#"{"messages": [{"role": "user", "content": "Hello!"}]}"#),
            false => ("completions", r#"{"prompt": "Once upon a time", "max_tokens": 32}"#),
        };
        let _ =
            writeln!(out, "\n  curl {url}/v1/{path} -H 'Content-Type: application/json'{key} \\\n    -d '{body}'\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(address: &str, keys: bool, limit: Limit) -> String {
        let budget = Budget {
            weights: 3 << 30,
            kv: 1 << 30,
            buffers: 0,
            replies: 0,
            store: 0,
            connections: 0,
            pool: kvist_model::PoolSize::kv16(512),
            token_bytes: 32 << 10,
            context: 8192,
            limit,
        };
        Page {
            model: "Some-Model",
            embedded: !keys,
            parameters: 1_235_814_400,
            kind: "bf16".into(),
            model_context: 131_072,
            budget: &budget,
            isa: "avx2".into(),
            threads: 1,
            address: address.parse().unwrap(),
            keys,
            chat: !keys,
            disk: "10 GiB".into(),
            public: Some(1024),
            ready: Duration::from_millis(340),
        }
        .render()
    }

    #[test]
    fn the_page_tells_what_matters() {
        let text = page("127.0.0.1:8080", false, Limit::Pool);
        for part in [
            "Some-Model, 1235.8 M parameters in bf16, 3.0 GiB",
            "kvist serve MODEL",
            "avx2, 1 thread\n",
            "1.0 GiB in kv16: 32,768 tokens at 32.0 KiB a token, 3 conversations at full context",
            "8,192 tokens of the model's 131,072: --kv-ram holds no more",
            "open to this machine, no key needed",
            "1,024 tokens of prompts",
            "in 0.34 s at http://127.0.0.1:8080\n",
            "curl http://127.0.0.1:8080/v1/chat/completions",
            r#"-d '{"messages": [{"role": "user", "content": "Hello!"}]}'"#,
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn a_public_address_is_shown_as_one() {
        let text = page("0.0.0.0:80", true, Limit::Model);
        assert!(text.contains("curl http://127.0.0.1:80/v1/completions") && text.contains("\"prompt\""), "{text}");
        assert!(text.contains("with a key only") && text.contains("Bearer $KEY"), "{text}");
        assert!(text.contains("at http://127.0.0.1:80\n") && !text.contains("compiled into"), "{text}");
        assert!(page("0.0.0.0:80", false, Limit::Asked).contains("everybody who reaches it"));
        assert_eq!(url("[::]:9".parse().unwrap()), "http://[::1]:9");
        assert_eq!(url("192.168.0.7:9".parse().unwrap()), "http://192.168.0.7:9");
    }
}
