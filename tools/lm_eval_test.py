"""EleutherAI's lm-eval against a running kvist server: loglikelihoods through /v1/completions, tokens from /tokenize.

usage: lm_eval_test.py KVIST_BINARY [QUESTIONS]     needs: lm-eval[api]
A multiple-choice task is made of the first lines of this repository's own documents: which of four endings is the
true one? Every loglikelihood that lm-eval reports must be the sum that kvist gives for the same token ids, asked for
one by one, to the last bit; and the accuracy that follows.
"""
import json
import os
import random
import re
import sys
import tempfile
from pathlib import Path

from client_test import Server

ROOT = Path(__file__).parent.parent


def questions(count):
    """(context, four endings, index of the true one), the same at each run."""
    text = " ".join((ROOT / name).read_text() for name in ["ARCHITECTURE.md", "README.md"])
    sentences = [s.split() for s in re.split(r"(?<=[.;:])\s+", re.sub(r"[`|*#]", " ", text))]
    sentences = [s for s in sentences if len(s) >= 10]
    draw = random.Random(1)
    for i in range(count):
        words = sentences[i % len(sentences)]
        cut = draw.randrange(4, len(words) - 3)
        endings = [" ".join(words[cut:])]
        endings += [" ".join(other[-len(words[cut:]):]) for other in draw.sample(sentences, 3)]
        gold = draw.randrange(4)
        endings[0], endings[gold] = endings[gold], endings[0]
        yield {"question": " ".join(words[:cut]), "choices": endings, "gold": gold}


def own(server, context, ending):
    """The same loglikelihood by one request for token ids."""
    def ids(text):
        status, body = server.post("/tokenize", json.dumps({"prompt": text, "add_special_tokens": False}))
        assert status == 200, body
        return json.loads(body)["tokens"]

    whole, head = ids(context + ending), len(ids(context))
    body = {"prompt": whole, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
    status, answer = server.post("/v1/completions", json.dumps(body))
    assert status == 200, answer
    return sum(json.loads(answer)["choices"][0]["logprobs"]["token_logprobs"][head:-1])


def main(binary, count=60):
    server = Server([binary, "serve"])
    with tempfile.TemporaryDirectory() as home:
        os.environ.update({"HF_HOME": home, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"})
        import lm_eval
        from lm_eval.tasks import TaskManager

        with open(f"{home}/questions.jsonl", "w") as file:
            file.writelines(json.dumps(q) + "\n" for q in questions(int(count)))
        Path(home, "endings.yaml").write_text(f"""
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {home}/questions.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
""")
        try:
            result = lm_eval.simple_evaluate(
                model="local-completions",
                model_args={"base_url": f"{server.url}/v1/completions", "model": "kvist", "num_concurrent": 4,
                            "max_length": 1024, "tokenized_requests": True},
                tasks=["endings"], task_manager=TaskManager(include_path=home, include_defaults=False),
                log_samples=True, bootstrap_iters=0)
            compared, right = 0, 0
            for sample in result["samples"]["endings"]:
                sums = []
                for (context, ending), [[theirs, _]] in zip(
                        [a.values() if isinstance(a, dict) else a for a in arguments(sample)], sample["resps"]):
                    ours = own(server, context, ending)
                    assert float(theirs) == ours, f"{theirs} != {ours} for {context!r} + {ending!r}"
                    sums.append(ours)
                    compared += 1
                right += sums.index(max(sums)) == sample["doc"]["gold"]
            accuracy = result["results"]["endings"]["acc,none"]
            assert abs(accuracy - right / len(result["samples"]["endings"])) < 1e-9, (accuracy, right)
            print(f"ok      lm-eval: {compared} loglikelihoods are equal, accuracy {accuracy:.3f}")
        finally:
            server.process.terminate()
            server.process.wait()


def arguments(sample):
    """(context, ending) of a sample's requests."""
    given = sample["arguments"]
    return list(given.values()) if isinstance(given, dict) else given


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
