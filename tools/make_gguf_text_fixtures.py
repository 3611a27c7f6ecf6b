#!/usr/bin/env python3
"""Writes gguf.json and templates.json in crates/text/tests/fixtures: small subsets of what `compare_tokenizers.py` and
`compare_templates.py` compare.

    pip install tokenizers transformers jinja2 sentencepiece protobuf
    python3 tools/make_gguf_text_fixtures.py

gguf.json: vocabularies as GGUF metadata (SentencePiece models trained here on a few sentences, and the byte-level vocabulary of
bytes.json under several pre-tokenisers), and hashes of the ids that Hugging Face `tokenizers` and SentencePiece give for the texts of
tokenizers.json and generated ones. templates.json: generated conversations, and what `apply_chat_template` makes of them by the
templates in fixtures/templates (see the README there), as hashes.
"""

import io
import itertools
import json

import sentencepiece
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35

from compare_templates import FIELDS, SPECIAL, Chats, render, used
from compare_tokenizers import CONTROL, UNKNOWN, USER, byte_level, converted, sp_oracle, sp_vocab, split
from make_text_fixtures import NOW, OUT, SENTENCES, fixed_clock, fnv
from text_strings import Texts

VERSIONS = {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__}
CHUNK = 25  # texts to a hash


def trained(**options):
    """A SentencePiece BPE model as protocol buffer, and its processor."""
    from sentencepiece import sentencepiece_model_pb2
    model = io.BytesIO()
    lines = [line for line in SENTENCES.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", byte_fallback=True, split_digits=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity", allow_whitespace_only_pieces=True, hard_vocab_limit=False, minloglevel=2, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def cases():
    """(name, oracle, second oracle or None, metadata)."""
    proto, processor = trained(vocab_size=620)
    controls = [(p.piece, True) for p in proto.pieces if p.type in (UNKNOWN, CONTROL)]
    yield "llama", sp_oracle(proto, "every", controls), processor, sp_vocab(proto)

    # Tokens added behind the model's: turns, and one that is text.
    turns = ["<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    vocab = sp_vocab(proto, architecture="phi3")
    oracle = sp_oracle(proto, "every", [])
    spared = ("<unk>", "<s>", "<|endoftext|>")
    names = [(text, True) for text, _ in controls] + [(text, True) for text in turns] + [("<think>", False)]
    oracle.add_tokens([AddedToken(text, special=special, normalized=False, rstrip=text not in spared) for text, special in names])
    for text in [*turns, "<think>"]:
        vocab["tokens"].append(text)
        vocab["scores"].append(-1000.0)
        vocab["token_types"].append(USER if text == "<think>" else CONTROL)
    yield "phi3", oracle, None, vocab

    mistral, processor = trained(vocab_size=600, control_symbols=["[INST]", "[/INST]", "[TOOL_CALLS]"])
    controls = [(p.piece, True) for p in mistral.pieces if p.type in (UNKNOWN, CONTROL)]
    yield "mistral", sp_oracle(mistral, "first", controls), None, sp_vocab(mistral)

    runs = ["\n" * n for n in range(1, 9)] + ["▁" * n for n in range(2, 9)] + ["<table>", "<unused0>"]
    gemma, processor = trained(
        vocab_size=620, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", bos_piece="<bos>", eos_piece="<eos>",
        control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=runs)
    added = [(p.piece, p.type != USER) for p in gemma.pieces if p.type in (UNKNOWN, CONTROL, USER) and "▁" not in p.piece]
    vocab = sp_vocab(gemma, add_space_prefix=False, bos=2, eos=1, unk=3, pad=0)
    for id, piece in enumerate(gemma.pieces):
        if piece.type == USER:
            vocab["tokens"][id], vocab["token_types"][id] = piece.piece.replace("▁", " "), USER
    yield "gemma", sp_oracle(gemma, "never", added), processor, vocab

    base = json.loads((OUT / "bytes.json").read_text())
    names = [t["content"] for t in base["added_tokens"]]
    size = len(base["model"]["vocab"])
    ranks = base["model"]["vocab"] | {name: size + i for i, name in enumerate(names)}
    merges = [tuple(m) for m in base["model"]["merges"]]
    added = [AddedToken(name, special=True, normalized=False) for name in names]
    llama3 = TikTokenConverter("unused").pattern
    digits = pre_tokenizers.Digits(individual_digits=True)
    bos = names[0]
    for pre, steps, options in [
        ("llama-bpe", [split(llama3)], {"ignore_merges": True, "bos": bos}), ("qwen2", [split(QWEN2)], {"normalizer": normalizers.NFC()}), ("stablelm2", [split(QWEN2)], {}),
        ("qwen35", [split(QWEN35)], {"normalizer": normalizers.NFC()}), ("gpt-2", [], {"use_regex": True}), ("smollm", [digits], {"use_regex": True}),
    ]:
        oracle = byte_level(ranks, merges, steps, added, **options)
        yield pre, oracle, None, converted(oracle, pre, bos=ranks[bos], architecture="llama")


def write_vocabularies(texts):
    done, bytes_vocab = [], None
    for name, oracle, processor, vocab in cases():
        plain = [e.ids for e in oracle.encode_batch_fast(texts, add_special_tokens=False)]
        special = [e.ids for e in oracle.encode_batch_fast(texts)]
        if processor:
            names = [t for t, k in zip(vocab["tokens"], vocab["token_types"]) if k in (UNKNOWN, CONTROL)]
            for text, ids in zip(texts, plain):
                if "\x00" not in text and not any(n in text for n in names):
                    assert processor.encode(text) == ids, (name, text)
        if vocab["model"] == "gpt2":
            # One vocabulary for all of them.
            shared = {key: vocab.pop(key) for key in ("tokens", "token_types", "merges")}
            assert bytes_vocab in (None, shared)
            bytes_vocab = shared
        hashes = [f"{fnv(i for ids in plain[at:at + CHUNK] + special[at:at + CHUNK] for i in [len(ids), *ids]):016x}" for at in range(0, len(texts), CHUNK)]
        done.append({"name": name, "vocab": vocab, "hashes": hashes})
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in done)
    generated = json.dumps(GENERATED, ensure_ascii=False, separators=(",", ":"))
    shared = json.dumps(bytes_vocab, ensure_ascii=False, separators=(",", ":"))
    (OUT / "gguf.json").write_text(f'{{"versions":{json.dumps(VERSIONS)},"chunk":{CHUNK},\n"texts":{generated},\n"bytes":{shared},\n"cases":[\n{lines}\n]}}\n')


def write_templates():
    fixed_clock()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
    sources = {path.stem: path.read_text() for path in sorted((OUT / "templates").glob("*.jinja"))}
    fields = {name: values for name, values in FIELDS.items() if any(name in used(source) for source in sources.values())}
    chats = [case for case in itertools.islice(Chats(7, fields), 90) if len(json.dumps(case)) < 4000]
    done = []
    for name, source in sources.items():
        answers = []
        for case in chats:
            kind, text = render(tokenizer, source, case)
            refused = kind == "error" and "continue_final_message" in text
            answers.append(f"{fnv(text.encode(), 1):016x}" if kind == "text" else [text] if kind == "raised" else "refused" if refused else None)
        done.append({"name": name, "answers": answers})
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in done)
    inputs = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in chats)
    (OUT / "templates.json").write_text(f'{{"versions":{json.dumps(VERSIONS)},"now":{NOW},"special":{json.dumps(SPECIAL)},\n"chats":[\n{inputs}\n],\n"templates":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    seen = set()
    GENERATED = list(itertools.islice((t for t in Texts(3) if len(t) < 80 and not (t in seen or seen.add(t))), 1000))
    write_vocabularies(json.loads((OUT / "tokenizers.json").read_text())["texts"] + GENERATED)
    write_templates()
