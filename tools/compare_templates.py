#!/usr/bin/env python3
"""Compares kvist's rendering of chat templates with `apply_chat_template` on generated conversations, byte for byte.

    pip install transformers jinja2
    cargo build --release -p kvist-text --example render
    python3 tools/compare_templates.py [--count 300] [--seed 1] TEMPLATE.jinja ...

The models' own templates are in vendor/llama.cpp/models/templates of llama-cpp-python's source archive on PyPI.
Where Hugging Face renders, kvist must give the same bytes; where the template raises, the same message; where it fails
otherwise (Python code in a template that gets something it does not expect), kvist may render. The last line is for LEDGER.md.
"""

import argparse
import collections
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import jinja2
import tokenizers
import transformers

from make_text_fixtures import NOW, fixed_clock
from text_strings import Texts

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Chats:
    """An endless iterator of cases: messages, mode, and perhaps tools and kwargs."""

    def __init__(self, seed, fields):
        self.rng = random.Random(seed)
        self.texts = Texts(seed)
        self.fields = fields

    def __iter__(self):
        return self

    def chance(self, p):
        return self.rng.random() < p

    def text(self, empty=0.08):
        if self.chance(empty):
            return self.rng.choice(["", " ", "\n"])
        text = next(self.texts)
        if self.chance(0.05):
            text = self.rng.choice(["<think>\nhm\n</think>\n\n", "<think>", "</think>", "<tool_response>x</tool_response>"]) + text
        # Characters that this Python does not know yet count as unprintable for it.
        return "".join(c for c in text if unicodedata.category(c) != "Cn")

    def value(self, depth=0):
        kind = self.rng.randrange(10 if depth < 3 else 7)
        match kind:
            case 0 | 1:
                return self.text()
            case 2:
                return self.rng.choice([0, 1, -1, 7, 10**6, 2**31, 2**53 + 1, 2**63 - 1, 2**64 - 1])
            case 3:
                return self.rng.choice([0.5, -0.0, 1.0, 1e-7, 1e16, 1.5e300, 3.141592653589793, 0.1, 1e22, 123456789.125])
            case 4:
                return self.chance(0.5)
            case 5:
                return None
            case 6:
                return self.rng.choice([[], {}, ""])
            case 7 | 8:
                return {self.key(): self.value(depth + 1) for _ in range(self.rng.randrange(4))}
            case _:
                return [self.value(depth + 1) for _ in range(self.rng.randrange(4))]

    def key(self):
        return self.rng.choice(["a", "city", "days", "x_y", "naïve", "b c", "\"q\"", "東京", "items", "keys", "0", "<x>", "limit"])

    def schema(self):
        kind = self.rng.choice(["string", "integer", "number", "boolean", "array", "object", ["string", "null"]])
        out = {"type": kind}
        if self.chance(0.6):
            out["description"] = self.text()
        if kind == "string" and self.chance(0.4):
            out["enum"] = [self.text() for _ in range(2)]
        if kind == "array":
            out["items"] = {"type": self.rng.choice(["string", "integer"])}
        if kind == "object":
            out["properties"] = {self.key(): {"type": "string"}}
        if self.chance(0.2):
            out["default"] = self.value()
        return out

    def tool(self):
        properties = {self.key(): self.schema() for _ in range(self.rng.randrange(4))}
        parameters = {"type": "object", "properties": properties, "required": [k for k in properties if self.chance(0.5)]}
        function = {"name": self.rng.choice(["get_weather", "add", "f", "search_web"]), "description": self.text(0), "parameters": parameters}
        if self.chance(0.15):
            function["return"] = {"type": "string", "description": "what comes back"}
        if self.chance(0.2):
            function["strict"] = True
        return {"type": "function", "function": function}

    def call(self, index):
        arguments = {self.key(): self.value() for _ in range(self.rng.randrange(4))}
        return {"id": self.rng.choice(["abcdefghi", f"call{index:05}", "c1"]), "type": "function", "function": {"name": self.rng.choice(["get_weather", "add", "f"]), "arguments": arguments}}

    def __next__(self):
        messages = []
        if self.chance(0.4):
            messages.append({"role": self.rng.choice(["system"] * 9 + ["developer"]), "content": self.text()})
        turns = 1 + min(int(self.rng.expovariate(0.6)), 6)
        with_tools = self.chance(0.4)
        for turn in range(turns):
            messages.append({"role": "user", "content": self.text()})
            if self.chance(0.04):
                messages.append({"role": "user", "content": self.text()})
            last = turn == turns - 1
            if with_tools and self.chance(0.5):
                calls = [self.call(i) for i in range(self.rng.choice([1, 1, 1, 2, 3]))]
                message = {"role": "assistant", "content": self.text(0.6), "tool_calls": calls}
                if self.chance(0.15):
                    del message["content"]
                if self.chance(0.2):
                    message["reasoning_content"] = self.text()
                messages.append(message)
                for call in calls:
                    content = self.text() if self.chance(0.6) else json.dumps(self.value())
                    answer = {"role": "tool", "content": content}
                    if self.chance(0.7):
                        answer["tool_call_id"] = call["id"]
                    if self.chance(0.7):
                        answer["name"] = call["function"]["name"]
                    messages.append(answer)
                if last and self.chance(0.5):
                    break
            if not last or self.chance(0.4):
                message = {"role": "assistant", "content": self.text()}
                if self.chance(0.15):
                    message["reasoning_content"] = self.text()
                messages.append(message)
        if self.chance(0.03):
            messages.insert(self.rng.randrange(len(messages) + 1), {"role": self.rng.choice(["system", "tool", "ipython", "other", "assistant"]), "content": self.text()})
        case = {"messages": messages, "mode": "plain"}
        if messages[-1]["role"] == "assistant" and messages[-1].get("content") and self.chance(0.6):
            case["mode"] = "continue"
        elif self.chance(0.75):
            case["mode"] = "prompt"
        if with_tools and self.chance(0.9):
            case["tools"] = [self.tool() for _ in range(self.rng.randrange(1, 4))]
        kwargs = {}
        for name, values in self.fields.items():
            if self.chance(0.3):
                kwargs[name] = self.rng.choice(values)
        if kwargs:
            case["kwargs"] = kwargs
        return case


