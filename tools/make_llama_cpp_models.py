"""The embedded model as GGUF files of every type, for compare_llama_cpp.py.

usage: make_llama_cpp_models.py DIR          needs: llama-cpp-python gguf numpy

Its MLP is widened from 704 to 768 by zeros, which changes no value, so that rows are whole blocks of 256. llama.cpp
quantises: every matrix to the type that the file is named after (`pure`), and once as people get it, Q4_K_M.
"""
import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

ASSETS = Path(__file__).resolve().parent.parent / "assets/model"
TYPES = {"F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q5_0": 8, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "Q4_K_M": 15}
BLOCK = 256


def tensors():
    """(name, f32 array) of the safetensors file, all of it BF16."""
    data = (ASSETS / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    for name, entry in header.items():
        assert entry["dtype"] == "BF16", name
        first, end = (start + at for at in entry["data_offsets"])
        wide = np.frombuffer(data[first:end], np.uint16).astype(np.uint32) << 16
        yield name, wide.view(np.float32).reshape(entry["shape"])


def interleaved(rows, heads):
    """Rows of q and k in the order of pairs that rotate together, as llama.cpp's llama has them."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(path):
    config, tokenizer, settings = (json.loads((ASSETS / f"{name}.json").read_text())
                                   for name in ["config", "tokenizer", "tokenizer_config"])
    width = -(-config["intermediate_size"] // BLOCK) * BLOCK
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(width)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokens, types = [""] * config["vocab_size"], [gguf.TokenType.NORMAL] * config["vocab_size"]
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_chat_template(settings["chat_template"])

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, array in tensors():
        if "q_proj" in name:
            array = interleaved(array, config["num_attention_heads"])
        elif "k_proj" in name:
            array = interleaved(array, config["num_key_value_heads"])
        elif "mlp" in name:
            missing = width - config["intermediate_size"]
            array = np.pad(array, ((0, 0), (0, missing)) if "down_proj" in name else ((0, missing), (0, 0)))
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(directory):
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "F32.gguf"
    write(source)
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    for name, kind in TYPES.items():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.pure = kind, name != "Q4_K_M"
        out = directory / f"{name}.gguf"
        code = llama_cpp.llama_model_quantize(bytes(source), bytes(out), ctypes.byref(params))
        assert code == 0, f"{name}: {code}"
    for file in sorted(directory.glob("*.gguf")):
        kinds = sorted({t.tensor_type.name for t in gguf.GGUFReader(file).tensors if len(t.shape) == 2})
        print(f"{file.name:12} {file.stat().st_size:9} bytes  {', '.join(kinds)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
