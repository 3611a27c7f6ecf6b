"""The openai Python SDK against a running kvist server.

usage: client_test.py KVIST_BINARY [MODEL_DIR]     needs: openai, jsonschema
Starts `KVIST_BINARY serve` on a free port, checks what clients rely on, stops it with SIGTERM. One line per check, then
"N passed, N failed"; the exit code is 1 if any failed. No check depends on time, except that things end at all.
"""
import asyncio
import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing
import urllib.request

import jsonschema
import openai
import pydantic

CHECKS = []
QUESTION = [{"role": "user", "content": "What does `Vec::push` do?"}]
GREEDY = {"temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}


def check(function):
    CHECKS.append(function)
    return function


def equal(left, right):
    assert left == right, f"{left!r} != {right!r}"


class Server:
    """The process under test."""

    def __init__(self, command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVIST_")}
        # Nothing is found that an earlier run kept, and nothing is left behind.
        self.home = tempfile.TemporaryDirectory()
        environment |= {"XDG_CACHE_HOME": self.home.name, "XDG_CONFIG_HOME": self.home.name}
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=self.output, stderr=self.output,
                                        env=environment)
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        self.process.kill()
        raise SystemExit(f"the server did not get ready:\n{self.log()}")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path, body):
        """(status, text) of a raw body, past the SDK's own checks."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        result = answer.status, answer.read().decode()
        connection.close()
        return result

    def metric(self, name):
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics")[1], re.M)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def log(self):
        self.output.flush()
        self.output.seek(0)
        return self.output.read()[-4000:]


class Bench:
    """What a check gets: the server, a client, and shorthands."""

    def __init__(self, server):
        self.server = server
        self.client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.fresh = 0

    def chat(self, messages=QUESTION, **options):
        return self.client.chat.completions.create(model="any", messages=messages, **{**GREEDY, **options})

    def complete(self, prompt, **options):
        return self.client.completions.create(model="any", prompt=prompt, **{**GREEDY, **options})

    def told(self, **options):
        """A chat whose tokens are told by id, each with the 20 likeliest ones."""
        extra = {"ignore_eos": True, "return_token_ids": True, "return_tokens_as_token_ids": True}
        options["extra_body"] = {**extra, **options.get("extra_body", {})}
        return self.chat(logprobs=True, top_logprobs=20, **options)

    def post(self, path, body):
        status, text = self.server.post(path, json.dumps(body))
        equal((path, status), (path, 200))
        return json.loads(text)

    def tokenise(self, body):
        return self.post("/tokenize", body)

    def nonce(self):
        """Words that no earlier prompt of this run began with."""
        self.fresh += 1
        return f"Case {self.fresh}. "

    def refused(self, status, call, **options):
        """The error object of a request that must fail with `status`."""
        try:
            call(**options)
        except openai.APIStatusError as error:
            equal(error.status_code, status)
            body = error.response.json()["error"]
            equal(set(body), {"message", "type", "param", "code"})
            assert body["message"] and body["type"]
            return body
        raise AssertionError("the request was accepted")


@check
def models_are_listed(b):
    models = b.client.models.list().data
    equal(len(models), 1)
    equal(b.client.models.retrieve(models[0].id).id, models[0].id)
    b.refused(404, b.client.models.retrieve, model="no-such-model")


@check
def any_model_name_is_served_and_the_real_id_returned(b):
    real = b.client.models.list().data[0].id
    equal(b.client.chat.completions.create(model="gpt-4o", messages=QUESTION, max_tokens=1).model, real)
    equal(b.client.completions.create(model="davinci", prompt="a", max_tokens=1).model, real)


@check
def plain_chat(b):
    answer = b.chat()
    equal(answer.object, "chat.completion")
    equal(len(answer.choices), 1)
    choice = answer.choices[0]
    equal((choice.index, choice.message.role, choice.finish_reason), (0, "assistant", "length"))
    assert choice.message.content and choice.logprobs is None
    usage = answer.usage
    equal(usage.completion_tokens, GREEDY["max_tokens"])
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert answer.id and abs(answer.created - time.time()) < 600


@check
def content_as_parts_equals_content_as_a_string(b):
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    equal(b.chat(parts).choices[0].message.content, b.chat().choices[0].message.content)


@check
def a_chat_without_max_tokens_ends_by_itself(b):
    answer = b.client.chat.completions.create(model="any", messages=QUESTION, temperature=0)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert "<|im_end|>" not in answer.choices[0].message.content


@check
def max_tokens_in_both_spellings(b):
    for n in (1, 7):
        equal(b.chat(max_tokens=n).usage.completion_tokens, n)
        answer = b.client.chat.completions.create(model="any", messages=QUESTION, max_completion_tokens=n,
                                                  extra_body={"ignore_eos": True})
        equal(answer.usage.completion_tokens, n)
    answer = b.client.completions.create(model="any", prompt="Rust is", extra_body={"ignore_eos": True})
    equal(answer.usage.completion_tokens, 16)


@check
def a_stream_says_what_the_plain_answer_says(b):
    chunks = list(b.chat(stream=True))
    assert all(chunk.object == "chat.completion.chunk" and chunk.id == chunks[0].id for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    equal(chunks[0].choices[0].delta.role, "assistant")
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    equal(reasons, [None] * (len(chunks) - 1) + ["length"])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    equal(text, b.chat().choices[0].message.content)
    assert len(chunks) > 5


@check
def the_bytes_of_a_stream(b):
    body = {"messages": QUESTION, "max_tokens": 4, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}}
    status, text = b.server.post("/v1/chat/completions", json.dumps(body))
    equal(status, 200)
    events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    equal(events[-1], "data: [DONE]")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    for chunk in chunks[:-1]:
        assert chunk.get("usage") is None
        assert "finish_reason" in chunk["choices"][0]
    equal(chunks[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
    equal((chunks[-2]["choices"][0]["delta"], chunks[-2]["choices"][0]["finish_reason"]), ({}, "length"))
    equal(chunks[-1]["choices"], [])
    equal(chunks[-1]["usage"]["completion_tokens"], 4)


@check
def include_usage_adds_one_last_chunk(b):
    chunks = list(b.chat(stream=True, stream_options={"include_usage": True}))
    equal(chunks[-1].choices, [])
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks[:-1])
    usage = chunks[-1].usage
    equal(usage.completion_tokens, GREEDY["max_tokens"])
    assert usage.prompt_tokens_details.cached_tokens is not None
    chunks = list(b.complete("Rust is", stream=True, stream_options={"include_usage": True}))
    equal((chunks[-1].choices, chunks[-1].usage.completion_tokens), ([], GREEDY["max_tokens"]))


@check
def the_streaming_helper_of_the_sdk(b):
    full = b.chat().choices[0].message.content
    stop = full[len(full) // 2:][:5]  # the helper takes an answer that ends by length for an error
    with b.client.chat.completions.stream(model="any", messages=QUESTION, stop=stop, **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    equal(final.choices[0].message.content, full[:full.index(stop)])


@check
def several_choices(b):
    answer = b.chat(n=2, temperature=1.0, seed=5)
    equal([choice.index for choice in answer.choices], [0, 1])
    equal(answer.usage.completion_tokens, 2 * GREEDY["max_tokens"])
    texts = [choice.message.content for choice in answer.choices]
    assert texts[0] != texts[1], "both choices drew the same tokens"
    equal(texts, [choice.message.content for choice in b.chat(n=2, temperature=1.0, seed=5).choices])
    streamed, reasons = ["", ""], [[], []]
    for chunk in b.chat(n=2, temperature=1.0, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index].append(choice.finish_reason)
    equal((streamed, reasons), (texts, [["length"], ["length"]]))
    greedy = b.chat(n=3)
    equal(len({choice.message.content for choice in greedy.choices}), 1)


@check
def a_seed_draws_the_same_again(b):
    draw = lambda seed: b.chat(temperature=1.2, seed=seed).choices[0].message.content
    first = draw(11)
    equal(draw(11), first)
    assert draw(12) != first
    equal(b.chat(temperature=1.2, seed=11, extra_body={"ignore_eos": True, "top_k": 1}).choices[0].message.content,
          b.chat().choices[0].message.content)


def check_chat_logprobs(content, text, top):
    shown = [token for token in content if not token.token.startswith("<|")]  # text leaves special tokens out
    equal(bytes(byte for token in shown for byte in token.bytes).decode(), text)
    for token in content:
        assert token.logprob <= 0
        equal(len(token.top_logprobs), top)
        logprobs = [entry.logprob for entry in token.top_logprobs]
        equal(logprobs, sorted(logprobs, reverse=True))
        assert sum(map(math.exp, logprobs)) <= 1 + 1e-5
        if top:
            equal((token.top_logprobs[0].token, token.top_logprobs[0].logprob), (token.token, token.logprob))


@check
def chat_logprobs(b):
    for top in (0, 5, 20):
        choice = b.chat(logprobs=True, top_logprobs=top).choices[0]
        equal(len(choice.logprobs.content), GREEDY["max_tokens"])
        check_chat_logprobs(choice.logprobs.content, choice.message.content, top)
    plain = b.chat(logprobs=True, top_logprobs=5).choices[0].logprobs
    streamed = [token for chunk in b.chat(logprobs=True, top_logprobs=5, stream=True)
                for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])]
    equal(streamed, plain.content)
    assert b.refused(400, b.chat, logprobs=True, top_logprobs=21)["param"] == "top_logprobs"


@check
def logprobs_are_the_models_before_temperature(b):
    hot = b.chat(logprobs=True, top_logprobs=3, temperature=5.0, max_tokens=1).choices[0].logprobs.content[0]
    cold = b.chat(logprobs=True, top_logprobs=3, max_tokens=1).choices[0].logprobs.content[0]
    equal(hot.top_logprobs, cold.top_logprobs)


@check
def stop_strings_end_the_answer_before_themselves(b):
    full = b.chat(max_tokens=40).choices[0].message.content
    stop = full[len(full) // 2:][:6]  # most likely across tokens
    expected = full[:full.index(stop)]
    for stops in (stop, ["never to be seen", stop]):
        choice = b.chat(max_tokens=40, stop=stops).choices[0]
        equal((choice.message.content, choice.finish_reason), (expected, "stop"))
    chunks = list(b.chat(max_tokens=40, stop=[stop], stream=True))
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), expected)
    equal(chunks[-1].choices[0].finish_reason, "stop")
    choice = b.chat(max_tokens=40, stop=["never to be seen"]).choices[0]
    equal((choice.message.content, choice.finish_reason), (full, "length"))


@check
def completions_from_text_and_from_token_ids(b):
    answer = b.complete("The `Vec` type")
    equal((answer.object, len(answer.choices), answer.choices[0].index), ("text_completion", 1, 0))
    ids = list(range(300, 340))
    one = b.complete(ids)
    equal((one.usage.prompt_tokens, len(one.choices)), (40, 1))
    two = b.complete([ids, ids[:20]])
    equal([choice.index for choice in two.choices], [0, 1])
    equal(two.usage.prompt_tokens, 60)
    equal(two.choices[0].text, one.choices[0].text)
    texts = b.complete(["The `Vec` type", "The `Vec` type"])
    equal([choice.text for choice in texts.choices], [answer.choices[0].text] * 2)
    streamed = "".join(chunk.choices[0].text for chunk in b.complete(ids, stream=True))
    equal(streamed, one.choices[0].text)


@check
def lists_of_prompts_are_answered_in_order(b):
    prompts = ["The `Vec` type", "A `String` is", "fn main() {"]
    alone = [b.complete(prompt).choices[0].text for prompt in prompts]
    many = b.complete(prompts, n=2)
    equal([choice.index for choice in many.choices], list(range(6)))
    equal([choice.text for choice in many.choices], [text for text in alone for _ in range(2)])
    ids = [b.tokenise({"prompt": prompt})["tokens"] for prompt in prompts]
    equal([choice.text for choice in b.complete(ids).choices], alone)
    streamed = [""] * 3
    for chunk in b.complete(prompts, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    equal(streamed, alone)


def expected_draws(content, bias, presence, frequency):
    """Which token of the listed ones must be drawn at each position, from the model's own logprobs."""
    counts, draws = {}, []
    for position in content:
        def adjusted(entry):
            count = counts.get(entry.token, 0)
            return entry.logprob + bias.get(entry.token, 0) - frequency * count - presence * (count > 0)
        draws.append(max([*position.top_logprobs, position], key=adjusted).token)  # it may be none of the likeliest
        counts[position.token] = counts.get(position.token, 0) + 1
    return draws


