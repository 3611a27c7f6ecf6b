"""kvist beside llama.cpp on the same GGUF files: how far from the weights' own answers, the same ids, the same text?

usage: compare_llama_cpp.py LOGITS KVIST FILE.gguf ...          needs: llama-cpp-python numpy
                                                                and what client_test.py needs

LOGITS is the example of kvist-model (`cargo build --release -p kvist-model --example logits`), KVIST the binary.
For each file, over the same ids (this repository's documents, 256 to a sequence):
- mean KL(reference || kvist), mean KL(reference || llama.cpp), their ratio and how often each has the reference's most
  likely token. The reference is kvist's f32 oracle on the dequantised weights; an F32 file shows how far that is from
  llama.cpp in f32.
- how many of 300 texts of `text_strings.py` become the same ids;
- greedy continuations of chats: the same to the end, or else by how many nats llama.cpp prefers its token to kvist's
  where they part.

llama.cpp has one thread: where the machine is not idle, several take much longer, since they spin.
"""
import itertools
import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import llama_cpp
import numpy as np

from client_test import Server
from text_strings import Texts

ROOT = Path(__file__).resolve().parent.parent
LENGTH, SEQUENCES = 256, 12
TEXTS, TOKENS = 300, 48
QUESTIONS = ["What is a vector?", "What does `Vec::push` do?", "How do I open a file?", "What is a trait?",
             "What does `cargo build` do?", "What is a lifetime?", "What is borrowed data?", "How do threads share data?",
             "What does `Option::map` do?", "What is a slice?", "What is an iterator?", "Hello!"]


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Llama:
    def __init__(self, path):
        self.model = llama_cpp.Llama(path, n_ctx=1024, n_batch=512, n_threads=1, n_threads_batch=1, logits_all=True,
                                     verbose=False)

    def ids(self, text, special):
        return self.model.tokenize(text.encode(), add_bos=False, special=special)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return np.array(self.model.scores[:len(ids)])

    def greedy(self, ids, count, ends):
        """The tokens, and the log-probabilities that each was the best of."""
        out, scores = [], []
        self.model.reset()
        self.model.eval(ids)
        while True:
            scores.append(log_softmax(self.model.scores[self.model.n_tokens - 1]))
            out.append(int(scores[-1].argmax()))
            if len(out) == count or out[-1] in ends:
                return out, scores
            self.model.eval(out[-1:])


def ours(program, path, which, sequences):
    lines = "\n".join(" ".join(map(str, ids)) for ids in sequences)
    done = subprocess.run([program, path, *which], input=lines.encode(), stdout=subprocess.PIPE, check=True,
                          stderr=subprocess.DEVNULL)
    return np.frombuffer(done.stdout, np.float32).reshape(sum(map(len, sequences)), -1)


def divergence(path, program, llama):
    text = "".join((ROOT / name).read_text() for name in ["README.md", "ARCHITECTURE.md", "assets/model/README.md"])
    ids = llama.ids(text, False)
    sequences = [ids[i * LENGTH:(i + 1) * LENGTH] for i in range(min(SEQUENCES, len(ids) // LENGTH))]
    reference = log_softmax(ours(program, path, ["oracle"], sequences))
    kl, same = [], []
    for logits in [ours(program, path, [], sequences), np.concatenate([llama.logits(s) for s in sequences])]:
        other = log_softmax(logits)
        kl.append((np.exp(reference) * (reference - other)).sum(-1).mean())
        same.append((reference.argmax(-1) == other.argmax(-1)).mean())
    ratio = kl[0] / kl[1]
    print(f"{Path(path).stem:8} {len(reference):6} {kl[0]:11.3e} {kl[1]:11.3e} {ratio:7.2f} "
          f"{same[0]:9.2%} {same[1]:9.2%}", end="", flush=True)


def post(server, path, body):
    status, answer = server.post(path, json.dumps(body))
    assert status == 200, answer
    return json.loads(answer)


def tokens(server, llama):
    """llama.cpp does not normalise, as the tokenizer of Qwen 2 does (NFC), whose rules these files name."""
    equal = 0
    samples = list(itertools.islice(Texts(3), TEXTS))
    for text in samples:
        body = {"prompt": text, "add_special_tokens": False}
        equal += post(server, "/tokenize", body)["tokens"] == llama.ids(unicodedata.normalize("NFC", text), True)
    print(f"   ids {equal}/{len(samples)}", end="", flush=True)


def continuations(server, llama):
    """Where the two part, llama.cpp's preference for its own token must be small."""
    whole, gaps = 0, []
    for question in QUESTIONS:
        prompt = f"<|endoftext|><|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = llama.ids(prompt, True)
        body = {"prompt": ids, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
        mine = post(server, "/v1/completions", body)["choices"][0]["token_ids"]
        theirs, scores = llama.greedy(ids, TOKENS, (0, 2))
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), None)
        if at is None:
            whole += 1
        else:
            gaps.append(scores[at][theirs[at]] - scores[at][mine[at]])
    worst = f", else apart by {max(gaps):.4f} nats at most" if gaps else ""
    print(f"   greedy {whole}/{len(QUESTIONS)} the same{worst}")


def main(program, binary, *files):
    print("file     tokens    KL kvist KL llama.cpp  ratio  argmax kvist llama.cpp")
    for path in files:
        llama = Llama(path)
        divergence(path, program, llama)
        server = Server([binary, "serve", path, "--kv-ram", "64MiB"])
        tokens(server, llama)
        continuations(server, llama)
        server.process.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
