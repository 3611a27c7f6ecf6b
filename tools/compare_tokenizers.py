#!/usr/bin/env python3
"""Compares kvist's token ids with those of Hugging Face `tokenizers` (and SentencePiece) on many generated texts.

    pip install tokenizers transformers sentencepiece protobuf tiktoken gguf
    pip install --no-deps mistral-common llama-models dashscope pycountry pydantic-extra-types        # carry real vocabularies
    pip download --no-deps --no-binary :all: llama-cpp-python         # so does its vendor/llama.cpp/models, unpacked
    cargo build --release -p kvist-text --example tokenize
    python3 tools/compare_tokenizers.py --ggml DIR [--count 100000] [--seed 1] [SUBJECT ...]

Each subject has an oracle that was made without kvist, and is given to kvist twice: as the oracle's `tokenizer.json`, and
as the metadata that llama.cpp's converter writes. Ids must be equal, with and without special tokens; text decoded from
them must be the oracle's (but where bytes are no UTF-8: kvist gives one U+FFFD for each maximal broken part, as Unicode
recommends), and the text itself where the tokenizer loses nothing. The last line is for LEDGER.md.
"""

import argparse
import collections
import importlib.util
import io
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import Qwen2Converter, TikTokenConverter, generate_merges

from text_strings import Texts

ROOT = pathlib.Path(__file__).resolve().parent.parent
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# `lossless`: the text of the ids is the text; `spm`: a second oracle, for texts without special tokens.
Subject = collections.namedtuple("Subject", "oracle vocab lossless spm", defaults=[None])


def package(name):
    return pathlib.Path(importlib.util.find_spec(name).origin).parent


def metadata(path):
    """The fields of kvist's GgufVocab."""
    import gguf
    fields = gguf.GGUFReader(path).fields
    def get(key, default=None):
        return fields[key].contents() if key in fields else default
    ids = dict(bos="bos", eos="eos", eot="eot", eom="eom", unk="unknown", pad="padding")
    flags = ["add_bos_token", "add_eos_token", "add_space_prefix"]
    vocab = {name: get(f"tokenizer.ggml.{key}_token_id") for name, key in ids.items()}
    vocab |= {flag.removesuffix("_token"): get(f"tokenizer.ggml.{flag}") for flag in flags}
    return vocab | dict(
        architecture=get("general.architecture", ""), model=get("tokenizer.ggml.model"), pre=get("tokenizer.ggml.pre", ""), tokens=get("tokenizer.ggml.tokens"),
        scores=get("tokenizer.ggml.scores", []), token_types=get("tokenizer.ggml.token_type", []), merges=get("tokenizer.ggml.merges", []))


def converted(oracle, pre, **more):
    """What llama.cpp's converter makes of a byte-level `tokenizer.json`."""
    file = json.loads(oracle.to_str())
    texts = {id: text for text, id in oracle.get_vocab().items()}
    added = {t["id"]: t for t in file["added_tokens"]}
    size = max(texts) + 1
    tokens = [texts.get(id, f"[PAD{id}]") for id in range(size)]
    types = [UNUSED if id not in texts else NORMAL if id not in added else CONTROL if added[id]["special"] else USER for id in range(size)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in file["model"]["merges"]]
    return dict(model="gpt2", pre=pre, tokens=tokens, token_types=types, merges=merges, **more)


def byte_level(vocab, merges, steps, added, normalizer=None, ignore_merges=False, use_regex=False, bos=None):
    """A Hugging Face tokenizer of the GPT-2 kind."""
    oracle = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    if normalizer:
        oracle.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    oracle.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    oracle.decoder = decoders.ByteLevel()
    if bos is not None:
        oracle.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, vocab[bos])])
    oracle.add_tokens(added)
    return oracle


def from_metadata(meta, steps, **more):
    vocab = {text: id for id, text in enumerate(meta["tokens"])}
    added = [AddedToken(t, special=k == CONTROL, normalized=False) for t, k in zip(meta["tokens"], meta["token_types"]) if k in (CONTROL, USER)]
    return byte_level(vocab, [tuple(m.split(" ")) for m in meta["merges"]], steps, added, **more)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def embedded(args):
    oracle = Tokenizer.from_file(str(ROOT / "assets/model/tokenizer.json"))
    return Subject(oracle, converted(oracle, "stablelm2"), True)