@check
def logit_bias_and_penalties(b):
    free = b.told().choices[0]
    common = free.token_ids[0]
    for bias, presence, frequency in [({}, 1.5, 0), ({}, 0, 1.2), ({}, -2, -2), ({}, 0.7, 0.4), ({common: -5}, 0, 0),
                                      ({common: 2}, 1, 1)]:
        choice = b.told(logit_bias={str(token): value for token, value in bias.items()}, presence_penalty=presence,
                        frequency_penalty=frequency).choices[0]
        named = {f"token_id:{token}": value for token, value in bias.items()}
        content = choice.logprobs.content
        equal([entry.token for entry in content], expected_draws(content, named, presence, frequency))
        equal([entry.token for entry in content], [f"token_id:{token}" for token in choice.token_ids])
    equal(set(b.told(logit_bias={str(common): 100}).choices[0].token_ids), {common})
    assert common not in b.told(logit_bias={str(common): -100}).choices[0].token_ids
    repeats = lambda choice: len(choice.token_ids) - len(set(choice.token_ids))
    strict = b.told(extra_body={"repetition_penalty": 1.8}).choices[0]
    assert repeats(strict) < repeats(b.told(extra_body={"repetition_penalty": 0.6}).choices[0]), strict.token_ids
    hot = b.told(temperature=2.0, seed=1, extra_body={"min_p": 1.0}).choices[0]
    equal(hot.token_ids, free.token_ids)
    for wrong in ({"logit_bias": {"1": 101}}, {"presence_penalty": 3}, {"frequency_penalty": -3}):
        equal(b.refused(400, b.chat, **wrong)["param"], next(iter(wrong)))


