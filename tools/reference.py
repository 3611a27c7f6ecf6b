"""What the fixture scripts share: Hugging Face transformers as the reference, in f32 with RoPE angles in f64."""
import hashlib
import json
import math
import platform

import numpy
import safetensors
import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import repeat_kv


def setup():
    """One thread, so that sums are taken in one order and a second run writes the same bytes."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def versions():
    return {"python": platform.python_version(), "numpy": numpy.__version__, "safetensors": safetensors.__version__,
            "torch": torch.__version__, "torch_cpu": torch.backends.cpu.get_cpu_capability(),
            "transformers": transformers.__version__}


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def rotation(config, layer_type=None):
    """RoPE inverse frequencies in f64 [rotary / 2] and the factor on cosines and sines. Of the two lists of longrope, the
    one for the whole context that the configuration allows."""
    rope = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dim, kind = int(head_dim * rope.get("partial_rotary_factor", 1.0)), rope["rope_type"]
    theta, original = rope["rope_theta"], rope.get("original_max_position_embeddings")
    frequency, factor = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim), rope.get("factor")
    attention_factor = rope.get("attention_factor")
    if kind == "linear":
        frequency = frequency / factor
    elif kind == "llama3":
        turns = original * frequency / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (keep + (1 - keep) / factor)
    elif kind == "yarn":
        border = lambda turns: dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        low, high = max(math.floor(border(32)), 0), min(math.ceil(border(1)), dim - 1)
        stretch = ((torch.arange(dim // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (1 - stretch + stretch / factor)
        attention_factor = attention_factor or 0.1 * math.log(factor) + 1
    elif kind == "longrope":
        context = config.max_position_embeddings
        factors = rope["long_factor" if context > original else "short_factor"]
        frequency = frequency / torch.tensor(factors, dtype=torch.float64)
        attention_factor = attention_factor or math.sqrt(1 + math.log(context / original) / math.log(original))
    elif kind != "default":
        raise ValueError(f"no f64 form of RoPE type {kind}")
    return frequency, attention_factor or 1.0


class Rotary64(torch.nn.Module):
    """Takes the place of a model's rotary embedding: angles, cosines and sines in f64, rounded once to x's dtype."""

    def __init__(self, config, original):
        super().__init__()
        nested = isinstance(original.rope_type, dict)
        self.rotations = {kind: rotation(config, kind) for kind in (original.rope_type if nested else [None])}
        for kind, (frequency, factor) in self.rotations.items():
            prefix = f"{kind}_" if kind else ""
            theirs = getattr(original, f"{prefix}inv_freq"), getattr(original, f"{prefix}attention_scaling")
            if not nested and original.rope_type == "longrope":
                theirs = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=config.max_position_embeddings)
            torch.testing.assert_close(frequency.float(), theirs[0], rtol=2e-6, atol=0)
            assert abs(factor - theirs[1]) < 1e-12

    def forward(self, x, position_ids, layer_type=None):
        frequency, factor = self.rotations[layer_type]
        angle = position_ids[..., None].double() * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return (angle.cos() * factor).to(x.dtype), (angle.sin() * factor).to(x.dtype)


def load(path):
    """A model directory in f32 with eager attention and f64 angles, whatever dtype it is stored in. A factor on the
    embeddings is rounded as it is in that dtype."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    model.model.rotary_emb = Rotary64(model.config, model.model.rotary_emb)
    embedding = model.model.embed_tokens
    if hasattr(embedding, "embed_scale"):
        with open(f"{path}/config.json") as file:
            config = json.load(file)
        dtype = getattr(torch, config.get("torch_dtype") or config["dtype"])
        embedding.embed_scale = embedding.embed_scale.to(dtype).float()
    return model


@torch.no_grad()
def logits(model, ids):
    """f32 [n, vocabulary] for one prompt."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def best_two(values):
    """(argmax with ties to the lowest id, best minus second best) over the last axis."""
    top = values.topk(2).values
    best = (values == top[..., :1]).int().argmax(-1)
    return best.int(), top[..., 0] - top[..., 1]


def bf16(x):
    return x.bfloat16().float()


def _bf16_attention(module, query, key, value, _mask, scaling, sliding_window=None, softcap=None, **_kwargs):
    query, key, value = bf16(query * (scaling * math.log2(math.e))), bf16(key), bf16(value)
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3)
    if softcap:
        cap = softcap * math.log2(math.e)
        scores = cap * torch.tanh(scores / cap)
    distance = torch.arange(scores.shape[-2])[:, None] - torch.arange(scores.shape[-1])
    hidden = (distance < 0) | (distance >= (sliding_window or math.inf))
    scores = scores.masked_fill(hidden, -math.inf)
    p = bf16(torch.exp2(scores - scores.amax(-1, keepdim=True)))
    return (p @ value / p.sum(-1, keepdim=True)).transpose(1, 2).contiguous(), None


AttentionInterface.register("bf16_inputs", _bf16_attention)


def round_like_bf16_executor(model):
    """Changes `model` in place to what bf16 execution rounds: weights, matmul inputs, q, k, v and p; all else f32.

    Not an expectation of any test: it shows what error the bf16 form itself brings to a fixture.
    """
    def pre_hook(_, inputs):
        return (bf16(inputs[0]), *inputs[1:])

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(pre_hook)
            module.weight.data = bf16(module.weight.data)
        elif isinstance(module, torch.nn.Embedding):
            module.weight.data = bf16(module.weight.data)
    model.config._attn_implementation = "bf16_inputs"
    return model


def kl(reference, other):
    """Mean over rows of KL(reference || other) in nats, in f64."""
    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()