# Variables that templates read, with values to try.
FIELDS = {
    "enable_thinking": [True, False], "thinking": [True, False], "date_string": ["26 Jul 2024"], "tools_in_user_message": [True, False], "builtin_tools": [["brave_search", "code_interpreter"]],
    "add_vision_id": [True], "custom_instructions": ["Be brief."], "xml_tools": [True], "python_tools": [True], "reasoning_effort": ["low", "high"], "model_identity": ["You are a twig."],
    "preserve_thinking": [True, False], "controls": [{"length": "short"}], "citations": [True], "keep_past_thinking": [True, False], "clear_thinking": [True, False],
}


def used(source):
    return {name: values for name, values in FIELDS.items() if name in source}


def render(tokenizer, source, case):
    try:
        text = tokenizer.apply_chat_template(
            case["messages"], tools=case.get("tools"), chat_template=source, tokenize=False, add_generation_prompt=case["mode"] == "prompt",
            continue_final_message=case["mode"] == "continue", **case.get("kwargs", {}))
        return "text", text
    except jinja2.exceptions.TemplateError as e:
        return ("raised" if type(e) is jinja2.exceptions.TemplateError else "error"), str(e)
    except Exception as e:  # noqa: BLE001, whatever Python code in a template may raise
        return "error", f"{type(e).__name__}: {e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="+", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=2, help="differences shown of each template")
    parser.add_argument("--binary", default=ROOT / "target/release/examples/render")
    args = parser.parse_args()
    fixed_clock()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **SPECIAL)
    totals = collections.Counter()
    for path in args.templates:
        source = path.read_text()
        chats = Chats(args.seed, used(source))
        cases = [next(chats) for _ in range(args.count)]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"template": source, "special": SPECIAL, "now": NOW}, file)
            file.flush()
            run = subprocess.run([args.binary, file.name], input="".join(json.dumps(c) + "\n" for c in cases), capture_output=True, text=True)
        if run.returncode:
            print(f"{path.stem}: {run.stderr.strip()}")
            totals["templates that do not load"] += 1
            continue
        answers = [json.loads(line) for line in run.stdout.split("\n") if line]
        counts = collections.Counter()
        for case, answer in zip(cases, answers, strict=True):
            kind, want = render(tokenizer, source, case)
            # Jinja2's refusal to go on with a message that the template does not show is kvist's, too.
            lenient = kind == "error" and "continue_final_message" not in want
            same = answer == [kind, want] if kind != "error" else lenient or answer[0] != "text"
            counts[kind if same else "DIFFERENT"] += 1
            if not same and counts["DIFFERENT"] <= args.show:
                print(f"-- {path.stem} {case['mode']}: Hugging Face {kind}, kvist {answer[0]}")
                at = next((i for i, (a, b) in enumerate(zip(want, answer[1])) if a != b), min(len(want), len(answer[1])))
                at = max(0, at - 60) if kind == answer[0] else 0
                print(f"   {want[at:at + 300]!r}\n   {answer[1][at:at + 300]!r}\n   {json.dumps(case)[:700]}")
        print(f"{path.stem}: {dict(counts)}", flush=True)
        totals.update(counts)
        totals["templates"] += 1
    print(f"templates: {totals['templates']} templates x {args.count} conversations of seed {args.seed}: {dict(totals)} (transformers {transformers.__version__}, jinja2 {jinja2.__version__})")
    sys.exit(1 if totals["DIFFERENT"] else 0)


if __name__ == "__main__":
    main()
