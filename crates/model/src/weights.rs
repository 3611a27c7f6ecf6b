//! The weights of the decoder block, and the names they have in Hugging Face checkpoints.

use crate::config::Config;
use crate::error::Result;
use crate::source::{Checkpoint, Element};

/// All weights, the matrices in the form `M` that an executor multiplies by. Matrices are `[outputs][inputs]`.
pub(crate) struct Weights<M> {
    /// `[vocab][hidden]`.
    pub embedding: M,
    pub layers: Vec<Layer<M>>,
    pub final_norm: Vec<f32>,
    /// `[vocab][hidden]`; `None`: the embedding.
    pub output: Option<M>,
}

pub(crate) struct Layer<M> {
    pub attention_norm: Vec<f32>,
    /// Queries, keys and values in one matrix.
    pub qkv: M,
    pub qkv_bias: Option<Vec<f32>>,
    /// Weights of the norms on each head of q and k.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub o: M,
    pub o_bias: Option<Vec<f32>>,
    pub mlp_norm: Vec<f32>,
    /// Gate and up in one matrix.
    pub gate_up: M,
    pub down: M,
}

impl<M> Weights<M> {
    pub fn output(&self) -> &M {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Reads everything. `pack(rows, inputs)` makes a matrix of row-major elements; `progress(done, total)` hears of
    /// every matrix, in weights.
    pub fn load<E: Element>(
        checkpoint: &Checkpoint,
        threads: usize,
        pack: impl Fn(&[E], usize) -> Result<M>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Weights<M>> {
        Loader {
            checkpoint,
            threads,
            pack,
            progress,
            buffer: Vec::new(),
            done: 0,
            total: checkpoint.config.parameters(),
        }
        .load()
    }
}

struct Loader<'a, E, P> {
    checkpoint: &'a Checkpoint,
    threads: usize,
    pack: P,
    progress: &'a dyn Fn(u64, u64),
    buffer: Vec<E>,
    done: u64,
    total: u64,
}

impl<E: Element, P> Loader<'_, E, P> {
    fn load<M>(mut self) -> Result<Weights<M>>
    where
        P: Fn(&[E], usize) -> Result<M>,
    {
        let c = self.checkpoint.config.clone();
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let embedding = self.matrix(&[("model.embed_tokens", c.vocab)], c.hidden)?;
        let mut layers = Vec::with_capacity(c.layers);
        for l in 0..c.layers {
            let name = |part: &str| format!("model.layers.{l}.{part}");
            let [q_proj, k_proj, v_proj] = ["q", "k", "v"].map(|p| name(&format!("self_attn.{p}_proj")));
            let qkv = [(q_proj.as_str(), q), (&k_proj, kv), (&v_proj, kv)];
            let (o_proj, down) = (name("self_attn.o_proj"), name("mlp.down_proj"));
            let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
            layers.push(Layer {
                attention_norm: self.vector(&name("input_layernorm.weight"), c.hidden)?,
                qkv: self.matrix(&qkv, c.hidden)?,
                qkv_bias: c.qkv_bias.then(|| self.biases(&qkv)).transpose()?,
                qk_norm: if c.qk_norm {
                    let q_norm = self.vector(&name("self_attn.q_norm.weight"), c.head_dim)?;
                    Some((q_norm, self.vector(&name("self_attn.k_norm.weight"), c.head_dim)?))
                } else {
                    None
                },
                o: self.matrix(&[(&o_proj, c.hidden)], q)?,
                o_bias: c.o_bias.then(|| self.biases(&[(&o_proj, c.hidden)])).transpose()?,
                mlp_norm: self.vector(&name("post_attention_layernorm.weight"), c.hidden)?,
                gate_up: self.matrix(&[(&gate, c.intermediate), (&up, c.intermediate)], c.hidden)?,
                down: self.matrix(&[(&down, c.hidden)], c.intermediate)?,
            });
        }
        let final_norm = self.vector("model.norm.weight", c.hidden)?;
        let output = if c.tied { None } else { Some(self.matrix(&[("lm_head", c.vocab)], c.hidden)?) };
        (self.progress)(self.total, self.total);
        Ok(Weights { embedding, layers, final_norm, output })
    }

    /// The projections (name, outputs) one below the other.
    fn matrix<M>(&mut self, parts: &[(&str, usize)], inputs: usize) -> Result<M>
    where
        P: Fn(&[E], usize) -> Result<M>,
    {
        self.buffer.clear();
        for (name, outputs) in parts {
            let shape = [*outputs, inputs];
            self.checkpoint.append(&format!("{name}.weight"), &shape, self.threads, &mut self.buffer)?;
        }
        let matrix = (self.pack)(&self.buffer, inputs)?;
        self.done += self.buffer.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(matrix)
    }

    fn biases(&mut self, parts: &[(&str, usize)]) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        for (name, outputs) in parts {
            out.extend(self.vector(&format!("{name}.bias"), *outputs)?);
        }
        Ok(out)
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        self.checkpoint.append::<f32>(name, &[n], 1, &mut out)?;
        self.done += n as u64;
        Ok(out)
    }
}

/// Name and shape of every tensor of a model.
pub(crate) fn parameters(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> {
    let Config { hidden, vocab, layers, intermediate, .. } = *config;
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let projections = [
        ("self_attn.q_proj", q, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q, config.o_bias),
        ("mlp.gate_proj", intermediate, hidden, false),
        ("mlp.up_proj", intermediate, hidden, false),
        ("mlp.down_proj", hidden, intermediate, false),
    ];
    let mut norms = vec![("input_layernorm", hidden), ("post_attention_layernorm", hidden)];
    if config.qk_norm {
        norms.extend([("self_attn.q_norm", config.head_dim), ("self_attn.k_norm", config.head_dim)]);
    }
    let mut once =
        vec![("model.embed_tokens.weight".into(), vec![vocab, hidden]), ("model.norm.weight".into(), vec![hidden])];
    if !config.tied {
        once.push(("lm_head.weight".into(), vec![vocab, hidden]));
    }
    let in_layers = (0..layers).flat_map(move |l| {
        let mut all = Vec::new();
        for (name, outputs, inputs, bias) in projections {
            all.push((format!("model.layers.{l}.{name}.weight"), vec![outputs, inputs]));
            if bias {
                all.push((format!("model.layers.{l}.{name}.bias"), vec![outputs]));
            }
        }
        all.extend(norms.iter().map(|&(name, n)| (format!("model.layers.{l}.{name}.weight"), vec![n])));
        all
    });
    once.into_iter().chain(in_layers)
}
