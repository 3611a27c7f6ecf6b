"""Tiny random-weight models of each family and their reference logits, for the tests of crates/model.

usage: make_fixtures.py [OUT_DIR] [NAME ...]     needs: torch transformers safetensors numpy
OUT_DIR defaults to crates/model/tests/fixtures; its README.md documents what is written. Files of a model are
rewritten whole. Weights come from a seeded generator, so a second run writes the same bytes.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import reference

HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT_OUT = os.path.join(HERE, "..", "crates", "model", "tests", "fixtures")
LENGTHS = [1, 64, 65, 200, 600]
MEDIAN_GAP = 0.8      # aimed at; more than 0.5 is demanded
STORED_ROWS = 64      # evenly spread rows of full logits per model, beside those that every prompt stores
MAX_BYTES = 1_000_000

COMMON = {"num_hidden_layers": 2, "hidden_act": "silu", "attention_dropout": 0.0, "initializer_range": 0.02,
          "bos_token_id": 1, "eos_token_id": 2, "use_cache": True}
LLAMA = {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False,
         "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-5}
QWEN2 = {**COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 1024, "max_window_layers": 2}

GEMMA = {**COMMON, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
         "attention_bias": False, "pad_token_id": 0, "max_position_embeddings": 2048}
PHI3 = {**COMMON, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "rope_theta": 10000.0, "pad_token_id": 0}

MODELS = {
    "llama2": {
        **LLAMA, "torch_dtype": "float32", "hidden_size": 64, "intermediate_size": 144, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": 384, "max_position_embeddings": 2048, "rope_theta": 10000.0,
        "rope_scaling": None, "tie_word_embeddings": False},
    "llama3": {
        **LLAMA, "torch_dtype": "bfloat16", "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 2048,
        "rope_theta": 500000.0, "eos_token_id": [2, 5, 6], "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 256}},
    "llama-odd": {
        **LLAMA, "torch_dtype": "bfloat16", "hidden_size": 60, "intermediate_size": 137, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 22, "vocab_size": 257, "max_position_embeddings": 1024,
        "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False},
    "smollm2": {
        **LLAMA, "torch_dtype": "bfloat16", "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3,
        "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 2048, "rope_theta": 100000.0,
        "rope_scaling": None, "rope_interleaved": False, "is_llama_config": True, "tie_word_embeddings": True},
    "qwen2": {
        **QWEN2, "torch_dtype": "bfloat16", "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 2048, "tie_word_embeddings": True},
    "qwen2-sharded": {
        **QWEN2, "torch_dtype": "float16", "hidden_size": 80, "intermediate_size": 208, "num_attention_heads": 5,
        "num_key_value_heads": 1, "vocab_size": 480, "max_position_embeddings": 2048, "tie_word_embeddings": False},
    "qwen3": {
        **COMMON, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16",
        "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "attention_bias": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
        "layer_types": ["full_attention", "full_attention"], "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
    "mistral": {
        **COMMON, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "bfloat16",
        "hidden_size": 72, "intermediate_size": 150, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 301, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 77, "tie_word_embeddings": False},
    "gemma2": {
        **GEMMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "torch_dtype": "bfloat16",
        "hidden_size": 60, "intermediate_size": 130, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "vocab_size": 320, "rope_theta": 10000.0, "query_pre_attn_scalar": 20, "sliding_window": 40,
        "attn_logit_softcapping": 4.0, "final_logit_softcapping": 20.0},
    "gemma3": {
        **GEMMA, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "torch_dtype": "bfloat16",
        "num_hidden_layers": 3, "hidden_size": 60, "intermediate_size": 98, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 320, "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 20, "sliding_window": 130, "sliding_window_pattern": 2},
    "phi3": {
        **PHI3, "hidden_size": 64, "intermediate_size": 118, "num_attention_heads": 4, "num_key_value_heads": 4,
        "vocab_size": 320, "original_max_position_embeddings": 256, "sliding_window": 200, "tie_word_embeddings": False,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.25, 1.4, 1.5, 1.8],
                         "long_factor": [1.0, 1.3, 1.7, 2.4, 3.0, 3.5, 3.9, 4.2]}},
    "phi4-mini": {
        **PHI3, "hidden_size": 64, "intermediate_size": 118, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 320, "original_max_position_embeddings": 2048, "sliding_window": 262144,
        "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
        "rope_scaling": {"type": "longrope", "attention_factor": 1.2,
                         "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5], "long_factor": [1.0, 1.5, 2.5, 4, 8, 16]}},
    "smollm3": {
        **COMMON, "architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "torch_dtype": "bfloat16",
        "num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 98, "num_attention_heads": 4,
        "num_key_value_heads": 1, "vocab_size": 320, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 50000.0, "no_rope_layers": [1, 0, 1], "use_sliding_window": False, "attention_bias": False,
        "mlp_bias": False, "pad_token_id": 0, "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}},
    "olmo2": {
        **COMMON, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "torch_dtype": "float32",
        "hidden_size": 48, "intermediate_size": 90, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 257, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
        "rope_scaling": None, "attention_bias": False, "pad_token_id": 0, "tie_word_embeddings": False},
    "granite": {
        **COMMON, "architectures": ["GraniteForCausalLM"], "model_type": "granite", "torch_dtype": "bfloat16",
        "hidden_size": 64, "intermediate_size": 122, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 320, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": None, "attention_bias": True, "mlp_bias": False, "pad_token_id": 0,
        "tie_word_embeddings": True, "embedding_multiplier": 1.7, "attention_multiplier": 0.2,
        "residual_multiplier": 0.6, "logits_scaling": 3.0},
}

# Gains of the projections over 1/sqrt(inputs). Attention scores get a standard deviation of about 1 and each branch is
# about as large as the residual stream, so that an error in any part of the block shows in the logits, while rounding to
# bf16 stays small against the gaps between them.
GAINS = {"qkv_proj": 1.0, "gate_up_proj": 1.0, "q_proj": 1.0, "k_proj": 1.0, "v_proj": 1.0, "o_proj": 2.0, "gate_proj": 1.0, "up_proj": 1.0, "down_proj": 1.0}


def less_one(config):
    """Whether the model multiplies by norm weights plus one."""
    return config.model_type.startswith("gemma")


def random_weights(config, seed):
    """Tensors by their Hugging Face names, f32, not yet rounded."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    generator = torch.Generator().manual_seed(seed)
    normal = lambda shape: torch.randn(shape, generator=generator)
    weights = {}
    for name in sorted(shapes):
        shape, part = shapes[name], name.split(".")[-2]
        if name.endswith(".bias"):
            weights[name] = 0.3 * normal(shape)
        elif part in GAINS:
            weights[name] = GAINS[part] / shape[1] ** 0.5 * normal(shape)
        elif part in ("q_norm", "k_norm"):
            weights[name] = 1.1 * (1 + 0.3 * normal(shape))
        elif name == "model.norm.weight":
            # Random signs: the tied head does not just repeat the token that it was given.
            weights[name] = normal(shape).sign() * (1 + 0.2 * normal(shape))
        elif part.endswith("norm"):
            weights[name] = 1 + 0.2 * normal(shape)
        else:
            # Embedding and head: rows of different length leave fewer rivals for the first place, hence wider gaps.
            weights[name] = normal(shape) * (0.8 * normal((shape[0], 1))).exp()
    if less_one(config):
        for name in weights:
            weights[name] -= 1.0 if name.endswith("norm.weight") else 0.0
        weights["model.embed_tokens.weight"] /= config.hidden_size ** 0.5
    return weights


