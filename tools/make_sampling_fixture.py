"""Writes crates/engine/tests/fixtures/sampling.json: what transformers' logits processors make of random rows of logits.

    python tools/make_sampling_fixture.py

Needs torch and transformers. The processors are called in vLLM's order. Presence and frequency penalties, which
transformers lacks, follow OpenAI's formula: logit -= count * frequency + (count > 0) * presence.
"""

import json
import math
import random
from pathlib import Path

import torch
import transformers
from transformers.generation import logits_process as hf

VOCAB, STOPS = 24, [0, 7]
OUT = Path(__file__).resolve().parent.parent / "crates/engine/tests/fixtures/sampling.json"

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
       "presence_penalty": 0.0, "frequency_penalty": 0.0, "bias": {}, "allowed": None, "bad_words": [], "min_tokens": 0}
ASKED = [
    {},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7},
    {"presence_penalty": 0.8}, {"presence_penalty": -1.5}, {"frequency_penalty": 0.4}, {"frequency_penalty": -0.6},
    {"bias": {3: 2.5, 11: -100.0, 0: 100.0}},
    {"allowed": [1, 2, 9, 14, 20, 22]},
    {"bad_words": "end"},
    {"min_tokens": 4}, {"min_tokens": 9}, {"min_tokens": 40, "bias": {0: 50.0, 7: 50.0}},
    {"min_p": 0.2}, {"min_p": 1.0}, {"min_p": 0.05, "temperature": 1.7},
    {"top_k": 5, "top_p": 0.8}, {"min_p": 0.1, "top_p": 0.7}, {"min_p": 0.02, "top_k": 9, "top_p": 0.9},
    {"temperature": 0.4, "top_p": 0.6, "repetition_penalty": 1.2},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3, "bias": {5: 1.5, 8: -2.0},
     "min_tokens": 12, "bad_words": "end", "min_p": 0.05, "top_k": 12, "top_p": 0.95, "temperature": 1.2},
    {"repetition_penalty": 1.5, "allowed": [0, 3, 4, 5, 7, 8], "bias": {4: 4.0}, "min_tokens": 30, "temperature": 0.8},
]


def processors(asked, prompt):
    """Up to the temperature, and from there on."""
    first, second = [], []
    if asked["allowed"] is not None:
        first.append(hf.SuppressTokensLogitsProcessor([t for t in range(VOCAB) if t not in asked["allowed"]]))
    if asked["bad_words"]:
        first.append(hf.NoBadWordsLogitsProcessor(asked["bad_words"]))
    if asked["min_tokens"]:
        first.append(hf.MinNewTokensLengthLogitsProcessor(len(prompt), asked["min_tokens"], STOPS))
    if asked["bias"]:
        first.append(hf.SequenceBiasLogitsProcessor({(t,): b for t, b in asked["bias"].items()}))
    if asked["repetition_penalty"] != 1.0:
        first.append(hf.RepetitionPenaltyLogitsProcessor(asked["repetition_penalty"]))
    second.append(hf.TemperatureLogitsWarper(asked["temperature"]))
    if asked["min_p"]:
        second.append(hf.MinPLogitsWarper(asked["min_p"]))
    if asked["top_k"]:
        second.append(hf.TopKLogitsWarper(asked["top_k"]))
    if asked["top_p"] < 1:
        second.append(hf.TopPLogitsWarper(asked["top_p"]))
    return first, second


def case(asked, draw):
    prompt = [draw.randrange(VOCAB) for _ in range(6)]
    output = [draw.choice([2, 5, 8, 11, 14]) for _ in range(9)]
    asked = {**OFF, **asked}
    if asked["bad_words"] == "end":
        asked["bad_words"] = [[4], output[-2:] + [9], [1, 1, 1], output[-1:] + [15], [20, 21]]
    logits = [round(draw.gauss(0, 3), 3) for _ in range(VOCAB)]
    ids, scores = torch.tensor([prompt + output]), torch.tensor([logits])
    first, second = processors(asked, prompt)
    for processor in first:
        scores = processor(ids, scores)
    counts = torch.tensor([[output.count(t) for t in range(VOCAB)]], dtype=torch.float32)
    scores = scores - counts * asked["frequency_penalty"] - (counts > 0).float() * asked["presence_penalty"]
    adjusted = scores[0].tolist()
    for processor in second:
        scores = processor(ids, scores)
    probabilities = scores.softmax(-1)[0].tolist()
    plain = lambda x: None if math.isinf(x) else float(f"{x:.7g}")
    return {**asked, "bias": list(asked["bias"].items()), "prompt": prompt, "output": output, "logits": logits,
            "adjusted": [plain(x) for x in adjusted], "probabilities": [float(f"{p:.6g}") for p in probabilities]}


def main():
    draw = random.Random(3)
    head = {"made_by": "tools/make_sampling_fixture.py", "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0], "stops": STOPS}
    cases = ",\n".join(json.dumps(case(asked, draw), separators=(",", ":")) for asked in ASKED)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(head)[:-1] + f', "cases": [\n{cases}\n]}}\n')


if __name__ == "__main__":
    main()
