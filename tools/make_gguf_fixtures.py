"""GGUF files for the tests of crates/weights and crates/model.

usage: make_gguf_fixtures.py LLAMA_CPP [NAME ...]     needs: torch transformers safetensors numpy pyyaml requests tqdm

LLAMA_CPP is a source tree of llama.cpp: its own converter makes the models, from the fixtures beside them, and its
`gguf` package says what blocks stand for. Only the vocabulary is put in its place, because the fixtures have none.
Files: crates/model/tests/fixtures/gguf/NAME.gguf, crates/weights/tests/fixtures/blocks.gguf and values.gguf.
"""
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "crates/model/tests/fixtures"
BLOCKS = ROOT / "crates/weights/tests/fixtures"
NAMES = ["llama3", "llama-odd", "qwen2-sharded", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "phi4-mini",
         "smollm3", "olmo2", "granite"]


def vocabulary(model):
    """As many tokens as the embedding has rows; the ids of the configuration; one more end token."""
    n, config = model.hparams["vocab_size"], json.loads((model.dir_model / "config.json").read_text())
    eos = config["eos_token_id"]
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"t{i}" for i in range(n - 1)] + ["<|im_end|>"])
    writer.add_token_types([1] * (n - 1) + [3])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)


def convert(name):
    import conversion
    from conversion.base import ModelBase, ModelType
    import gguf

    source = MODELS / name
    hparams = ModelBase.load_hparams(source, False)
    base = conversion.get_model_class(conversion.get_model_architecture(hparams, ModelType.TEXT))
    kind = type(base.__name__, (base,), {"model_arch": base.model_arch, "set_vocab": vocabulary})
    out = MODELS / "gguf" / f"{name}.gguf"
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        # The converter of Gemma 3 counts the tokens of a tokenizer.json.
        work = Path(work)
        for file in source.iterdir():
            (work / file.name).symlink_to(file)
        vocab = {f"t{i}": i for i in range(hparams["vocab_size"])}
        (work / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        # Left alone, the converter would round f32 to f16.
        exact = "float32" in (hparams.get("torch_dtype"), hparams.get("dtype"))
        form = gguf.LlamaFileType.ALL_F32 if exact else gguf.LlamaFileType.GUESSED
        kind(work, form, out, eager=True, model_name=name).write()
    print(f"{out.name:22} {out.stat().st_size:7} bytes")


def blocks(path):
    """For each type a tensor of blocks and, in F32, what they stand for. Blocks are random but for their scales."""
    import numpy as np
    import gguf
    from gguf import GGMLQuantizationType as Type

    rng = np.random.default_rng(11)
    writer = gguf.GGUFWriter(path, "blocks")
    writer.add_string("made.by", f"tools/make_gguf_fixtures.py, gguf {version()}, numpy {np.__version__}")
    scale_at = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q5_0: [0], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}
    for kind in [Type.F32, Type.F16, Type.BF16, *scale_at]:
        length, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = 2, 512
        if kind in scale_at:
            data = rng.integers(0, 256, (rows * columns // length, size), dtype=np.uint8)
            for at in scale_at[kind]:
                scales = rng.standard_normal(len(data)).astype(np.float16)
                data[:, at:at + 2] = scales[:, None].view(np.uint8)
            data = data.reshape(rows, -1)
        else:
            values = rng.standard_normal((rows, columns)).astype(np.float32)
            data = np.ascontiguousarray(gguf.quants.quantize(values, kind)).view(np.uint8)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        raw = data if kind in scale_at or kind == Type.BF16 else data.view(np.float32 if kind == Type.F32 else np.float16)
        writer.add_tensor(f"{kind.name}.expected", gguf.quants.dequantize(raw, kind).astype(np.float32))
    finish(writer)


def values(path):
    """Metadata of every type."""
    import gguf
    from gguf import GGUFValueType as Type

    writer = gguf.GGUFWriter(path, "values")
    integers = {"U8": 200, "I8": -100, "U16": 60000, "I16": -30000, "U32": 4000000000, "I32": -2000000000,
                "U64": 18446744073709551615, "I64": -9223372036854775808}
    for name, value in integers.items():
        kind = Type["UINT" + name[1:] if name[0] == "U" else "INT" + name[1:]]
        writer.add_key_value(f"v.{name}", value, kind)
        writer.add_key_value(f"a.{name}", [value, 0, 1], Type.ARRAY, sub_type=kind)
    writer.add_float32("v.F32", 0.1)
    writer.add_float64("v.F64", 0.1)
    writer.add_bool("v.Bool", True)
    writer.add_string("v.String", "kvist \U0001f33f")
    writer.add_array("a.F32", [0.5, -1.5])
    writer.add_array("a.Bool", [True, False, True])
    writer.add_array("a.String", ["", "å", "twig", "\U0001f33f"])
    writer.add_array("a.Array", [[1, 2], [3]])
    writer.add_custom_alignment(64)
    import numpy as np
    writer.add_tensor("odd", np.arange(3, dtype=np.float32))
    writer.add_tensor("cube", np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def version():
    from importlib import metadata
    try:
        return metadata.version("gguf")
    except metadata.PackageNotFoundError:
        return "of the source tree"


def main(tree, *names):
    sys.path[:0] = [tree, os.path.join(tree, "gguf-py")]
    if not names:
        BLOCKS.mkdir(exist_ok=True)
        blocks(BLOCKS / "blocks.gguf")
        values(BLOCKS / "values.gguf")
    for name in names or [name for name in NAMES if (MODELS / name).exists()]:
        convert(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
