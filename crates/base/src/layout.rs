use std::fmt;

use crate::CHUNK;

/// Element type of stored weights or KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// How the slots of a chunk are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Element by element.
    Dense(Dtype),
    /// 16-bit integers with a scale in bf16 for each token's K and for its V: what a chunk is as long as it is open, and for
    /// good where nothing else is asked for.
    Kv16,
    /// Sealed chunks in 8 bits: signed codes, K with a scale per channel, V with one per token, scales in bf16.
    Kv8,
}

impl From<Dtype> for Codec {
    fn from(dtype: Dtype) -> Codec {
        Codec::Dense(dtype)
    }
}

impl Codec {
    /// Bytes of (K, V) of a head in a chunk.
    fn head(self, dk: usize, dv: usize) -> (usize, usize) {
        match self {
            Codec::Dense(dtype) => (dk * CHUNK * dtype.bytes(), dv * CHUNK * dtype.bytes()),
            Codec::Kv16 => (2 * (dk + 1) * CHUNK, 2 * (dv + 1) * CHUNK),
            Codec::Kv8 => (dk.next_multiple_of(4) * CHUNK + 2 * dk, (dv + 2) * CHUNK),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Dense(Dtype::F32) => "f32",
            Codec::Dense(Dtype::F16) => "f16",
            Codec::Dense(Dtype::Bf16) => "bf16",
            Codec::Kv16 => "kv16",
            Codec::Kv8 => "kv8",
        })
    }
}

/// What a layer keeps per token. Grouped-query attention is the only kind so far; latent (MLA), shared and state layers
/// become further variants, so nothing outside this module computes a chunk's size by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// `heads` kv-heads, keys of `dk` and values of `dv` elements each.
    Gqa { heads: usize, dk: usize, dv: usize },
}

/// One layer's part of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerLayout {
    pub kind: LayerKind,
    /// Index into [`crate::StepPlan::classes`]: layers of one class attend to the same runs.
    pub class: usize,
    /// Byte offset of the layer's slice in the chunk.
    pub offset: usize,
    /// Bytes of the slice.
    pub bytes: usize,
}

/// Where everything is in a chunk: `[layer][kv-head][K | V]`.
///
/// Kv16: K is pair-interleaved `[dk/2][64][2]`, V `[32][dv][2]`, the same from the first token (appending is a scatter) and
/// on every ISA path; the scales of the tokens, `[64]`, are behind either. Kv8: a byte for each element, four to a word, K
/// `[dk/4][64][4]` of elements `i`, `i + dk/4`, .. (`dk/4` rounded up, and zeros for what is not there), V `[16][dv][4]` of
/// tokens `i`, `i + 16`, ..; the scales are behind the codes, K's `[dk]`, V's `[64]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChunkLayout {
    pub codec: Codec,
    pub layers: Vec<LayerLayout>,
    /// What each class of layers sees: `None` the whole path, `Some(n)` the keys less than `n` tokens before the query.
    /// Class 0 always sees the whole path, whether or not a layer belongs to it.
    pub windows: Vec<Option<u32>>,
    /// Bytes of a whole chunk.
    pub bytes: usize,
}

impl ChunkLayout {
    /// Lays out `kinds` one after the other; every layer sees the whole path.
    pub fn new(codec: impl Into<Codec>, kinds: &[LayerKind]) -> Self {
        Self::with_windows(codec, kinds.iter().map(|&kind| (kind, None)))
    }

    /// Lays out layers one after the other, each with its window. Layers of one window are one class. A window bounds
    /// what is attended to; the keys and values before it are kept like all others.
    pub fn with_windows(codec: impl Into<Codec>, layers: impl IntoIterator<Item = (LayerKind, Option<u32>)>) -> Self {
        let codec = codec.into();
        let mut layout = ChunkLayout { codec, layers: Vec::new(), windows: vec![None], bytes: 0 };
        for (kind, window) in layers {
            let class = layout.windows.iter().position(|w| *w == window).unwrap_or_else(|| {
                layout.windows.push(window);
                layout.windows.len() - 1
            });
            let LayerKind::Gqa { heads, dk, dv } = kind;
            let (k, v) = codec.head(dk, dv);
            let bytes = heads * (k + v);
            layout.layers.push(LayerLayout { kind, class, offset: layout.bytes, bytes });
            layout.bytes += bytes;
        }
        layout
    }

    /// Bytes of KV that one token takes, scales included.
    pub fn token_bytes(&self) -> usize {
        self.bytes.div_ceil(CHUNK)
    }

    /// Byte offsets of (K, V) of `head` in `layer`, and of the end of V.
    pub fn tile(&self, layer: usize, head: usize) -> (usize, usize, usize) {
        let LayerLayout { kind: LayerKind::Gqa { heads, dk, dv }, offset, .. } = self.layers[layer];
        assert!(head < heads);
        let (k_bytes, v_bytes) = self.codec.head(dk, dv);
        let k = offset + head * (k_bytes + v_bytes);
        (k, k + k_bytes, k + k_bytes + v_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_chunk_without_gaps() {
        let kinds = [LayerKind::Gqa { heads: 2, dk: 64, dv: 64 }, LayerKind::Gqa { heads: 3, dk: 96, dv: 32 }];
        let bf16 = 2 * (2 * 128 + 3 * 128);
        for (codec, token_bytes) in [(Codec::Dense(Dtype::Bf16), bf16), (Codec::Kv16, bf16 + 5 * 4), (Codec::Kv8, 663)]
        {
            let layout = ChunkLayout::new(codec, &kinds);
            let mut end = 0;
            for (layer, kind) in kinds.iter().enumerate() {
                let LayerKind::Gqa { heads, .. } = *kind;
                for head in 0..heads {
                    let (k, v, stop) = layout.tile(layer, head);
                    assert_eq!(k, end);
                    assert!(k < v && v < stop);
                    end = stop;
                }
            }
            assert_eq!(end, layout.bytes);
            assert_eq!(layout.token_bytes(), token_bytes, "{codec}");
        }
    }

    #[test]
    fn layers_of_one_window_are_one_class() {
        let kind = LayerKind::Gqa { heads: 1, dk: 16, dv: 16 };
        let of = |windows: &[Option<u32>]| {
            let layout = ChunkLayout::with_windows(Dtype::Bf16, windows.iter().map(|&w| (kind, w)));
            (layout.windows, layout.layers.iter().map(|l| l.class).collect::<Vec<_>>())
        };
        assert_eq!(of(&[None, None]), (vec![None], vec![0, 0]));
        assert_eq!(of(&[Some(5), Some(5)]), (vec![None, Some(5)], vec![1, 1]));
        assert_eq!(of(&[Some(5), None, Some(9), Some(5)]), (vec![None, Some(5), Some(9)], vec![1, 0, 2, 1]));
    }
}
