"""What transformers makes of published configurations, for crates/model/tests/published.rs.

usage: make_config_fixture.py [FILE]     needs: torch transformers
FILE, crates/model/tests/fixtures/published.json by default, is a list of {name, config, expected}. `expected` is
written anew from transformers' classes and a model of them without memory (device "meta"); `config` is kept as it is:
to add a model, add an entry without `expected`. The factors of longrope are made up, as many as the model has.
"""
import json
import os
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT = os.path.join(HERE, "..", "crates", "model", "tests", "fixtures", "published.json")


def ids(value):
    return [] if value is None else value if isinstance(value, list) else [value]


def rotation(context, frequencies, amplitude):
    """Some of the frequencies, and how many there are."""
    n = len(frequencies)
    return {"context": context, "pairs": n, "amplitude": amplitude,
            "frequencies": [frequencies[i].item() for i in sorted({0, n // 4, n // 2, 3 * n // 4, n - 1})]}


def rope(model, config, kind):
    """The rotation of a kind of layer; where it depends on the context, for the original one and for the longest."""
    embedding = type(model.model.rotary_emb)(config)
    prefix = f"{kind}_" if hasattr(embedding, f"{kind}_inv_freq") else ""
    parameters = config.rope_parameters[kind] if prefix else config.rope_parameters
    found = rotation(config.max_position_embeddings, getattr(embedding, f"{prefix}inv_freq"),
                     getattr(embedding, f"{prefix}attention_scaling"))
    original = parameters.get("original_max_position_embeddings", config.max_position_embeddings)
    if parameters["rope_type"] != "longrope" or original >= config.max_position_embeddings:
        return [found]
    long = ROPE_INIT_FUNCTIONS["longrope"](config, "cpu", seq_len=config.max_position_embeddings)
    return [{**found, "context": original}, rotation(config.max_position_embeddings, *long)]


def window(layer, config, kind):
    slides = kind == "sliding_attention" or config.model_type in ("mistral", "phi3")
    window = getattr(layer.self_attn, "sliding_window", config.sliding_window) if slides else None
    # One that nothing is outside of is none.
    return window if window is not None and window < config.max_position_embeddings else None


def embedding_scale(model, config):
    scale = getattr(model.model.embed_tokens, "scalar_embed_scale", None)
    if scale is None:
        return getattr(config, "embedding_multiplier", 1.0)
    return torch.tensor(scale).to(model.dtype).item()


def context(config):
    """Tokens that the model was made for. Transformers has no limit; that YaRN stretches it is what vLLM goes by."""
    rope = config.rope_parameters
    stretched = rope["original_max_position_embeddings"] * rope["factor"] if rope.get("rope_type") == "yarn" else 0
    return max(config.max_position_embeddings, int(stretched))


def expected(fields):
    whole = AutoConfig.for_model(**fields)
    config = whole.get_text_config()
    # Where the file does not name a type: that of nearly all weights.
    dtype = whole.dtype or torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    tied = whole.tie_word_embeddings
    parameters = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    if tied:
        del parameters["lm_head.weight"]
    generation = GenerationConfig.from_model_config(whole)
    attention = model.model.layers[0].self_attn
    projections = [attention.qkv_proj if hasattr(attention, "qkv_proj") else attention.q_proj, attention.o_proj]
    classes, layers = [], []
    for i, layer in enumerate(model.model.layers):
        kind = config.layer_types[i] if getattr(config, "layer_types", None) else "full_attention"
        rotates = getattr(layer.self_attn, "use_rope", True)
        one = {"window": window(layer, config, kind), "rope": rope(model, config, kind) if rotates else None}
        if one not in classes:
            classes.append(one)
        layers.append(classes.index(one))
    return {
        "vocab": config.vocab_size, "hidden": config.hidden_size, "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads, "head_dim": attention.head_dim, "intermediate": config.intermediate_size,
        "context": context(config), "eps": config.rms_norm_eps, "tied": tied,
        "biases": [projection.bias is not None for projection in projections], "parameters": sum(parameters.values()),
        "activation": getattr(config, "hidden_activation", None) or config.hidden_act, "score_scale": attention.scaling,
        "score_cap": getattr(attention, "attn_logit_softcapping", None) if config.model_type == "gemma2" else None,
        "logit_cap": getattr(config, "final_logit_softcapping", None), "embedding_scale": embedding_scale(model, config),
        "residual_scale": getattr(config, "residual_multiplier", 1.0), "logit_divisor": getattr(config, "logits_scaling", 1.0),
        "bos": generation.bos_token_id, "eos": ids(generation.eos_token_id), "layers": "".join(map(str, layers)), "classes": classes,
    }


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    with open(path) as file:
        entries = json.load(file)["models"]
    for entry in entries:
        entry["expected"] = expected(json.loads(json.dumps(entry["config"])))
    lines = ",\n".join("{" + ",\n ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in e.items()) + "}" for e in entries)
    with open(path, "w") as file:
        file.write(f'{{"transformers": "{transformers.__version__}", "models": [\n{lines}\n]}}\n')


main()