@check
def structured_output_validates(b):
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}, "maxItems": 2},
        },
        "required": ["name", "age", "pets"],
        "additionalProperties": False,
        "$defs": {
            "pet": {
                "oneOf": [
                    {"type": "object", "properties": {"kind": {"const": kind}, "tame": {"type": "boolean"}},
                     "required": ["kind", "tame"], "additionalProperties": False}
                    for kind in ("cat", "dog")
                ]
            }
        },
    }
    for seed in range(5):
        schema = {"name": "person", "strict": True, "schema": person}
        options = {"temperature": 1, "seed": seed, "max_tokens": 400}
        format = {"type": "json_schema", "json_schema": schema}
        choice = b.chat(response_format=format, **options).choices[0]
        jsonschema.validate(json.loads(choice.message.content), person)
        equal(choice.finish_reason, "stop")
        stream = b.chat(response_format=format, stream=True, **options)
        told = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        equal(told, choice.message.content)
    pattern = r"[A-Z]{2}-\d{4}"
    assert re.fullmatch(pattern, b.chat(extra_body={"guided_regex": pattern}).choices[0].message.content)
    assert b.chat(extra_body={"structured_outputs": {"choice": ["ja", "nein"]}}).choices[0].message.content in ("ja", "nein")
    unique = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"uniqueItems": True}}}
    equal(b.refused(400, b.chat, response_format=unique)["param"], "response_format.json_schema.schema")


