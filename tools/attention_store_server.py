"""AttentionStore's experiment (arXiv 2403.19708, section 4) on the real server: conversations in a closed loop.

    python3 tools/attention_store_server.py target/release/kvist [--users 30,100,300] [--think 1] [--turns 1000]

Starts `KVIST serve` for each number of users, on an empty store in a directory that is removed at the end. Every user
says something, reads the reply, thinks, and says more; whose conversation is over begins another one. Turns and lengths
are those of `kvist-campaign attention-store` (crates/sim/src/sessions/users.rs): 73 % of conversations have several turns,
5.75 on average, and a conversation ends before it fills the context. Lengths follow the context: ShareGPT's at 4,096
tokens, a quarter of them at 1,024. RAM is what `--batch` conversations at full context take, and a part in 80 of the disk.

Measured are the turns that end after the first `--warm-up`, by the client's clock, by `usage`, and by `/metrics`
before and after. Percentages are of the history: tokens of a prompt that were said before in its conversation.
The embedded model's text makes no sense, and is not looked at.
"""
import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
import urllib.request

CHUNK = 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Words that may be tokens by themselves; those that are not are left out.
WORDS = """a all an and any are argument array as associated at be before block body borrow but by bytes call can case char
code compiler const crate data default does each element else enum error example expression field file first for from
function generic get has here if implementation in index integer into is it item iterator key length let lifetime like
line list macro map may method module most move must name new no not number object of on one only operator option or
other output panic parameter path pattern pointer program range read reference result return same scope self set size
slice so some stack standard state static string struct such that the then there these this thread time to trait true
two type unsafe use used value variable vector version was we when where which while will with would write you""".split()


