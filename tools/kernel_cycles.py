#!/usr/bin/env python3
"""What LLVM's machine code analyser says of the hot loops of the AVX-512 path, for machines that are not at hand.

    cargo test --release -p kvist-kernels --test instructions --no-run
    tools/kernel_cycles.py target/release/deps/instructions-<hash> [--model zen5|intel] [--loop ADDRESS]
    tools/kernel_cycles.py PROGRAM --model zen3|zen5|alderlake --trace FILE

needs objdump (binutils) and llvm-mca (LLVM 19 was used). Prints a table of the loops of each kernel: rows by vectors of
a block, instructions, cycles of one pass, share of the peak of two 512-bit products a cycle, or bytes of weights a
cycle. With --loop, also the analyser's whole answer for that loop. A model, not a measurement: all operands are in the
L1 cache, and both sides of a branch are taken. With --trace (of trace.py), the cycles of all instructions of a call in
their order, branches foreseen; with --model zen3 that can be compared with a clock. alderlake is for AVX-VNNI.

LLVM has no model of Zen 5. Its Zen 4 executes 256 bits at once where Zen 5 executes 512, with the same pipes otherwise,
so the loops are given to it with registers of half the size. Where its tables are wrong (products at a sixth of their
rate, broadcasts from memory through the shuffle unit) another instruction with the latency and pipes of the right one
stands in. Of Intel's servers it is Ice Lake, whose tables leave out the second 512-bit multiplier.
"""

import argparse
import re
import subprocess
import sys

INTEGER, SHORTS, BF16 = "vpdpbusd", "vpdpwssd", "vdpbf16ps"
# Bits of a code and bytes of scales for 32 weights, by lines that are asked for in a group and halves that are widened.
FORMS = {
    (9, 1): ("Q8_0", 34),
    (5, 1): ("Q4_0", 18),
    (6, 1): ("Q5_0", 22),
    (5, 2): ("Q4_K", 18),
    (6, 2): ("Q5_K", 22),
    (7, 1): ("Q6_K", 26.25),
}


def half_registers(name, operands):
    operands = re.sub("%ymm", "%xmm", operands)
    operands = re.sub("%zmm", "%ymm", operands).replace("{1to16}", "{1to8}").replace("{sae},", "")
    if name in (INTEGER, SHORTS, BF16):
        name = "vfmadd231ps"
    elif "broadcast" in name and "(" in operands:
        name, operands = "vmovups", operands.replace("%xmm", "%ymm")
    elif re.match("vpmov[sz]x", name) and "(" in operands:
        name, operands = "vpshufd", "$0, " + operands
    elif re.match("vperm[pqdb]", name):  # Across the whole register, from memory as well.
        name, operands = name.replace("vpermpd", "vpermq"), operands.replace("%xmm", "%ymm")
    elif name.startswith("vextract"):
        place, source, to = operands.rsplit(",", 2)
        name, operands = "vextractf128", f"{place},{source.replace('%xmm', '%ymm')},{to}"
    elif name.startswith("vinsert"):
        source, *others = operands.rsplit(",", 2)
        name, operands = "vinsertf128", ",".join([source] + [other.replace("%xmm", "%ymm") for other in others])
    elif name.startswith("vpternlog"):  # Whose broadcast operands objdump's syntax and the analyser's differ in.
        operands = operands.replace("{1to8}", "")
    return name, operands


def second_multiplier(name, operands):
    if name.startswith("vfmadd"):
        name = INTEGER
    elif name == "vmulps":
        name = "vpaddd"
    return name, operands.replace("{sae},", "")


def as_it_is(name, operands):
    return name, operands.replace("{sae},", "")


MODELS = {
    "zen5": ("znver4", half_registers),
    "intel": ("icelake-server", second_multiplier),
    "zen3": ("znver3", as_it_is),
    "alderlake": ("alderlake", as_it_is),
}
# Instructions of a trace that the analyser is given at once.
PIECE = 20000


def cycles_of(lines, analyser, cpu, passes, *options):
    """Cycles of so many passes over these instructions, and the analyser's whole answer."""
    command = [analyser, f"-mcpu={cpu}", f"-iterations={passes}", *options]
    run = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return int(re.search(r"Total Cycles:\s+(\d+)", run.stdout)[1]), run.stdout


def instructions(printed):
    found = re.findall(r"^ *(\w+):\t(?:\{vex\} )?(\S+)[ \t]*(.*)$", printed, re.M)
    return [(int(a, 16), name, rest) for a, name, rest in found]


class Loop:
    def __init__(self, code):
        self.code, self.address = code, code[0][0]

    def count(self, *names):
        return sum(name.startswith(names) for _, name, _ in self.code)

    def analyse(self, analyser, model, passes=100):
        cpu, rewrite = MODELS[model]
        lines = (rewrite(name, re.sub(r"\s*[<#].*", "", operands)) for _, name, operands in self.code if name[0] != "j")
        cycles, answer = cycles_of(map(" ".join, lines), analyser, cpu, passes, "-bottleneck-analysis")
        return cycles / passes, answer