@check
def stop_tokens_and_min_tokens(b):
    free = b.told().choices[0]
    stop = free.token_ids[5]
    n = free.token_ids.index(stop) + 1
    choice = b.told(extra_body={"stop_token_ids": [stop]}).choices[0]
    equal((choice.token_ids, choice.finish_reason, choice.stop_reason), (free.token_ids[:n], "stop", stop))
    choice = b.told(extra_body={"stop_token_ids": [stop], "min_tokens": 20}).choices[0]
    assert stop not in choice.token_ids[:20] and choice.token_ids[:n - 1] == free.token_ids[:n - 1]
    text = free.message.content
    end = text[len(text) // 2:][:4]
    choice = b.told(stop=end, extra_body={"include_stop_str_in_output": True}).choices[0]
    equal((choice.message.content, choice.stop_reason), (text[:text.index(end)] + end, end))


@check
def tokens_of_texts_and_messages(b):
    text = "fn push(&mut self, value: T) // h\u00e4llo"
    counted = b.tokenise({"prompt": text, "add_special_tokens": False, "return_token_strs": True})
    equal((counted["count"], len(counted["token_strs"])), (len(counted["tokens"]), len(counted["tokens"])))
    equal(b.tokenise({"content": text})["tokens"], counted["tokens"])
    equal(b.post("/detokenize", {"tokens": counted["tokens"]})["prompt"], text)
    chat = b.told()
    equal(b.tokenise({"messages": QUESTION})["tokens"], chat.prompt_token_ids)
    equal(len(chat.prompt_token_ids), chat.usage.prompt_tokens)
    rendered = b.post("/apply-template", {"messages": QUESTION})["prompt"]
    assert QUESTION[0]["content"] in rendered
    equal(b.tokenise({"content": rendered})["tokens"], chat.prompt_token_ids)
    props = json.loads(b.server.get("/props")[1])
    equal(props["default_generation_settings"]["n_ctx"], counted["max_model_len"])
    assert json.loads(b.server.get("/version")[1])["version"]


@check
def logprobs_of_a_prompt_in_both_shapes(b):
    ids = list(range(400, 430))
    echoed = b.complete(ids, echo=True, logprobs=2, max_tokens=1).choices[0].logprobs
    choice = b.complete(ids, max_tokens=1, extra_body={"prompt_logprobs": 2}).choices[0]
    equal(choice.prompt_logprobs[0], None)
    equal([entry[str(token)]["logprob"] for entry, token in zip(choice.prompt_logprobs[1:], ids[1:])],
          echoed.token_logprobs[1:30])
    chat = b.chat(max_tokens=1, extra_body={"prompt_logprobs": 0})
    equal(len(chat.prompt_logprobs), chat.usage.prompt_tokens)


@check
def truncation_is_told(b):
    ids = list(range(300, 360))
    cut = b.complete(ids, extra_body={"truncate_prompt_tokens": 20, "ignore_eos": True})
    equal((cut.usage.prompt_tokens, cut.usage.kvist["truncated_prompt_tokens"]), (20, 40))
    equal(cut.choices[0].text, b.complete(ids[40:]).choices[0].text)
    raw = b.client.completions.with_raw_response.create(model="any", prompt=ids, max_tokens=1, stream=True,
                                                        extra_body={"truncate_prompt_tokens": 59})
    equal(raw.headers["x-kvist-truncated-prompt-tokens"], "1")
    raw.parse().close()


@check
def echo_with_logprobs_of_the_prompt(b):
    prompt = b.nonce() + "A vector is a contiguous growable array type, written as `Vec<T>`."
    ask = lambda: b.complete(prompt, echo=True, logprobs=1, max_tokens=1, seed=1234)
    answer = ask()
    choice, n = answer.choices[0], answer.usage.prompt_tokens
    assert choice.text.startswith(prompt) and len(choice.text) >= len(prompt)
    lists = choice.logprobs
    equal({len(lists.tokens), len(lists.token_logprobs), len(lists.top_logprobs), len(lists.text_offset)}, {n + 1})
    equal((lists.token_logprobs[0], lists.top_logprobs[0]), (None, None))
    assert all(value <= 0 for value in lists.token_logprobs[1:])
    for token, value, top in list(zip(lists.tokens, lists.token_logprobs, lists.top_logprobs))[1:]:
        equal(top[token], value)
        assert max(top.values()) >= value
    equal(lists.text_offset, sorted(lists.text_offset))
    equal("".join(lists.tokens), choice.text)
    equal(ask().choices[0].logprobs, lists)  # cold and warm, bit for bit
    alone = b.complete(prompt, logprobs=1, max_tokens=1).choices[0].logprobs
    equal(alone.token_logprobs, lists.token_logprobs[-1:])


@check
def echo_for_a_batch_of_token_ids(b):
    """The request by which lm-eval measures log-likelihoods."""
    batch = [list(range(500, 530)), list(range(700, 765)), [9]]
    answer = b.complete(batch, echo=True, logprobs=1, max_tokens=1, seed=1234)
    equal([len(choice.logprobs.tokens) for choice in answer.choices], [31, 66, 2])


@check
def cached_tokens_grow(b):
    text = b.nonce() + "Explain ownership, borrowing and lifetimes to a reader who knows C. " * 12
    messages = [{"role": "user", "content": text}]
    first, second = b.chat(messages), b.chat(messages)
    n = first.usage.prompt_tokens
    assert first.usage.prompt_tokens_details.cached_tokens < 64
    assert n - 1 <= second.usage.prompt_tokens_details.cached_tokens <= n
    equal(second.choices[0].message.content, first.choices[0].message.content)
    longer = b.chat([{"role": "user", "content": text + "Be brief."}])
    assert longer.usage.prompt_tokens_details.cached_tokens >= n - 16


@check
def the_next_turn_hits_up_to_the_end_of_the_reply(b):
    messages = [{"role": "user", "content": b.nonce() + QUESTION[0]["content"]}]
    first = b.chat(messages, temperature=1.3, seed=3, extra_body={})
    messages += [first.choices[0].message.model_dump(include={"role", "content"}),
                 {"role": "user", "content": "And `Vec::pop`?"}]
    second = b.chat(messages)
    known = first.usage.prompt_tokens + first.usage.completion_tokens - 1
    assert second.usage.prompt_tokens_details.cached_tokens >= known, (second.usage, known)


@check
def a_prompt_beyond_the_context_is_refused_with_both_numbers(b):
    prompt = [7] * 5000
    error = b.refused(400, b.complete, prompt=prompt)
    equal(error["code"], "context_length_exceeded")
    assert len(re.findall(r"\d[\d,]*", error["message"])) >= 2 and re.search(r"5,?000", error["message"]), error
    error = b.refused(400, b.chat, messages=[{"role": "user", "content": "1 2 3 4 " * 1500}])
    equal(error["code"], "context_length_exceeded")


@check
def wrong_types_and_values_name_the_field(b):
    for field, value in [("temperature", "hot"), ("temperature", -1), ("n", 0), ("n", 100_000), ("top_p", 2),
                         ("max_tokens", -1), ("stop", 5), ("seed", "x"), ("logprobs", "yes"), ("stream", "yes"),
                         ("messages", "hello"), ("messages", []), ("max_tokens", 2**63)]:
        equal(b.refused(400, b.chat, **{field: value} if field == "messages" else
                        {"extra_body": {field: value}})["param"], field)
    equal(b.refused(400, b.complete, prompt=[1.5])["param"], "prompt")
    equal(b.refused(400, b.complete, prompt=[10**6])["param"], "prompt")
    error = b.refused(400, b.chat, messages=[{"role": "user", "content": 3}])
    assert error["param"].startswith("messages"), error


@check
def broken_bodies_and_unknown_routes(b):
    for body in ("{", "[]", "", '{"messages": ' + "[" * 5000, b"\xff\xfe"):
        status, text = b.server.post("/v1/chat/completions", body)
        equal(status, 400)
        assert json.loads(text)["error"]["message"]
    equal(b.server.post("/v1/nothing", "{}")[0], 404)
    equal(b.server.get("/v1/chat/completions")[0], 405)


@check
def ten_clients_at_once_get_what_each_gets_alone(b):
    shared = b.nonce() + "You answer questions about the Rust standard library. " * 20
    ask = lambda i: [{"role": "system", "content": shared}, {"role": "user", "content": f"What does method {i} do?"}]

    async def together():
        async with openai.AsyncOpenAI(base_url=f"{b.server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(client.chat.completions.create(model="any", messages=ask(i), **GREEDY)
                                          for i in range(10)))

    answers = asyncio.run(together())
    for i, answer in enumerate(answers):
        equal(answer.choices[0].message.content, b.chat(ask(i)).choices[0].message.content)
    prompt = max(answer.usage.prompt_tokens for answer in answers)
    computed = sum(a.usage.prompt_tokens - a.usage.prompt_tokens_details.cached_tokens for a in answers)
    assert computed <= prompt + 10 * (16 + 63), f"{computed} prompt tokens computed for 10 x {prompt}"


