"""Judges what grammars let through, with the `jsonschema` package: random walks over the masks of JSON-Schema-Test-Suite's
schemas must validate, and its own instances must be let through or not as it says.

    pip install jsonschema==4.26.0
    pip download --no-deps --no-binary :all: jsonschema==4.26.0 && tar xf jsonschema-4.26.0.tar.gz
    cargo build --release -p kvist-text --example grammar_walk
    python tools/check_grammar.py target/release/examples/grammar_walk jsonschema-4.26.0/json [--walks 20] [--seed 1]

Prints a line per keyword. Exit code 1 if anything invalid came through. Not counted as wrong: valid instances that are
not let through, since properties come in one order, integers without a point, and formats are enforced.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import sys

import jsonschema

FORMATS = "date-time time date duration email hostname ipv4 ipv6 uuid uri".split()
ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("suite", type=pathlib.Path)
    parser.add_argument("--walks", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    groups = []
    for path in sorted((args.suite / "tests/draft2020-12").glob("**/*.json")):
        name = str(path.relative_to(args.suite / "tests/draft2020-12").with_suffix(""))
        # Formats that are not enforced are annotations, as the specification has it.
        if not name.startswith("optional/format/") or path.stem in FORMATS:
            groups += [(name, group) for group in json.loads(path.read_text())]

    def line(group):
        texts = [json.dumps(t["data"], separators=(",", ":"), ensure_ascii=False) for t in group["tests"]]
        options = {"walks": args.walks, "tokens": args.tokens, "seed": args.seed}
        return json.dumps({"schema": group["schema"], "texts": texts, **options})

    lines = "".join(line(group) + "\n" for _, group in groups)
    command = [args.binary, str(ROOT / "assets/model/tokenizer.json")]
    out = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout
    counts = collections.defaultdict(collections.Counter)
    wrong = []
    for (name, group), result in zip(groups, map(json.loads, out.strip("\n").split("\n")), strict=True):
        count = counts[name]
        if "refused" in result:
            count["refused"] += 1
            continue
        count["compiled"] += 1
        for test, accepted in zip(group["tests"], result["accepted"], strict=True):
            count[f"{'valid' if test['valid'] else 'invalid'} {'in' if accepted else 'out'}"] += 1
            if accepted and not test["valid"]:
                wrong.append((name, group["description"], test["description"]))
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER if "/format/" in name else None
        validator = jsonschema.Draft202012Validator(group["schema"], format_checker=checker)
        for text in result["walks"]:
            count["walks"] += 1
            try:
                if not validator.is_valid(json.loads(text)):
                    wrong.append((name, group["description"], text))
            except re.error:  # a pattern that Python does not know, as \\p{L}
                count["unjudged"] += 1
        count["cut"] += result["cut"]
        wrong += [(name, group["description"], error) for error in result["failed"]]
    columns = ["compiled", "refused", "valid in", "valid out", "invalid in", "invalid out", "walks", "cut", "unjudged"]
    print(f"{'':45}", *(f"{c:>12}" for c in columns))
    total = collections.Counter()
    for name, count in counts.items():
        total.update(count)
        print(f"{name:45}", *(f"{count[c]:12}" for c in columns))
    print(f"{'total':45}", *(f"{total[c]:12}" for c in columns))
    for case in wrong:
        print("WRONG", *case, sep=" | ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
