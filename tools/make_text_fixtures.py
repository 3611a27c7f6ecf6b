#!/usr/bin/env python3
"""Writes crates/text/tests/fixtures: what Hugging Face `tokenizers` and `transformers` make of many texts and chats.

    pip install tokenizers transformers jinja2        # no torch needed
    python3 tools/make_text_fixtures.py

Three tiny tokenizers are trained here on a few sentences: one of the Llama 2 kind (metaspace, byte fallback), one of the
Llama 3 kind, one of the Qwen 2 kind. The last two, and variants, differ from a base file only in a `patch` of sections.
"""

import datetime
import json
import pathlib
import random

import jinja2
import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.utils import chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/text/tests/fixtures"
VERSIONS = {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "jinja2": jinja2.__version__}
FULL = 100  # texts whose ids are written out; of the others a hash
NOW = 1_774_915_384  # 2026-03-31 00:03:04 UTC

SENTENCES = """The prefix tree keeps one chunk for every sixty-four tokens, and every request that shares it reads it once.
If you don't know what it'll do, you've only to ask; I'm sure they're here, aren't they? She'd said so, and he'll agree.
fn push(&mut self, value: T) { if self.len == self.buf.capacity() { self.buf.grow_one(); } unsafe { self.end().write(value) } }
def main():\n    for i in range(10):\n        print(f"{i:>3} {i ** 2}")\n\n\nif __name__ == "__main__":\n    main()
In 2024 there were 1,234,567 visitors: 12 a minute, 3.14159 each, 100% of them before 08:30.
Kvisten bär sju små gröna äpplen och åtta röda körsbär.  Der Ast trägt süße Früchte. Les élèves où naïve façade.
Ветка дерева хранит каждый ключ только один раз. Η ρίζα είναι κοινή. الشجرة تحفظ كل مفتاح مرة واحدة. העץ שומר כל מפתח.
树枝只保存一次键和值。枝はキーと値を一度だけ保存します。나뭇가지는 키와 값을 한 번만 저장합니다. हर शाखा एक बार।
""".replace("\\n", "\n")


def fnv(values, width=4):
    """FNV-1a, 64 bits, of little-endian integers."""
    h = 0xCBF29CE484222325
    for value in values:
        for byte in int(value).to_bytes(width, "little"):
            h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def texts():
    rng = random.Random(20240229)
    words = SENTENCES.split()
    odd = [
        "", " ", "  ", "\n", "\n\n", " \n \n", "\t\t\tx", "   x", "x   ", "\r\n\r\n", "a\r\nb", "\u00a0\u00a0", "\u3000全角",
        "\ufeffbom", "\u200b", "e\u0301", "\u00e9", "A\u030a", "\u212b", "\u1100\u1161\u11a8", "ﬁ", "①", "½", "Ⅷ",
        "👍", "👍🏽", "👩‍👩‍👧‍👦", "🇸🇪", "🏴\U000e0067\U000e0062\U000e007f", "\U0001f9d1\u200d\U0001f4bb", "𝒳", "\U0010ffff",
        "\x00", "\x01\x02", "\x7f", "\x1c", "\u0085", "\u2028", "▁", "▁▁a", "Ġ", "Ċ", "<0x41>", "<0xE6>", "<unk>", "<s>", "</s>",
        "<s>Hello</s>", " <s> x", "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<|begin_of_text|><|begin_of_text|>",
        "<|eot_id|>", "<|im_end", "|im_end|>", "<think>\n\n</think>\n\n", "a<think>b", "<tool_call>{}</tool_call>",
        "1", "12", "123", "1234", "1234567890", "1 234", "٣٤٥", "१२३४", "0x1F", "3.14e-10", "don't DON'T Don’t", "I'LL we'Ve",
        "'s", "''s", "a'", "foo_bar fooBar FOO", "a.b,c;d:e!f?g", "...", "!!!???", "-----", "=====", "/*c*/", "http://a.b/c?d=e&f#g",
        "a@b.c", "$5.00", "#tag", "tab\tsep", "x\n\ny", "x \n y", "x\n \ny", "\n x", " x", "  x", "   \n   x", "x  \n\n  y\n",
        "[INST] hi [/INST]", "<<SYS>>", "ñandú", "Straße", "ΑΒΓ αβγ ς", "İstanbul", "ﷺ", "क्षत्रिय", "ไทย", "မြန်မာ", "🙂🙃" * 5,
        "a" * 100, " " * 64, "\n" * 40, "ab" * 60, "x" + " " * 17 + "y", "\t" * 9, "日本語" * 20, "0" * 33, "é" * 30,
    ]
    ranges = [(0x20, 0x7F), (0xA0, 0x180), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x2000, 0x2070), (0x20A0, 0x2200),
              (0x3040, 0x3100), (0x4E00, 0x9FA0), (0xAC00, 0xD7A4), (0xFB00, 0xFB50), (0x1F300, 0x1FA00), (0, 0x20), (0x300, 0x370)]
    def char():
        lo, hi = rng.choice(ranges)
        return chr(rng.randrange(lo, hi))
    out, seen = [], set()
    def add(text):
        if text not in seen:
            seen.add(text)
            out.append(text)
    for text in odd:
        add(text)
    while len(out) < 3000:
        kind = rng.randrange(6)
        if kind == 0:
            add(" ".join(rng.choice(words) for _ in range(rng.randrange(1, 8))))
        elif kind == 1:
            add("".join(char() for _ in range(rng.randrange(1, 12))))
        elif kind == 2:
            add("".join(rng.choice([" ", "  ", "\n", "\t", "\r\n"]) + rng.choice(words) for _ in range(rng.randrange(1, 6))))
        elif kind == 3:
            add("".join(rng.choice([rng.choice(words), char(), str(rng.randrange(10 ** rng.randrange(1, 7))), " ", rng.choice(odd)[:12]])
                        for _ in range(rng.randrange(2, 7))))
        elif kind == 4:
            at = rng.randrange(len(SENTENCES) - 50)
            add(SENTENCES[at : at + rng.randrange(1, 50)])
        else:
            add(rng.choice(odd) + rng.choice(words) + rng.choice(odd))
    return [t for t in out if len(t) <= 120]


