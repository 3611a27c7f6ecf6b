//! Structured output: a grammar from what a client asks for (a JSON schema, a regular expression, a list of choices, a
//! grammar in Lark or GBNF syntax), and its state as a [`kvist_base::Constraint`] over the model's own tokens.
//!
//! The parser is llguidance's. What is added here: limits that a hostile source cannot get past, references that it
//! does not resolve, and the places where it would let through what the schema forbids. Compiling takes time (see
//! [`GrammarFactory::compile`]): never on a thread that others wait for.

mod calls;
mod costs;
mod expressions;
mod factory;
mod formats;
mod gbnf;
mod gbnf_parser;
mod growth;
mod lark;
mod reference;
mod schema;
mod state;
mod walk;

pub use calls::{CallForm, Calls, Free, Reasoning};
pub use factory::{GrammarFactory, GrammarLimits};
pub use state::Grammar;

use serde_json::Value;

/// What the generated text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSource {
    /// Any JSON object.
    JsonObject,
    /// JSON that validates against a schema. Properties come in the order in which the schema lists them.
    JsonSchema {
        schema: Value,
        /// A keyword that cannot be enforced is an error; otherwise it is ignored.
        strict: bool,
    },
    /// Text that matches as a whole (syntax: Rust's `regex`, without look-around and back-references).
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// A grammar: GBNF if it defines a rule with `::=`, otherwise llguidance's Lark dialect.
    Grammar(String),
    /// A reply that calls tools.
    Calls(Calls),
}
