//! A way to the parsers of requests past sockets and threads, for fuzzing.

use std::sync::Arc;

use crate::api::params::Bounds;
use crate::api::{ApiError, chat, completions, tokens};
use crate::app::Caller;
use crate::auth::Tenant;
use crate::log::RequestLine;
use crate::server::Server;

impl Server {
    /// What the handler of `path` makes of a body before anything is computed, grammars compiled as well. An error is the
    /// message that the client would get.
    #[doc(hidden)]
    pub fn parse(&self, path: &str, body: &[u8]) -> Result<(), String> {
        let told = |e: ApiError| e.message;
        let app = self.app();
        let serving = app.serving().map_err(told)?;
        let caller = Caller {
            tenant: Tenant::operator(),
            arrival: 0,
            line: RequestLine::new(Arc::new(|_| ()), true, String::new()),
            peer: Default::default(),
        };
        let bounds = Bounds { seed: 0, ..Bounds::of(app, &serving, None) };
        let job = match path {
            "/v1/chat/completions" => chat::job(&serving, &caller, &bounds, body),
            "/v1/completions" => completions::job(&serving, &caller, &bounds, body),
            "/tokenize" => return tokens::tokenize(&serving, &caller, &bounds, body).map(drop).map_err(told),
            "/detokenize" => return tokens::detokenize(&serving, &caller, &bounds, body).map(drop).map_err(told),
            "/apply-template" => {
                return tokens::apply_template(&serving, &caller, &bounds, body).map(drop).map_err(told);
            }
            _ => return Err(format!("no path {path}")),
        };
        match job.map_err(told)?.params.structured {
            Some(asked) => serving.grammars.compile(&asked.source).map(drop).map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }
}