def gpt2(args):
    meta = metadata(args.ggml / "ggml-vocab-gpt-2.gguf")
    return Subject(from_metadata(meta, [], use_regex=True), meta, True)


def starcoder(args):
    """Digits apart, then GPT-2's words: SmolLM, Granite 3. Some bytes have no token."""
    meta = metadata(args.ggml / "ggml-vocab-starcoder.gguf")
    return Subject(from_metadata(meta, [pre_tokenizers.Digits(individual_digits=True)], use_regex=True), meta, False)


def llama3(args):
    """The oracle is made of Meta's own ranks, the metadata of what was published in the Hugging Face format."""
    meta = metadata(args.ggml / "ggml-vocab-llama-bpe.gguf")
    converter = TikTokenConverter(vocab_file=str(package("llama_models") / "llama3/tokenizer.model"))
    oracle = converter.converted()
    oracle.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(meta["tokens"], meta["token_types"]) if k == CONTROL])
    bos = "<|begin_of_text|>"
    oracle.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, oracle.token_to_id(bos))])
    return Subject(oracle, meta, True)


def qwen2(args):
    """The oracle is made of Qwen's own ranks."""
    meta = metadata(args.ggml / "ggml-vocab-qwen2.gguf")
    ranks = TikTokenConverter(vocab_file=str(package("dashscope") / "resources/qwen.tiktoken"))
    vocab, merges = ranks.extract_vocab_merges_from_model(ranks.vocab_file)
    class Original:
        add_prefix_space = False
    oracle = Qwen2Converter(Original()).converted(vocab, merges)
    oracle.add_tokens([AddedToken(t, special=k == CONTROL, normalized=False) for t, k in zip(meta["tokens"], meta["token_types"]) if k in (CONTROL, USER)])
    return Subject(oracle, meta, False)


def tekken(args):
    from transformers.integrations.mistral.tokenizer import MistralConverter
    oracle = MistralConverter(str(package("mistral_common") / "data/tekken_240911.json")).converted()
    bos = oracle.token_to_id("<s>")
    oracle.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", bos)])
    return Subject(oracle, converted(oracle, "tekken", bos=bos), True)


def gpt4o(args):
    """The o200k pattern with Llama 4's ranks: Phi-4-mini, Llama 4."""
    source = (package("llama_models") / "llama4/tokenizer.py").read_text()
    pattern = source.split('O200K_PATTERN = r"""')[1].split('"""')[0]
    converter = TikTokenConverter(vocab_file=str(package("llama_models") / "llama4/tokenizer.model"), pattern=pattern)
    oracle = converter.converted()
    oracle.model.ignore_merges = False
    oracle.add_special_tokens([AddedToken(t, normalized=False) for t in ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")])
    return Subject(oracle, converted(oracle, "gpt-4o"), True)


def sp_vocab(proto, **more):
    """What llama.cpp's converter makes of a SentencePiece model."""
    pieces = proto.pieces
    types = [p.type if p.type != USER else NORMAL for p in pieces]
    return dict(model="llama", pre="default", tokens=[p.piece for p in pieces], scores=[p.score for p in pieces], token_types=types, **more)


def sp_oracle(proto, prefix, added):
    """A Hugging Face tokenizer of the Llama kind, by `transformers`' rule for merges. `added`: (text, special)."""
    vocab = {p.piece: id for id, p in enumerate(proto.pieces)}
    joinable = {p.piece: p.score for p in proto.pieces if p.type in (NORMAL, USER)}
    merges = generate_merges(vocab, joinable, skip_tokens=vocab.keys() - joinable.keys())
    unk = next(p.piece for p in proto.pieces if p.type == UNKNOWN)
    oracle = Tokenizer(models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    strip = [decoders.Strip(" ", 1, 0)] if prefix != "never" else []
    oracle.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    spaces = normalizers.Replace(" ", "▁")
    if prefix == "first":
        oracle.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        oracle.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix == "every" else spaces
    bos = "<bos>" if "<bos>" in vocab else "<s>"
    oracle.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, vocab[bos])])
    oracle.add_tokens([AddedToken(t, special=special, normalized=False) for t, special in added])
    return oracle


def sp_model(path):
    from sentencepiece import sentencepiece_model_pb2
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(pathlib.Path(path).read_bytes())
    return proto