def special(id, content, **kw):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **kw}


def template_processing(token, id):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}}


def spm_base():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    latin = SENTENCES[: SENTENCES.index("Ветка")]  # other scripts are left to byte fallback
    t.train_from_iterator([latin], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    trained = json.loads(t.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    pieces += [p for p in sorted(trained["vocab"], key=trained["vocab"].get) if p not in pieces]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": template_processing("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {p: i for i, p in enumerate(pieces)}, "merges": [list(m) for m in trained["merges"]]},
    }


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def split(regex):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}


def byte_base():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator([SENTENCES], trainers.BpeTrainer(
        vocab_size=520, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    base = json.loads(t.to_str())
    n = len(base["model"]["vocab"])
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    base["added_tokens"] = [special(n + i, name) for i, name in enumerate(names)]
    base["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        template_processing("<|begin_of_text|>", n)]}
    return base


def tokenizer_cases():
    spm, byte = spm_base(), byte_base()
    n = len(byte["model"]["vocab"])
    qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    qwen_patch = {
        "added_tokens": [special(n + i, t) for i, t in enumerate(qwen)]
        + [special(n + 3 + i, t, special=False) for i, t in enumerate(plain)],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": split(QWEN2),
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    }
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return {
        "embedded": ("assets/model/tokenizer.json", {}),
        "llama2": ("spm.json", {}),
        "llama2-metaspace": ("spm.json", {"normalizer": None, "pre_tokenizer": metaspace}),
        "metaspace": ("spm.json", {"normalizer": None, "pre_tokenizer": {**metaspace, "prepend_scheme": "always", "split": True},
                                   "decoder": {**metaspace, "prepend_scheme": "always", "split": True}, "post_processor": None}),
        "llama3": ("bytes.json", {}),
        "qwen2": ("bytes.json", qwen_patch),
    }, {"spm.json": spm, "bytes.json": byte}


def random_ids(rng, t, byte_level):
    """Ids whose text does not depend on how a decoder treats broken UTF-8: bytes come as whole characters."""
    size = t.get_vocab_size()
    ids = []
    for _ in range(rng.randrange(1, 16)):
        if byte_level:
            ids.append(rng.randrange(size + 5))
        elif rng.randrange(3) == 0:
            ids += [3 + b for b in rng.choice("aé€👍 树\n").encode()]
        else:
            ids.append(rng.choice([rng.randrange(3), rng.randrange(259, size + 5)]))
    return ids


def write_tokenizers(strings):
    cases, bases = tokenizer_cases()
    for name, base in bases.items():
        (OUT / name).write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    done = []
    for name, (path, patch) in cases.items():
        base = bases.get(path) or json.loads((ROOT / path).read_text())
        t = Tokenizer.from_str(json.dumps({**base, **patch}))
        rng = random.Random(name)
        encoded = {special: [t.encode(s, add_special_tokens=special).ids for s in strings] for special in (False, True)}
        # Without a broken run of byte tokens, which `tokenizers` and UTF-8 decoders at large replace differently.
        sequences = [random_ids(rng, t, "ByteLevel" in json.dumps(base["decoder"])) for _ in range(120)] + encoded[True][:60]
        done.append({
            "name": name, "base": path, "patch": patch, "vocab": max(t.get_vocab().values()) + 1,
            "ids": encoded[False][:FULL],
            "hashes": [f"{fnv(ids):016x}"[-8:] for ids in encoded[False]],
            "special_hash": f"{fnv(i for ids in encoded[True] for i in [len(ids), *ids]):016x}",
            "decode": [[ids, t.decode(ids, skip_special_tokens=False), t.decode(ids, skip_special_tokens=True)] for ids in sequences],
        })
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in done)
    texts_json = json.dumps(strings, ensure_ascii=False, separators=(",", ":"))
    (OUT / "tokenizers.json").write_text(
        f'{{"versions":{json.dumps(VERSIONS)},\n"texts":{texts_json},\n"cases":[\n{lines}\n]}}\n')


LLAMA2_CHAT = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}\
{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA31_CHAT = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message comes first #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "You can call these functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("No user message to put the tools into") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Answer with a JSON call of one of these functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("Only one tool call at once, got " ~ message.tool_calls|length) }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

SMOLLM2_CHAT = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ZEPHYR_CHAT = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

QWEN25_CHAT = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nFunction signatures are within <tools></tools> XML tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3_CHAT = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# Not of any one model: what else templates in the field use.
FEATURES = """{%- macro turn(role, text, end='<e>') -%}
<{{ role | upper }}>{{ text | trim }}{{ end }}
{%- endmacro -%}
{%- set ns = namespace(n=0, seen=[]) -%}
{% for m in messages %}
  {% if m.role == 'skip' %}{% continue %}{% endif %}
  {% if m.role == 'end' %}{% break %}{% endif %}
  {% set ns.n = ns.n + 1 %}
  {% generation %}
{{ turn(m.role, m.content or 'none') }}|{{ m.name | default('anon') }}|{{ m.get('x', 7) }}|{{ loop.index }}/{{ loop.length }}
  {%- endgeneration %}
{% endfor %}
{{ ns.n }} {{ none }} {{ true }} {{ 1.0 }} {{ 1.5 | round | int }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ -3 // 2 }}
{{ {'a': [1, 2.0, true, none], 'b': {'c': '\\u00e9<>&\\'"'}} | tojson }}
{{ {'b': 1, 'a': []} | tojson(indent=2) }} {{ ['é', {}] | tojson(ensure_ascii=true) }}
{{ {'z': 1, 'y': [1, 2]} | tojson(separators=(',', ':'), sort_keys=true) }}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}
{{ 'x' in 'xyz' }} {{ 'role' in messages[0] }} {{ messages[-1].role }} {{ 'a-b-c'.split('-') | last }} {{ 'abc'[::-1] }} {{ 'abc'[1:] }}
{{ messages[0].missing is defined }} {{ messages[0].missing }}{{ (messages[0].missing or 'd') ~ 1 }} {{ 'é'.upper() }} {{ '  x '.rstrip() }}|
{% set block %}  kept {{ 1 + 1 }}
{% endset %}{{ block }}{%- for k, v in {'a': 1, 'b': 2}.items() if k != 'a' %}{{ k }}={{ v }}{% else %}empty{% endfor %}
{% filter upper %}low{% endfilter %}{# comment #} {{ 'a' if false }}{{ "q" if true else "r" }}
    {% if 1 is number and 'a' is string and messages is iterable and {} is mapping and none is none -%}
    types
    {%- endif %}
{% raw %}{{ raw }}{% endraw %} {{ "%s and %d" | format("x", 3) }} {{ 'a,b'.replace(',', ';') }} {{ 'ab'.title() }} {{ [3, 1, 2] | sort | join }}
{%- for m in messages %}{% if loop.previtem is defined and loop.previtem.role == m.role %}={% else %}!{% endif %}{% if loop.nextitem is not defined %}.{% endif %}{% endfor %}
{{ strftime_now('%Y-%m-%d %H:%M:%S %A %j') }} {{ eos_token }}{{ unk_token }} {{ tools is none }} {{ documents is none }} {{ flag is defined and flag }}
"""

TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Väder för en <stad> & \"land\"",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Malmö", "東京"]}, "days": {"type": "integer", "default": 3},
                   "limit": {"type": "number", "default": 1e-7, "maximum": 1e16}}, "required": ["city"], "strict": None, "x": [], "y": {}}}}]


