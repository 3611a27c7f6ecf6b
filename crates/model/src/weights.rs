//! The weights of the decoder block, and how they are read.

use crate::error::Result;
use crate::names::{LayerNames, QK_NORMS, Stack, in_layer};
use crate::parameter::Parameter;
use crate::source::Checkpoint;

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

    /// Reads everything. `pack` makes one matrix of parameters that lie one below the other, of which the first half of the
    /// outputs may be gates of the second; `progress(done, total)` hears of every matrix, in bytes of the files.
    pub fn load(
        checkpoint: &Checkpoint,
        pack: impl Fn(&[Parameter], bool) -> Result<M>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Weights<M>> {
        Loader { checkpoint, pack, progress, done: 0, total: checkpoint.bytes() }.load()
    }

    /// The same weights with matrices of another form.
    pub fn map<N>(&self, form: impl Fn(&M) -> N) -> Weights<N> {
        let linear = |linear: &Linear<M>| Linear { matrix: form(&linear.matrix), bias: linear.bias.clone() };
        let part = |part: &Part<M>| Part {
            norm: part.norm.clone(),
            input: linear(&part.input),
            output: linear(&part.output),
            post_norm: part.post_norm.clone(),
        };
        let layer = |layer: &Layer<M>| Layer {
            attention: part(&layer.attention),
            qk_norm: layer.qk_norm.clone(),
            mlp: part(&layer.mlp),
        };
        Weights {
            embedding: form(&self.embedding),
            layers: self.layers.iter().map(layer).collect(),
            final_norm: self.final_norm.clone(),
            output: self.output.as_ref().map(&form),
        }
    }

    pub fn matrices(&self) -> impl Iterator<Item = &M> {
        let in_layers = self.layers.iter().flat_map(|l| [&l.attention, &l.mlp]);
        let matrices = in_layers.flat_map(|part| [&part.input.matrix, &part.output.matrix]);
        [&self.embedding].into_iter().chain(&self.output).chain(matrices)
    }
}

struct Loader<'a, P> {
    checkpoint: &'a Checkpoint,
    pack: P,
    progress: &'a dyn Fn(u64, u64),
    done: u64,
    total: u64,
}

impl<P> Loader<'_, P> {
    fn load<M>(mut self) -> Result<Weights<M>>
    where
        P: Fn(&[Parameter], bool) -> Result<M>,
    {
        let c = self.checkpoint.config().clone();
        let names = LayerNames::of(&c);
        let embedding = self.matrix(&["model.embed_tokens.weight".into()], &[c.vocab], c.hidden, false)?;
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
        let output =
            if c.tied { None } else { Some(self.matrix(&["lm_head.weight".into()], &[c.vocab], c.hidden, false)?) };
        (self.progress)(self.total, self.total);
        Ok(Weights { embedding, layers, final_norm, output })
    }

    fn linear<M>(&mut self, l: usize, stack: &Stack) -> Result<Linear<M>>
    where
        P: Fn(&[Parameter], bool) -> Result<M>,
    {
        let named = |kind| stack.parts.iter().map(move |(part, _)| in_layer(l, part, kind)).collect::<Vec<_>>();
        let outputs: Vec<usize> = stack.parts.iter().map(|(_, outputs)| *outputs).collect();
        let matrix = self.matrix(&named("weight"), &outputs, stack.inputs, stack.gated)?;
        let mut bias = stack.bias.then(Vec::new);
        if let Some(bias) = &mut bias {
            for (name, n) in named("bias").iter().zip(outputs) {
                bias.extend(self.vector(name, n)?);
            }
        }
        Ok(Linear { matrix, bias })
    }

    /// The matrices one below the other.
    fn matrix<M>(&mut self, names: &[String], outputs: &[usize], inputs: usize, gated: bool) -> Result<M>
    where
        P: Fn(&[Parameter], bool) -> Result<M>,
    {
        let shapes = names.iter().zip(outputs);
        let parts = shapes.map(|(name, &outputs)| self.checkpoint.parameter(name, &[outputs, inputs]));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let matrix = (self.pack)(&parts, gated)?;
        self.done += parts.iter().map(Parameter::bytes).sum::<u64>();
        (self.progress)(self.done, self.total);
        Ok(matrix)
    }

    /// The weight that a norm multiplies by.
    fn norm(&mut self, name: Option<String>, n: usize) -> Result<Option<Vec<f32>>> {
        let Some(name) = name else { return Ok(None) };
        let mut weight = self.vector(&name, n)?;
        if self.checkpoint.config().block.norm_less_one {
            weight.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(Some(weight))
    }

    fn vector(&mut self, name: &str, n: usize) -> Result<Vec<f32>> {
        let parameter = self.checkpoint.parameter(name, &[n])?;
        self.done += parameter.bytes();
        parameter.vector()
    }
}