def of_trace(printed, trace, analyser, model):
    """Prints what the instructions at these addresses, one after the other, are and take."""
    cpu, rewrite = MODELS[model]
    line = {}
    for address, name, operands in instructions(printed):
        if name[0] == "j":
            line[address] = "cmpl $0, %eax"  # One instruction that waits for nothing.
        elif name not in ("call", "ret"):
            line[address] = " ".join(rewrite(name, re.sub(r"\s*[<#].*", "", operands)))
    names = {a: name for a, name, _ in instructions(printed)}
    addresses = [int(address, 16) for address in trace]
    # What other libraries do counts, but not how.
    lines = [line.get(address, "nop") for address in addresses]
    pieces = (lines[at : at + PIECE] for at in range(0, len(lines), PIECE))
    cycles = sum(cycles_of(piece, analyser, cpu, 1)[0] for piece in pieces)
    # Sums of quantised products begin with a few instructions of another kind.
    products = max(sum(names.get(address) == product for address in addresses) for product in (INTEGER, SHORTS, BF16))
    of_peak = f", {products / 2 / cycles:.0%} of the peak" if products else ""
    print(f"{len(lines)} instructions, {cycles} cycles{of_peak}")


def loops(printed, function):
    """Loops without loops inside."""
    body = re.search(rf"<\w*{function}[\w.]*>:\n(.*?)\n\n", printed + "\n\n", re.S)
    if not body:
        sys.exit(f"there is no {function} in this program")
    code = instructions(body[1])
    place = {address: i for i, (address, _, _) in enumerate(code)}
    ends = []
    for i, (address, name, rest) in enumerate(code):
        target = re.match(r"[0-9a-f]+", rest)
        if name[0] == "j" and target and int(target[0], 16) <= address and int(target[0], 16) in place:
            ends.append((place[int(target[0], 16)], i))
    for a, b in ends:
        if not any((c, d) != (a, b) and c >= a and d <= b for c, d in ends):
            yield Loop(code[a : b + 1])


def quantised(loop):
    """Which format, rows by vectors, and bytes of weights of a loop; None where it is not the whole of a group."""
    products, sums, scaled = loop.count(INTEGER), loop.count("vcvtdq2ps"), loop.count("vfmadd")
    halves = loop.count("vcvtph2ps")
    if halves:  # A few rows, from the packed form.
        name, size = FORMS.get((loop.count("prefetcht1"), halves), (None, 0))
        return (name, products // 8, 1, size * 16) if name else None
    each = 4 if products == 4 * scaled and sums == scaled else 8
    if each == 4:
        name = "Q6_K"
    elif scaled * 4 == products:
        name = "Q4_K, Q5_K"
    else:
        name = "Q8_0" if loop.count("vpxor") > 7 else "Q4_0, Q5_0"
    # A row is broadcast for eight steps, for what its sums start at (twice with two scales), and for one or two scales.
    reads = sum("broadcast" in name or "{1to16}" in rest for _, name, rest in loop.code)
    rows = round(reads / (12 if each == 4 else 11 if "K" in name else 10))
    vectors = products / 8 / max(rows, 1)
    return (name, rows, round(vectors), None) if vectors in (1, 2) else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--model", choices=MODELS, default="zen5")
    parser.add_argument("--loop", type=lambda s: int(s, 16))
    parser.add_argument("--trace", type=argparse.FileType())
    parser.add_argument("--llvm-mca", default="llvm-mca-19")
    args = parser.parse_args()
    command = ["objdump", "-d", "--no-show-raw-insn", args.program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if args.trace:
        return of_trace(printed, args.trace, args.llvm_mca, args.model)
    rows = {}
    for kernel, function, product, steps in [
        ("bf16 weights", "kvist_kernels6matmul8run_tile6others6avx512", BF16, 1),
        ("attention, kv16, two steps", "16groups_of_shorts6others6avx512", SHORTS, 2),
        ("attention, kv8, two steps", "15groups_of_codes6others6avx512", INTEGER, 2),
        ("", "5quant6matmul8run_tile6others6others6avx512", INTEGER, None),
    ]:
        for loop in loops(printed, function):
            products = loop.count(product)
            if steps:
                # Products that broadcast for themselves do so once for each vector.
                reads = sum("broadcast" in name and "%rip" not in rest for _, name, rest in loop.code)
                reads += sum("{1to16}" in rest for _, _, rest in loop.code) // 4
                sums = {rest.split(",")[-1] for _, name, rest in loop.code if name == product}
                whole = products == 4 * reads == steps * len(sums)
                of = (kernel, len(sums) // 4, 4, None) if products and whole else None
            else:
                of = quantised(loop) if products else None
            if not of:
                continue
            if of not in rows or len(rows[of][0].code) < len(loop.code):
                rows[of] = (loop, products)
    print("| weights or KV | rows x vectors | instructions | cycles | of the peak | bytes a cycle | at |")
    print("|---|---|---|---|---|---|---|")
    for (name, r, v, size), (loop, products) in sorted(rows.items(), key=lambda row: (row[0][3] is None, row[0][:3])):
        cycles, answer = loop.analyse(args.llvm_mca, args.model)
        each = f"{size / cycles:.0f}" if size else ""
        share = f"{products / 2 / cycles:.0%}"
        print(f"| {name} | {r} x {v} | {len(loop.code)} | {cycles:.1f} | {share} | {each} | {loop.address:x} |")
        if args.loop == loop.address:
            print(answer)


if __name__ == "__main__":
    main()