def mistral_v1(args):
    """Mistral 7B v0.1: the Llama 2 kind, a space before every segment."""
    path = package("mistral_common") / "data/tokenizer.model.v1"
    proto = sp_model(path)
    added = [(p.piece, True) for p in proto.pieces if p.type in (UNKNOWN, CONTROL)]
    return Subject(sp_oracle(proto, "every", added), sp_vocab(proto), False, sentencepiece.SentencePieceProcessor(str(path)))


def mistral_v3(args):
    """Mistral 7B v0.3: control tokens for turns and tools, a space at the start only."""
    path = package("mistral_common") / "data/mistral_instruct_tokenizer_240323.model.v3"
    proto = sp_model(path)
    added = [(p.piece, True) for p in proto.pieces if p.type in (UNKNOWN, CONTROL)]
    return Subject(sp_oracle(proto, "first", added), sp_vocab(proto), False, sentencepiece.SentencePieceProcessor(str(path)))


def llama2(args):
    meta = metadata(args.ggml / "ggml-vocab-llama-spm.gguf")
    return Subject(spm_from_metadata(meta, lambda text: False), meta, False)


def phi3(args):
    """The Llama 2 vocabulary with special tokens that swallow the space after them."""
    meta = metadata(args.ggml / "ggml-vocab-phi-3.gguf")
    return Subject(spm_from_metadata(meta, lambda text: text not in ("<unk>", "<s>", "<|endoftext|>")), meta, False)


def spm_from_metadata(meta, rstrip):
    pieces = sentencepiece_pieces(meta)
    oracle = sp_oracle(pieces, "every", [])
    oracle.add_tokens([AddedToken(p.piece, special=p.type != USER, normalized=False, rstrip=rstrip(p.piece)) for p in pieces.pieces if p.type in (UNKNOWN, CONTROL, USER)])
    return oracle


def sentencepiece_pieces(meta):
    Piece = collections.namedtuple("Piece", "piece score type")
    Proto = collections.namedtuple("Proto", "pieces")
    types = [UNKNOWN if t == "<unk>" else k for t, k in zip(meta["tokens"], meta["token_types"])]
    return Proto([Piece(*p) for p in zip(meta["tokens"], meta["scores"], types)])


def gemma(args):
    """No vocabulary of Gemma 2 or 3 is to be had offline: one of their kind is trained here. No space is put before a text, digits
    are split, runs of newlines and spaces and some HTML are tokens of their own."""
    runs = ["\n" * n for n in range(1, 32)] + ["▁" * n for n in range(2, 32)] + ["<table>", "</table>", "<h1>", "<unused0>", "<unused98>"]
    texts = [p.read_text(errors="ignore") for p in sorted(pathlib.Path(json.__file__).parent.parent.glob("*.py"))[:60]]
    texts += ["".join(itertools.islice(Texts(2026), 8000))]
    lines = [line for text in texts for line in text.split("\n") if line and len(line) < 2000]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=16000, byte_fallback=True, split_digits=True, add_dummy_prefix=False,
        remove_extra_whitespaces=False, normalization_rule_name="identity", allow_whitespace_only_pieces=True, character_coverage=0.98, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", bos_piece="<bos>", eos_piece="<eos>", control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=runs, minloglevel=2)
    path = pathlib.Path(args.work) / "gemma.model"
    path.write_bytes(model.getvalue())
    proto = sp_model(path)
    # Runs of spaces are found by merges, as in Gemma 4's tokenizer.json and as SentencePiece does it.
    added = [(p.piece, p.type != USER) for p in proto.pieces if p.type in (UNKNOWN, CONTROL, USER) and "▁" not in p.piece]
    vocab = sp_vocab(proto, add_space_prefix=False, bos=2, eos=1, unk=3, pad=0)
    for id, piece in enumerate(proto.pieces):
        if piece.type == USER:
            vocab["tokens"][id], vocab["token_types"][id] = piece.piece.replace("▁", " "), USER
    return Subject(sp_oracle(proto, "never", added), vocab, True, sentencepiece.SentencePieceProcessor(str(path)))