def write_model(path, config, weights):
    """Writes the weights as the configuration's dtype; two shards where the model's name says so."""
    dtype = getattr(torch, config.get("torch_dtype") or config["dtype"])
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    with open(f"{path}/config.json", "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    if not path.endswith("-sharded"):
        save_file(tensors, f"{path}/model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    shards = {f"model-{i + 1:05}-of-00002.safetensors": part
              for i, part in enumerate((names[:len(names) // 2], names[len(names) // 2:]))}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, f"{path}/{shard}", metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
             "weight_map": {name: shard for shard, part in shards.items() for name in part}}
    with open(f"{path}/model.safetensors.index.json", "w") as file:
        json.dump(index, file, indent=2)
        file.write("\n")


def stored_positions(length):
    spread = torch.linspace(0, length - 1, max(2, STORED_ROWS * length // sum(LENGTHS))).long().tolist()
    edges = [0, 62, 63, 64, 65, 511, 512, 513, length - 2, length - 1]
    return sorted({p for p in spread + edges if 0 <= p < length})


def make(out, name):
    config, path = MODELS[name], os.path.join(out, name)
    os.makedirs(path, exist_ok=True)
    for stale in os.listdir(path):
        os.remove(f"{path}/{stale}")
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "do_sample": True,
                  "temperature": 0.7, "top_p": 0.9}
    with open(f"{path}/generation_config.json", "w") as file:
        json.dump(generation, file, indent=2)
        file.write("\n")
    with open(f"{path}/config.json", "w") as file:
        json.dump(config, file)
    seed = 20_000 + list(MODELS).index(name)
    generator = torch.Generator().manual_seed(seed + 1_000)
    prompts = [torch.randint(0, config["vocab_size"], (n,), generator=generator).tolist() for n in LENGTHS]
    run = lambda model: torch.cat([reference.logits(model, ids) for ids in prompts])

    # Logits are linear in the last norm's weight, but for a soft-cap: a few runs give the factor that brings the median
    # gap to its aim.
    parsed = AutoConfig.from_pretrained(path)
    weights, one = random_weights(parsed, seed), float(less_one(parsed))
    write_model(path, config, weights)
    for _ in range(3 if getattr(parsed, "final_logit_softcapping", None) else 1):
        factor = MEDIAN_GAP / reference.best_two(run(reference.load(path)))[1].median()
        weights["model.norm.weight"] = (weights["model.norm.weight"] + one) * factor - one
        write_model(path, config, weights)

    expected = run(reference.load(path))
    rounded = run(reference.round_like_bf16_executor(reference.load(path)))
    argmax, margin = reference.best_two(expected)
    error = (rounded - expected).abs().amax(-1)
    scope = margin > 2 * error
    assert margin.median() > 0.5 and expected.isfinite().all()
    assert (rounded.argmax(-1) == argmax)[scope].all()

    tensors, start = {}, 0
    for i, ids in enumerate(prompts):
        rows, positions = slice(start, start + len(ids)), stored_positions(len(ids))
        tensors |= {f"{i}.ids": torch.tensor(ids, dtype=torch.int32), f"{i}.argmax": argmax[rows].clone(),
                    f"{i}.margin": margin[rows].clone(), f"{i}.positions": torch.tensor(positions, dtype=torch.int32),
                    f"{i}.logits": expected[rows][positions].clone()}
        start += len(ids)
    save_file(tensors, f"{path}/expected.safetensors")
    files = sorted(f for f in os.listdir(path) if f.endswith(".safetensors"))
    meta = {
        "script": "tools/make_fixtures.py", "seed": seed, "versions": reference.versions(), "lengths": LENGTHS,
        "median_margin": round(margin.median().item(), 4), "logit_std": round(expected.std().item(), 4),
        "bf16_rounding_of_the_reference": {
            "mean_kl": reference.kl(expected, rounded), "max_abs_error": round(error.max().item(), 4),
            "share_with_margin_over_twice_own_error": round(scope.float().mean().item(), 4),
            "share_with_margin_over_twice_max_error": round((margin > 2 * error.max()).float().mean().item(), 4)},
        "sha256": {f: reference.digest(f"{path}/{f}") for f in files}}
    with open(f"{path}/meta.json", "w") as file:
        json.dump(meta, file, indent=2)
        file.write("\n")
    size = sum(os.path.getsize(f"{path}/{f}") for f in os.listdir(path))
    assert size < MAX_BYTES, f"{name} has {size} bytes"
    print(f"{name:14} {size:7} bytes  {json.dumps({k: meta[k] for k in ('median_margin', 'logit_std')})} "
          f"{json.dumps(meta['bf16_rounding_of_the_reference'])}")


def main(out=DEFAULT_OUT, *names):
    reference.setup()
    for name in names or MODELS:
        make(out, name)


if __name__ == "__main__":
    main(*sys.argv[1:])