class get_weather(pydantic.BaseModel):
    """The weather of a city."""

    city: typing.Literal["Lund", "Uppsala"]
    days: typing.Literal[1, 2, 3]


TOOLS = [openai.pydantic_function_tool(get_weather),
         {"type": "function", "function": {"name": "now", "description": "The time."}}]
TOOL_OPTIONS = {"tools": TOOLS, "max_tokens": 120, "extra_body": {}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@check
def calls_that_are_demanded(b):
    for choice in ("required", NAMED):
        answer = b.chat(tool_choice=choice, parallel_tool_calls=False, **TOOL_OPTIONS).choices[0]
        equal((answer.finish_reason, answer.message.content), ("tool_calls", None))
        [call] = answer.message.tool_calls
        assert call.id.startswith("call_") and call.type == "function"
        arguments = json.loads(call.function.arguments)
        if choice == NAMED or call.function.name == "get_weather":
            equal(call.function.name, "get_weather")
            get_weather.model_validate(arguments, strict=True)
        else:
            equal((call.function.name, arguments), ("now", {}))


@check
def calls_streamed_as_fragments(b):
    plain = b.chat(tool_choice=NAMED, **TOOL_OPTIONS).choices[0].message.tool_calls[0]
    chunks = [chunk.choices[0] for chunk in b.chat(tool_choice=NAMED, stream=True, **TOOL_OPTIONS)]
    equal([c.finish_reason for c in chunks], [None] * (len(chunks) - 1) + ["tool_calls"])
    parts = [part for c in chunks for part in c.delta.tool_calls or []]
    assert len(parts) > 5 and all(part.index == 0 for part in parts)
    first, rest = parts[0], parts[1:]
    equal((first.type, first.function.name, first.function.arguments), ("function", "get_weather", ""))
    assert first.id and all(part.id is None and part.function.name is None for part in rest)
    equal("".join(part.function.arguments for part in rest), plain.function.arguments)


@check
def calls_put_together_by_the_streaming_helper(b):
    with b.client.chat.completions.stream(model="any", messages=QUESTION, tool_choice=NAMED, tools=TOOLS[:1],
                                          temperature=0, max_tokens=120) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    kinds = {event.type for event in events}
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds, kinds
    equal(final.finish_reason, "tool_calls")
    assert isinstance(final.message.tool_calls[0].function.parsed_arguments, get_weather)


@check
def the_turn_after_a_call_hits_it(b):
    question = [{"role": "user", "content": b.nonce() + "How is the weather?"}]
    first = b.chat(question, tool_choice=NAMED, **TOOL_OPTIONS)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    second = b.chat([*question, message.model_dump(exclude_none=True), result], tool_choice="none", **TOOL_OPTIONS)
    usage = second.usage
    known = first.usage.prompt_tokens + first.usage.completion_tokens
    assert usage.kvist["spliced_tokens"] > 5, usage
    assert usage.prompt_tokens_details.cached_tokens + 2 >= known, (usage, known)


@check
def tools_that_may_be_called_change_no_answer_shape(b):
    choice = b.chat(**TOOL_OPTIONS).choices[0]
    assert choice.message.content or choice.message.tool_calls
    for options, param in (({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
                           ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
                           ({"response_format": {"type": "json_object"}}, "response_format")):
        equal(b.refused(400, b.chat, **{**TOOL_OPTIONS, **options})["param"], param)


@check
def a_stream_that_is_left_stops_its_request(b):
    before = b.server.metric("vllm:generation_tokens_total")
    stream = b.chat(stream=True, max_tokens=3000)
    for _, chunk in zip(range(4), stream):
        assert chunk.choices
    stream.close()
    for _ in range(600):
        if b.server.metric("vllm:num_requests_running") == 0:
            break
        time.sleep(0.05)
    equal(b.server.metric("vllm:num_requests_running"), 0)
    assert b.server.metric("vllm:generation_tokens_total") - before < 2900, "it went on to its end"
    equal(b.chat().usage.completion_tokens, GREEDY["max_tokens"])


@check
def sigterm_in_mid_stream_ends_the_stream_and_the_process(b):
    stream = b.chat(stream=True, max_tokens=64)
    next(stream)
    b.server.process.send_signal(signal.SIGTERM)
    chunks = list(stream)
    equal(chunks[-1].choices[0].finish_reason, "length")
    equal(b.server.process.wait(60), 0)


def main(binary, *model):
    server = Server([binary, "serve", *model])
    bench, failed = Bench(server), []
    try:
        for function in CHECKS:
            try:
                function(bench)
                print(f"ok      {function.__name__}", flush=True)
            except Exception as error:
                failed.append(function.__name__)
                where = error.__traceback__
                while where.tb_next and where.tb_next.tb_frame.f_code.co_filename == __file__:
                    where = where.tb_next
                print(f"FAILED  {function.__name__} (line {where.tb_lineno}): {type(error).__name__}: "
                      f"{str(error)[:600]}", flush=True)
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    if failed:
        print(f"--- output of the server\n{server.log()}---")
    print(f"{len(CHECKS) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