def chats():
    def m(role, content, **kw):
        return {"role": role, "content": content, **kw}
    call = {"type": "function", "id": "c1", "function": {"name": "get_weather", "arguments": {"city": "Malmö", "days": 2, "f": 0.5}}}
    plain = [m("user", "Hello")]
    system = [m("system", " Be brief.\n"), m("user", "  Vad är 1+1?\n"), m("assistant", " Två 🙂 \n\n"), m("user", "{{ 7*7 }} {% raise %} <b>&amp;</b>")]
    tools = [m("system", "S"), m("user", "Weather?"), m("assistant", None, tool_calls=[call]), m("tool", "{\"t\": 3}", name="get_weather"),
             m("assistant", "It is 3."), m("user", "thanks")]
    no_null = [{**x, "content": x["content"] or ""} for x in tools]
    two = [m("user", "a"), m("assistant", "x", tool_calls=[call, call]), m("tool", "1"), m("tool", "2"), m("user", "b")]
    think = [m("user", "q1"), m("assistant", "<think>\nhm\n</think>\n\nans1"), m("user", "q2"), m("assistant", "ans2", reasoning_content="deep"),
             m("user", "q3"), m("assistant", "<think>\nlast\n</think>\n\nans3")]
    twice = [m("user", "a"), m("user", "b")]
    loops = [m("user", " hi ", name="Åsa"), m("skip", "no"), m("assistant", ""), m("assistant", "x", x=3), m("end", ""), m("user", "never")]
    every = [plain, system, tools, no_null, two, think, twice, loops]
    llama = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    llama3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    im = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    yield "llama2", LLAMA2_CHAT, llama, every, [{}]
    yield "llama31", LLAMA31_CHAT, llama3, every, [{}, {"tools": TOOLS}, {"tools": TOOLS, "kwargs": {"tools_in_user_message": False, "date_string": "1 Jan 2025"}}]
    yield "smollm2", SMOLLM2_CHAT, {"bos_token": "<|im_start|>", **im}, every, [{}]
    yield "zephyr", ZEPHYR_CHAT, llama, every, [{}]
    yield "qwen25", QWEN25_CHAT, im, every, [{}, {"tools": TOOLS}]
    yield "qwen3", QWEN3_CHAT, im, every, [{}, {"tools": TOOLS}, {"kwargs": {"enable_thinking": False}}, {"kwargs": {"enable_thinking": True}}]
    yield "features", FEATURES, llama, every, [{}, {"tools": TOOLS, "kwargs": {"flag": True}}]


