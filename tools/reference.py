"""What the fixture scripts share: Hugging Face transformers as the reference, in f32 with RoPE angles in f64."""
import hashlib
import math
import platform

import numpy
import safetensors
import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM
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


def inverse_frequencies(config):
    """RoPE inverse frequencies in f64 [head_dim / 2], `default` and `llama3`."""
    rope = config.rope_parameters
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequency = rope["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if rope["rope_type"] == "llama3":
        turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (keep + (1 - keep) / rope["factor"])
    elif rope["rope_type"] != "default":
        raise ValueError(f"no f64 form of RoPE type {rope['rope_type']}")
    return frequency


class Rotary64(torch.nn.Module):
    """Takes the place of a model's rotary embedding: angles, cosines and sines in f64, rounded once to x's dtype."""

    def __init__(self, config, original):
        super().__init__()
        self.frequency = inverse_frequencies(config)
        torch.testing.assert_close(self.frequency.float(), original.inv_freq, rtol=2e-6, atol=0)
        assert original.attention_scaling == 1.0

    def forward(self, x, position_ids):
        angle = position_ids[..., None].double() * self.frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def load(path):
    """A model directory in f32 with eager attention and f64 angles, whatever dtype it is stored in."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    model.model.rotary_emb = Rotary64(model.config, model.model.rotary_emb)
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


def _bf16_attention(module, query, key, value, _attention_mask, scaling, **_kwargs):
    query, key, value = bf16(query * (scaling * math.log2(math.e))), bf16(key), bf16(value)
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3)
    scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
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
