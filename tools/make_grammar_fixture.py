"""Picks the cases of JSON-Schema-Test-Suite that `crates/text/tests/grammar.rs` runs.

The suite travels in the source distribution of the `jsonschema` package on PyPI:

    pip download --no-deps --no-binary :all: jsonschema==4.26.0 && tar xf jsonschema-4.26.0.tar.gz
    python tools/make_grammar_fixture.py jsonschema-4.26.0/json crates/text/tests/fixtures/json_schema_suite.json
"""

import json
import pathlib
import sys

# Every keyword that can be enforced, and of those that are refused enough to see how.
FILES = """additionalProperties allOf anchor anyOf boolean_schema const default defs enum exclusiveMaximum
exclusiveMinimum format if-then-else infinite-loop-detection items maxItems maxLength maxProperties maximum minItems
minLength minProperties minimum multipleOf not oneOf pattern patternProperties prefixItems properties propertyNames ref
required type uniqueItems""".split()


def main(suite, out):
    suite = pathlib.Path(suite)
    cases = []
    for name in FILES:
        for group in json.loads((suite / "tests/draft2020-12" / f"{name}.json").read_text()):
            tests = [{"data": t["data"], "valid": t["valid"]} for t in group["tests"]]
            cases.append(
                {"keyword": name, "description": group["description"], "schema": group["schema"], "tests": tests}
            )
    head = {
        "source": "JSON-Schema-Test-Suite, draft2020-12, as in jsonschema 4.26.0 on PyPI",
        "license": (suite / "LICENSE").read_text(),
    }
    lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
    text = json.dumps(head, ensure_ascii=False, indent=1)[:-2] + f',\n "cases": [\n{lines}\n]}}\n'
    pathlib.Path(out).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
