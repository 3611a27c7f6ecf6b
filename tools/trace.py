#!/usr/bin/env python3
"""The instructions that one call of a kernel executes, as addresses in its program: for `kernel_cycles.py --trace`.

    cargo build --release -p kvist-kernels --example once
    tools/trace.py run_task4avx2 2 target/release/examples/once avx2 attention 1 1 128 32 256 > trace
    tools/kernel_cycles.py target/release/examples/once --model zen3 --trace trace

The function is a part of a symbol's mangled name; the call is the one after so many others. Linux on x86-64: the program
is run step by step, ten thousand times as slowly. An instruction that repeats itself is there once for each time."""

import ctypes
import os
import subprocess
import sys

TRACEME, PEEK, PEEKUSER, POKE, POKEUSER, CONTINUE, STEP = 0, 1, 3, 4, 6, 7, 9
RIP, RSP = 16 * 8, 19 * 8
NO_RANDOM_ADDRESSES = 0x0040000
BREAKPOINT = 0xCC

libc = ctypes.CDLL(None)
libc.ptrace.restype = ctypes.c_ulong
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]


def address_of(function, program):
    symbols = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split()[0] for line in symbols if function in line]
    if len(found) != 1:
        sys.exit(f"{len(found)} functions of {program} have {function} in their names")
    return int(found[0], 16)


def start(command):
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        libc.personality(NO_RANDOM_ADDRESSES)
        libc.ptrace(TRACEME, 0, 0, 0)
        os.execv(command[0], command)
    return pid


def go_on(pid, how):
    libc.ptrace(how, pid, 0, 0)
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSTOPPED(status):
        sys.exit("the program ended before that call")


def base(pid, program):
    with open(f"/proc/{pid}/maps") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(os.path.realpath(program)))


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    function, before, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    pid = start(command)
    os.waitpid(pid, 0)
    begin = base(pid, command[0])
    entry = begin + address_of(function, command[0])
    word = libc.ptrace(PEEK, pid, entry, 0)
    for call in range(before + 1):
        libc.ptrace(POKE, pid, entry, word & ~0xFF | BREAKPOINT)
        go_on(pid, CONTINUE)
        libc.ptrace(POKE, pid, entry, word)
        libc.ptrace(POKEUSER, pid, RIP, entry)
        if call < before:
            go_on(pid, STEP)
    stack = libc.ptrace(PEEKUSER, pid, RSP, 0)
    back = libc.ptrace(PEEK, pid, stack, 0)
    at = entry
    while at != back:
        print(f"{at - begin:x}")
        go_on(pid, STEP)
        at = libc.ptrace(PEEKUSER, pid, RIP, 0)
    os.kill(pid, 9)


if __name__ == "__main__":
    main()
