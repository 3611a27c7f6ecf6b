//! The weights of the decoder block, and how they are read.

use crate::error::Result;
pub(crate) use crate::names::parameters;
use crate::names::{LayerNames, QK_NORMS, Stack, in_layer};
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
    pub attention: Part<M>,
    /// Weights of the norms on q and k, as long as a head or as a row of heads.
    pub qk_norm: Option<[Vec<f32>; 2]>,
    pub mlp: Part<M>,
}

/// Attention or MLP: what it does between reading the residual stream and adding to it.
pub(crate) struct Part<M> {
    pub norm: Option<Vec<f32>>,
    /// Queries, keys and values in one matrix; or gate and up.
    pub input: Linear<M>,
    pub output: Linear<M>,
    /// On the output.
    pub post_norm: Option<Vec<f32>>,
}

pub(crate) struct Linear<M> {
    pub matrix: M,
    pub bias: Option<Vec<f32>>,
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
        let names = LayerNames::of(&c);
        let embedding = self.matrix(&["model.embed_tokens.weight".into()], &[c.vocab], c.hidden)?;
        let mut layers = Vec::with_capacity(c.layers);
        for l in 0..c.layers {
            let [before, after, mlp_before, mlp_after] =
                names.norms.map(|name| name.map(|name| in_layer(l, name, "weight")));
            layers.push(Layer {
                attention: Part {
                    norm: self.norm(before, c.hidden)?,
                    input: self.linear(l, &names.qkv)?,
                    output: self.linear(l, &names.o)?,
                    post_norm: self.norm(after, c.hidden)?,
                },
                qk_norm: match names.qk_norm {
                    Some([q, k]) => {
                        let [q_norm, k_norm] = QK_NORMS.map(|name| in_layer(l, name, "weight"));
                        self.norm(Some(q_norm), q)?.zip(self.norm(Some(k_norm), k)?).map(Into::into)
                    }
                    None => None,
                },
                mlp: Part {
                    norm: self.norm(mlp_before, c.hidden)?,
                    input: self.linear(l, &names.gate_up)?,
                    output: self.linear(l, &names.down)?,
                    post_norm: self.norm(mlp_after, c.hidden)?,
                },
            });
        }
        let final_norm = self.norm(Some("model.norm.weight".into()), c.hidden)?.unwrap_or_default();
        let output = if c.tied { None } else { Some(self.matrix(&["lm_head.weight".into()], &[c.vocab], c.hidden)?) };
        (self.progress)(self.total, self.total);
        Ok(Weights { embedding, layers, final_norm, output })
    }

    fn linear<M>(&mut self, l: usize, stack: &Stack) -> Result<Linear<M>>
    where
        P: Fn(&[E], usize) -> Result<M>,
    {
        let named = |kind| stack.parts.iter().map(move |(part, _)| in_layer(l, part, kind)).collect::<Vec<_>>();
        let outputs: Vec<usize> = stack.parts.iter().map(|(_, outputs)| *outputs).collect();
        let matrix = self.matrix(&named("weight"), &outputs, stack.inputs)?;
        let mut bias = stack.bias.then(Vec::new);
        if let Some(bias) = &mut bias {
            for (name, n) in named("bias").iter().zip(outputs) {
                bias.extend(self.vector(name, n)?);
            }
        }
        Ok(Linear { matrix, bias })
    }

    /// The matrices one below the other.
    fn matrix<M>(&mut self, names: &[String], outputs: &[usize], inputs: usize) -> Result<M>
    where
        P: Fn(&[E], usize) -> Result<M>,
    {
        self.buffer.clear();
        for (name, &outputs) in names.iter().zip(outputs) {
            self.checkpoint.append(name, &[outputs, inputs], self.threads, &mut self.buffer)?;
        }
        let matrix = (self.pack)(&self.buffer, inputs)?;
        self.done += self.buffer.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(matrix)
    }

    /// The weight that a norm multiplies by.
    fn norm(&mut self, name: Option<String>, n: usize) -> Result<Option<Vec<f32>>> {
        let Some(name) = name else { return Ok(None) };
        let mut weight = self.vector(&name, n)?;
        if self.checkpoint.config.block.norm_less_one {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(Some(weight))
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let mut out = Vec::new();
        self.checkpoint.append::<f32>(name, &[n], 1, &mut out)?;
        self.done += n as u64;
        Ok(out)
    }
}
