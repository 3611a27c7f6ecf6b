//! The server over real sockets, driving the real engine and the embedded model's tokenizer over a fake executor.

mod answers;
mod client;
mod explain;
mod extras;
mod fake;
mod harness;
mod hostile;
mod identity;
mod lifecycle;
mod load;
mod logprobs;
mod sampling;
mod stops;
mod streams;
mod structured;
mod tokens;
mod tools;