class Server:
    """`kvist serve` on a free port."""

    def __init__(self, args, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = open(os.path.join(directory, "log"), "w+")
        self.store = os.path.join(directory, "kv")
        self.command = [
            args.kvist, "serve", "--port", self.port, "--ctx", args.ctx, "--kv-ram", args.kv_ram, "--kv-disk", args.kv_disk,
            "--kv-dir", self.store, "--kv-key-file", os.path.join(directory, "key"),
            "--threads", args.threads, "--max-batch", args.batch, "--log-level", "error",
        ]

    async def start(self):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVIST_")}
        # A process group of its own: Ctrl-C comes to this script alone, which then ends the server.
        self.process = await asyncio.create_subprocess_exec(
            *map(str, self.command), stdout=self.log, stderr=self.log, env=environment, start_new_session=True)
        for _ in range(600):
            if self.process.returncode is not None:
                break
            with contextlib.suppress(OSError):
                self.get("/health")
                # No end before the length that is wanted, and nothing that no text stands for, which would not come back.
                self.bias = {token: -100 for token in self.tokenize(prompt="".join(SPECIAL))["tokens"]}
                return
            await asyncio.sleep(0.05)
        raise SystemExit(f"the server did not get ready:\n{self.said()}")

    async def stop(self):
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), 40)
            except asyncio.TimeoutError:
                self.process.kill()
        return await self.process.wait()

    def get(self, path, body=None):
        request = urllib.request.Request(self.url + path, body and json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def tokenize(self, **body):
        return json.loads(self.get("/tokenize", body))

    def metrics(self):
        return parse_metrics(self.get("/metrics"))

    def said(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def forget(self):
        """Has the system drop what it caches of the store's files, so that loads come from the disk."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.store):
                file = os.open(entry.path, os.O_RDONLY)
                try:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(file)

    def device(self):
        """Bytes that the process had fetched from the disk."""
        with open(f"/proc/{self.process.pid}/io") as io:
            return int(re.search(r"^read_bytes: (\d+)", io.read(), re.M)[1])

    async def chat(self, messages, reply):
        """(seconds to the first text, text, usage, timings) of a streamed reply of exactly `reply` tokens."""
        body = json.dumps({"messages": messages, "max_tokens": reply, "logit_bias": self.bias, "temperature": 0,
                           "stream": True, "stream_options": {"include_usage": True}}).encode()
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        try:
            # HTTP 1.0: the body is not chunked and ends with the connection.
            writer.write(b"POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError((status + await reader.read()).decode())
            first, lines = None, []
            async for line in reader:
                if line.startswith(b"data: {"):
                    lines.append(line)
                    # The first one is the role.
                    if first is None and b'"content":""' not in line:
                        first = time.monotonic() - began
            if not lines or b'"usage":{' not in lines[-1]:
                raise RuntimeError(f"a reply broke off: {lines[-1:]}")
        finally:
            writer.close()
        events = [json.loads(line[6:]) for line in lines]
        text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
        return first, text, events[-1]["usage"], events[-1]["timings"]


def parse_metrics(text):
    """
    >>> parse_metrics('# HELP a b\\na{engine="0",model_name="m"} 2\\nb{engine="0",model_name="m",for="x"} 0.5\\n')
    {'a': 2.0, 'b.x': 0.5}
    """
    found = re.findall(r'^([\w:]+)\{engine="\d+",model_name="[^"]*"(?:,\w+="([^"]*)")?\} (\S+)$', text, re.M)
    return {f"{name}.{label}" if label else name: float(value) for name, label, value in found}


def percentile(values, percent):
    """
    >>> [percentile(range(1, 101), p) for p in (0, 50, 99, 100)], percentile([7], 99)
    ([1, 51, 100, 100], 7)
    """
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def conversation_turns(rng):
    """
    >>> rng = random.Random(1)
    >>> turns = [conversation_turns(rng) for _ in range(50_000)]
    >>> round(statistics.mean(turns), 1), round(sum(n > 1 for n in turns) / len(turns), 2)
    (5.8, 0.73)
    """
    if rng.random() >= 0.73:
        return 1
    # 2 / 13 ends it after each turn from the second: 0.27 + 0.73 * (2 + 5.5) = 5.75.
    return 2 + int(math.log(1 - rng.random()) / math.log(11 / 13))


def size(text):
    """
    >>> size("64KiB"), size("1.5 GiB"), size("100")
    (65536, 1610612736, 100)
    """
    number, unit = re.fullmatch(r"([\d.]+) ?([KMGT]iB)?", text).groups()
    return int(float(number) * 1024 ** (" KMGT".index(unit[0]) if unit else 0))


class Load:
    """So many users at a server."""

    def __init__(self, args, server, users):
        self.args, self.server, self.users = args, server, users
        self.says, self.hears = 25 * args.ctx / 1024, 64 * args.ctx / 1024
        probe = server.tokenize(messages=[{"role": "user", "content": "the"}])["count"]
        self.words = [word for word in WORDS if server.tokenize(prompt=f"the {word}", add_special_tokens=False)["count"] == 2
                      and server.tokenize(messages=[{"role": "user", "content": f"the {word}"}])["count"] == probe + 1]
        # What a turn has beside its words and the reply: the template's tokens, those behind the reply included.
        pair = [{"role": "user", "content": "the"}, {"role": "assistant", "content": "the"}]
        self.frame = server.tokenize(messages=pair + pair[:1])["count"] - probe - 2
        self.rng = random.Random(args.seed)
        self.done = self.conversations = 0
        self.turns, self.waiting, self.live = [], [], []
        self.warm, self.over = asyncio.Event(), asyncio.Event()

    async def user(self):
        while True:
            self.conversations += 1
            rng = random.Random(f"{self.args.seed} {self.conversations}")
            messages, history, turns = [], 0, conversation_turns(rng)
            # All users at once would come in step.
            await asyncio.sleep(rng.expovariate(1 / self.args.think))
            for _ in range(turns):
                says = max(4 + int(rng.expovariate(1 / (self.says - 4))), self.frame + 1)
                reply = 8 + int(rng.expovariate(1 / (self.hears - 8)))
                if history + says + reply > self.args.ctx:
                    break
                text = " ".join(rng.choices(self.words, k=says - self.frame))
                messages.append({"role": "user", "content": text})
                first, text, usage, timings = await self.server.chat(messages, reply)
                messages.append({"role": "assistant", "content": text})
                self.note(first, usage, timings, history)
                history = usage["total_tokens"]
                await asyncio.sleep(rng.expovariate(1 / self.args.think))

    def note(self, first, usage, timings, history):
        self.done += 1
        if self.done == self.args.warm_up:
            self.warm.set()
        elif self.warm.is_set() and not self.over.is_set():
            self.turns.append((first, timings["queued_ms"] / 1e3, usage, history))
            if len(self.turns) >= self.args.turns:
                self.over.set()

    async def forget(self):
        while True:
            await asyncio.to_thread(self.server.forget)
            await asyncio.sleep(0.5)

    async def watch(self):
        while True:
            metrics = await asyncio.to_thread(self.server.metrics)
            if self.warm.is_set():
                self.waiting.append(metrics["vllm:num_requests_waiting"])
                self.live.append(metrics["kvist_disk_tokens"] / CHUNK)
            await asyncio.sleep(0.5)

    async def run(self):
        work = [self.user() for _ in range(self.users)] + [self.watch()] + [self.forget()] * (not self.args.page_cache)
        tasks = [asyncio.create_task(task) for task in work]
        try:
            async def until(event):
                await asyncio.wait([*tasks, waits := asyncio.create_task(event.wait())],
                                   return_when=asyncio.FIRST_COMPLETED)
                waits.cancel()
                for task in tasks:
                    if task.done():
                        task.result()  # none ends but by an error
            await until(self.warm)
            began, before, device = time.monotonic(), await asyncio.to_thread(self.server.metrics), self.server.device()
            await until(self.over)
            took, after = time.monotonic() - began, await asyncio.to_thread(self.server.metrics)
            self.device = self.server.device() - device
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.outcome(took, {name: value - before.get(name, 0) for name, value in after.items()}, after)

    def outcome(self, took, grew, now):
        """What came out, as --json prints it. Seconds, tokens, percent of the history."""
        ttft = [turn[0] for turn in self.turns]
        usages = [turn[2] for turn in self.turns]
        history = max(sum(turn[3] for turn in self.turns), 1)
        # A first turn may find the template's first tokens.
        found = sum(min(turn[2]["prompt_tokens_details"]["cached_tokens"], turn[3]) for turn in self.turns)
        prompt = sum(usage["prompt_tokens"] for usage in usages)
        computed = prompt - sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
        # Counters run from `before` to `after`, which are not quite the same turns.
        share = prompt / max(grew["vllm:prompt_tokens_total"], 1)
        percent = 100 / history
        loaded, awaited, disk = (grew.get(name, 0) * share for name in (
            "kvist_disk_loading_tokens_total", "kvist_disk_awaited_tokens_total", "kvist_kv_saved_prefill_tokens_total.disk"))
        return {
            "users": self.users, "turns": len(self.turns), "seconds": took, "turns_per_second": len(self.turns) / took,
            "prompt_mean": prompt / len(self.turns),
            "reply_mean": statistics.mean(usage["completion_tokens"] for usage in usages),
            "found": found * percent, "found_in_ram": (found - awaited) * percent, "awaited_from_disk": awaited * percent,
            "from_disk": disk * percent,
            "loaded": loaded * percent,
            "ttft_mean": statistics.mean(ttft), "ttft_p50": percentile(ttft, 50), "ttft_p99": percentile(ttft, 99),
            "prefill_mean": statistics.mean(turn[0] - turn[1] for turn in self.turns),
            "computed": computed, "saved": prompt - computed, "saved_percent": 100 * (prompt - computed) / prompt,
            "waiting": statistics.mean(self.waiting or [0]), "disk_chunks": statistics.mean(self.live or [0]),
            "device_read_bytes": self.device, "read_rate": now["kvist_disk_read_rate"],
            "counters": {name: value for name, value in grew.items()
                         if value and re.match("kvist_(disk|kv|rows|steps)|vllm:(num_preempt|request_succ)", name)
                         and "_bucket" not in name},
            "log": self.server.said().count("\n"), "requests_left": now["kvist_requests"],
        }


# In RAM when the turn came, or not and waited for; used of what was loaded, and all that was loaded.
HEAD = ["users", "found %", "in RAM", "awaited", "from disk", "loaded", "TTFT s: mean, p50, p99", "of it prefill", "turns/s", "computed",
        "saved %", "waiting"]


def line(o):
    ttft = ", ".join(f"{o[f'ttft_{kind}']:.2f}" for kind in ("mean", "p50", "p99"))
    return [o["users"], f"{o['found']:.1f}", f"{o['found_in_ram']:.1f}", f"{o['awaited_from_disk']:.1f}",
            f"{o['from_disk']:.1f}", f"{o['loaded']:.1f}", ttft, f"{o['prefill_mean']:.3f}", f"{o['turns_per_second']:.1f}", o["computed"],
            f"{o['saved_percent']:.1f}", f"{o['waiting']:.0f}"]


def tier_line(o):
    c = {name: o["counters"].get(name, 0) for name in (
        "kvist_disk_load_seconds", "kvist_disk_waited_seconds", "kvist_disk_read_bytes_total", "kvist_disk_written_bytes_total",
        "kvist_disk_copied_bytes_total", "kvist_kv_evictions_total.room", "kvist_disk_evictions_total.budget",
        "kvist_disk_lost_chunks_total", "kvist_disk_corrupt_chunks_total", "kvist_disk_never_saved_tokens_total",
        "vllm:num_preemptions_total", "kvist_disk_loads_total.urgent", "kvist_disk_loads_total.read_ahead")}
    load, waited, read, written, copied, ram, disk, lost, corrupt, never, preempted, urgent, ahead = c.values()
    overlap = 100 * (1 - waited / load) if load else 100
    return (f"{o['users']} users: {urgent:.0f} urgent loads and {ahead:.0f} read ahead in {load:.1f} s, of which steps waited"
            f" {waited:.2f} s ({overlap:.0f} % overlapped); read {read / 2**20:.0f} MiB, of which"
            f" {o['device_read_bytes'] / 2**20:.0f} MiB from the device; written {written / 2**20:.0f} MiB, of"
            f" which copied {copied / 2**20:.0f} MiB; evicted {ram:.0f} chunks from RAM, {disk:.0f} from disk;"
            f" {o['disk_chunks']:.0f} chunks on disk; {preempted:.0f} preemptions, {never / CHUNK:.0f} chunks never saved,"
            f" {lost:.0f} lost, {corrupt:.0f} corrupt; prompts of {o['prompt_mean']:.0f} tokens, replies of"
            f" {o['reply_mean']:.0f}; {o['turns']} turns in {o['seconds']:.0f} s")


async def rates(load):
    """What steps take on this machine, as options of `kvist-campaign attention-store`."""
    def message(tokens):
        return [{"role": "user", "content": " ".join(load.rng.choices(load.words, k=tokens - load.frame))}]

    async def prompt(tokens):
        replies = [await load.server.chat(message(tokens), 2) for _ in range(9)]
        return statistics.median(timings["prompt_ms"] for *_, timings in replies) * 1e3

    async def step(sequences, tokens=200):
        replies = []
        for _ in range(5):
            replies += await asyncio.gather(*(load.server.chat(message(300), tokens) for _ in range(sequences)))
        return statistics.median(timings["predicted_ms"] for *_, timings in replies) / (tokens - 1) * 1e3

    # Half the length has a quarter of the tokens attended to: thousands of them are n^2 / 2000.
    short, long = await prompt(250), await prompt(500)
    attended = max((await prompt(1000) - 2 * long) / 250, 0)
    row = max((long - short - attended * 94) / 250, 1)
    batch = load.args.batch
    fixed = max(await step(batch) - batch * (row + 0.4 * attended), 1)
    return f"--step {fixed:.0f} --row {row:.0f} --kilotoken {attended:.0f}"


async def measure(args, users):
    with tempfile.TemporaryDirectory(prefix="attention-store-") as directory:
        server = Server(args, directory)
        try:
            await server.start()
            load = Load(args, server, users)
            outcome = await (rates(load) if args.rates else load.run())
        finally:
            code = await server.stop()
            said = server.said()
            server.log.close()
        if code:
            raise SystemExit(f"the server ended with {code}:\n{said}")
        return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kvist", help="the binary")
    parser.add_argument("--users", default="30,100,300", help="loads: users at the same time [%(default)s]")
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds between a reply and the next turn [1]")
    parser.add_argument("--turns", type=int, default=1000, help="measured of each load [%(default)s]")
    parser.add_argument("--warm-up", type=int, default=1500, help="turns before these [%(default)s]")
    parser.add_argument("--ctx", type=int, default=1024, help="context in tokens; lengths follow it [%(default)s]")
    parser.add_argument("--batch", type=int, default=8, help="sequences at a time [%(default)s]")
    parser.add_argument("--kv-disk", default="512MiB", help="[%(default)s]")
    parser.add_argument("--kv-ram", help="[--batch full contexts, and a part in 80 of the disk]")
    parser.add_argument("--threads", type=int, default=2, help="that the server computes with [%(default)s]")
    parser.add_argument("--page-cache", action="store_true", help="let the system cache the store's files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print every figure as JSON, a line for each load")
    parser.add_argument("--rates", action="store_true", help="only print what steps take, for the simulation")
    args = parser.parse_args()
    if args.kv_ram is None:
        token = 4160  # of the embedded model in 16 bits
        args.kv_ram = str(args.batch * (args.ctx + CHUNK) * token + size(args.kv_disk) // 80)
    if args.rates:
        return print(asyncio.run(measure(args, 0)))
    outcomes = []
    if not args.json:
        print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    try:
        for users in map(int, args.users.split(",")):
            outcomes.append(asyncio.run(measure(args, users)))
            row = json.dumps(outcomes[-1]) if args.json else "| " + " | ".join(map(str, line(outcomes[-1]))) + " |"
            print(row, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
    if not args.json:
        print("", *map(tier_line, outcomes), sep="\n")


if __name__ == "__main__":
    main()