def fixed_clock():
    """Makes `strftime_now` tell NOW."""
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)
    chat_template_utils.datetime = Clock


def write_chats():
    fixed_clock()
    templates = []
    for name, source, special_tokens, conversations, options in chats():
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special_tokens)
        cases = []
        for option in options:
            for index, messages in enumerate(conversations):
                for mode in ("prompt", "plain", "continue") if option is options[0] else ("prompt",):
                    case = {"chat": index, "mode": mode, **option}
                    try:
                        case["text"] = tokenizer.apply_chat_template(
                            messages, tools=option.get("tools"), chat_template=source, tokenize=False,
                            add_generation_prompt=mode == "prompt", continue_final_message=mode == "continue",
                            **option.get("kwargs", {}))
                    except jinja2.exceptions.TemplateError as e:
                        case["raised" if type(e) is jinja2.exceptions.TemplateError else "fails"] = str(e)
                    except (TypeError, ValueError) as e:
                        case["fails"] = str(e).split("\n")[0][:80]
                    cases.append(case)
        every = conversations
        templates.append({"name": name, "template": source, "special": special_tokens, "cases": cases})
    lines = ",\n".join(json.dumps(t, ensure_ascii=False, separators=(",", ":")) for t in templates)
    (OUT / "chats.json").write_text(f'{{"versions":{json.dumps(VERSIONS)},"now":{NOW},\n"chats":{json.dumps(every, ensure_ascii=False)},\n"templates":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write_tokenizers(texts())
    write_chats()
