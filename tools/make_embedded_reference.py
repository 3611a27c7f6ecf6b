"""Reference log-probabilities of the embedded model over 8,192 teacher-forced positions, for the tests of crates/model.

usage: make_embedded_reference.py CORPUS_DIR [OUT_DIR]     needs: torch transformers safetensors tokenizers numpy
CORPUS_DIR is what tools/training/corpus.py makes of the Rust documentation. OUT_DIR defaults to
crates/model/tests/fixtures/embedded; the README.md beside it documents what is written. Prompts are windows of the held-out
pages and packed chats as in training, drawn with a fixed seed; only token ids and numbers are stored.
"""
import json
import os
import random
import sys

import torch
from safetensors.torch import save_file

import reference

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "training"))
from samples import Samples  # noqa: E402

MODEL = os.path.join(HERE, "..", "assets", "model")
DEFAULT_OUT = os.path.join(HERE, "..", "crates", "model", "tests", "fixtures", "embedded")
PAGES, CHATS = [3000, 1000, 500], [2000, 1000, 500, 128, 64]
TOP, FULL_ROWS = 32, 6  # FULL_ROWS per prompt


def prompts(samples):
    """Token ids: windows of held-out pages, then packed chats cut to length. All inside the model's context."""
    rng, drawn, start = random.Random(8192), [], 0
    for length in PAGES:
        drawn.append(samples.validation[start:start + length])
        start += length
    for length in CHATS:
        ids = []
        while len(ids) < length:
            ids += samples.chat(rng, length)[0]
        drawn.append(ids[:length])
    assert sum(map(len, drawn)) == 8192
    return drawn


def main(corpus, out=DEFAULT_OUT):
    reference.setup()
    os.makedirs(out, exist_ok=True)
    model, rounded = reference.load(MODEL), reference.round_like_bf16_executor(reference.load(MODEL))
    tensors, margins, agree, kls, errors, scope = {}, [], 0, [], [], 0
    for i, ids in enumerate(prompts(Samples(corpus, f"{MODEL}/tokenizer.json"))):
        logits, other = reference.logits(model, ids), reference.logits(rounded, ids)
        argmax, margin = reference.best_two(logits)
        logprobs = logits.double().log_softmax(-1)
        top = logprobs.topk(TOP)
        rest = logprobs.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
        positions = torch.linspace(len(ids) // FULL_ROWS, len(ids) - 1, FULL_ROWS).int()
        top_ids = top.indices.clone()
        top_ids[:, 0] = argmax
        tensors |= {f"{i}.ids": torch.tensor(ids, dtype=torch.int32), f"{i}.argmax": argmax, f"{i}.margin": margin,
                    f"{i}.top_ids": top_ids.to(torch.uint16), f"{i}.top_logprobs": top.values.float(),
                    f"{i}.rest_logprob": rest.float(), f"{i}.positions": positions,
                    f"{i}.logits": logits[positions.long()].clone()}
        error = (other - logits).abs().amax(-1)
        margins.append(margin)
        errors.append(error)
        kls.append(reference.kl(logits, other) * len(ids))
        scope += (margin > 2 * error).sum().item()
        agree += (other.argmax(-1) == argmax).sum().item()
        assert (other.argmax(-1) == argmax)[margin > 2 * error].all()
    save_file(tensors, f"{out}/expected.safetensors")
    count = 8192
    meta = {
        "script": "tools/make_embedded_reference.py", "versions": reference.versions(), "lengths": PAGES + CHATS,
        "median_margin": round(torch.cat(margins).median().item(), 4),
        "bf16_rounding_of_the_reference": {
            "mean_kl": sum(kls) / count, "max_abs_error": round(torch.cat(errors).max().item(), 4),
            "median_abs_error_of_a_row": round(torch.cat(errors).median().item(), 4),
            "argmax_equal": round(agree / count, 4), "share_with_margin_over_twice_own_error": round(scope / count, 4)},
        "sha256": {"assets/model/model.safetensors": reference.digest(f"{MODEL}/model.safetensors"),
                   "expected.safetensors": reference.digest(f"{out}/expected.safetensors")}}
    with open(f"{out}/meta.json", "w") as file:
        json.dump(meta, file, indent=2)
        file.write("\n")
    print(json.dumps(meta, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