def gemma4(args):
    """Gemma's real vocabulary (262,144 tokens) with its merges."""
    meta = metadata(args.ggml / "ggml-vocab-gemma-4.gguf")
    meta["pre"] = ""
    vocab = {text: id for id, text in enumerate(meta["tokens"])}
    merges = [(m[:m.index(" ", 1)], m[m.index(" ", 1) + 1:]) for m in meta["merges"]]
    oracle = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    oracle.normalizer = normalizers.Replace(" ", "▁")
    oracle.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    oracle.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    oracle.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [("<bos>", vocab["<bos>"])])
    oracle.add_tokens([AddedToken(t, special=k != USER, normalized=False) for t, k in zip(meta["tokens"], meta["token_types"]) if k in (UNKNOWN, CONTROL, USER)])
    return Subject(oracle, meta, True)


SUBJECTS = [embedded, gpt2, starcoder, llama3, qwen2, tekken, gpt4o, llama2, mistral_v1, mistral_v3, phi3, gemma, gemma4]


def ask(binary, path, texts):
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    run = subprocess.run([binary, path], input=lines, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{binary} {path}: {run.stderr}")
    return [json.loads(line) for line in run.stdout.split("\n") if line]


class Report:
    def __init__(self):
        self.wrong = 0

    def say(self, what, text, *values):
        self.wrong += 1
        if self.wrong <= 20:
            print(f"DIFFERS {what}: {text!r}", *(repr(v)[:400] for v in values), sep="\n    ")


def compare(name, subject, texts, args, report):
    work = pathlib.Path(args.work)
    (work / "tokenizer.json").write_text(subject.oracle.to_str())
    (work / "vocab.json").write_text(json.dumps(subject.vocab))
    plain = [e.ids for e in subject.oracle.encode_batch_fast(texts, add_special_tokens=False)]
    special = [e.ids for e in subject.oracle.encode_batch_fast(texts)]
    decoded = subject.oracle.decode_batch(plain, skip_special_tokens=False)
    counts = collections.Counter()
    for path in ("tokenizer.json", "vocab.json"):
        answers = ask(args.binary, work / path, texts)
        assert len(answers) == len(texts)
        for text, ids, with_special, whole, answer in zip(texts, plain, special, decoded, answers):
            if answer[0] != ids:
                report.say(f"{name} {path} ids", text, answer[0], ids)
            if (path == "tokenizer.json" or subject.vocab.get("bos") is not None or special is plain) and answer[1] != with_special:
                report.say(f"{name} {path} with special tokens", text, answer[1], with_special)
            if "\ufffd" not in whole and answer[2] != whole:
                report.say(f"{name} {path} decoded", text, answer[2], whole)
            if subject.lossless and answer[2].replace("▁", " ") != text.replace("▁", " "):
                report.say(f"{name} {path} round trip", text, answer[2])
            counts["compared"] += 1
    if subject.spm:
        special_names = [t for t, k in zip(subject.vocab["tokens"], subject.vocab["token_types"]) if k in (UNKNOWN, CONTROL)]
        for text, ids in zip(texts, plain):
            # SentencePiece takes no special tokens from a text, and no NUL.
            if "\x00" in text or any(s in text for s in special_names):
                continue
            counts["sentencepiece"] += 1
            if subject.spm.encode(text) != ids:
                if name == "mistral_v3" and text[0] in " ▁":
                    # Metaspace gives no space to a text that starts with one; SentencePiece does.
                    counts["sentencepiece: leading space"] += 1
                else:
                    report.say(f"{name} sentencepiece", text, subject.spm.encode(text), ids)
    print(f"{name}: {dict(counts)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=" ".join(s.__name__ for s in SUBJECTS))
    parser.add_argument("--ggml", type=pathlib.Path, help="vendor/llama.cpp/models of llama-cpp-python's source archive")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", default=ROOT / "target/release/examples/tokenize")
    args = parser.parse_args()
    chosen = [s for s in SUBJECTS if not args.subjects or s.__name__ in args.subjects]
    seen = set()
    texts = list(itertools.islice((t for t in Texts(args.seed) if not (t in seen or seen.add(t))), args.count))
    report = Report()
    with tempfile.TemporaryDirectory() as args.work:
        for make in chosen:
            compare(make.__name__, make(args), texts, args, report)
    versions = f"tokenizers {tokenizers.__version__}, transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}"
    print(f"tokenizers: {len(texts)} texts of seed {args.seed} x {len(chosen)} vocabularies x 2 ways: {report.wrong} differences ({versions})")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
