//! Instructions in the inner loops of attention and of products with weights, counted in this program's own machine
//! code: a guard that no noise moves, and that sees the paths that this CPU cannot run.
//!
//! A loop is known by its products and by something that goes with them. In attention and in bf16 products these are
//! multiply-adds and the words of rows that are broadcast: `R` rows by `V` vectors are `2 R V` and `2 R` in a step where
//! bf16 is widened and in two steps of KV, and `R V` and `R` where bf16 is multiplied as it is. Four rows of KV or more by four
//! vectors have `2 R - 4` where the products of two rows broadcast for themselves. In quantised products they are
//! integer products and f32 multiply-adds, which scale the sums of a group: with AVX-512, `R` rows by `V` vectors are
//! `8 R V` and `R V`, of formats with a minimum `2 R V`, and half of the products where there are two scales. One row
//! and four panels have as many as four rows and one; where a block's heads are unpacked at once, the compiler puts its
//! first group beside that. The first of several row blocks may keep operands that it widens: with `2 V` that it stores a
//! step, and so `2 R + 2 V` for `2 R`. What else a loop has is loads, conversions, prefetches and counting; what it must not have
//! is sums on the stack.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::collections::BTreeMap;
use std::process::Command;

/// Instructions of the longest loop by products and what goes with them.
type Loops = BTreeMap<Kind, usize>;
type Kind = (usize, usize);

/// The loops of a function.
struct Guard {
    /// Part of its mangled name.
    function: &'static str,
    products: &'static [&'static str],
    with: &'static [&'static str],
    /// What the longest loops of each kind had when these numbers were taken.
    committed: &'static [(Kind, usize)],
}

const BROADCASTS: &[&str] = &["vbroadcastss", "vpbroadcastd"];

/// Quantised products are the same code on both paths of AVX-512.
const WIDE_QUANT: &[(Kind, usize)] = &[
    ((8, 1), 57),
    ((8, 2), 80),
    ((16, 2), 69),
    ((16, 4), 114),
    ((24, 3), 81),
    ((24, 6), 112),
    ((32, 4), 198),
    ((32, 8), 199),
    ((48, 6), 174),
    ((48, 12), 185),
    ((64, 8), 264),
    ((64, 16), 270),
    ((80, 10), 215),
    ((80, 20), 252),
    ((96, 12), 252),
    ((96, 24), 300),
];

/// So are those of kv8. First blocks have a product more for each vector.
const CODES: &[(Kind, usize)] = &[
    ((16, 2), 44),
    ((16, 4), 48),
    ((24, 4), 52),
    ((24, 6), 58),
    ((32, 6), 64),
    ((32, 8), 64),
    ((40, 8), 70),
    ((40, 10), 74),
    ((48, 12), 84),
];

const GUARDS: [Guard; 13] = [
    Guard {
        function: "16groups_of_shorts6others4avx2",
        products: &["vpmaddwd"],
        with: BROADCASTS,
        committed: &[
            ((8, 2), 32),
            ((8, 4), 31),
            ((8, 8), 32),
            ((10, 10), 38),
            ((12, 6), 41),
            ((12, 12), 44),
            ((16, 2), 50),
            ((16, 4), 58),
            ((16, 8), 52),
            ((18, 6), 62),
            ((20, 10), 62),
            ((24, 12), 72),
        ],
    },
    Guard {
        function: "16groups_of_shorts6others6avx512",
        products: &["vpdpwssd"],
        with: BROADCASTS,
        committed: &[((8, 2), 34), ((16, 4), 44), ((24, 6), 54), ((32, 4), 58), ((40, 6), 68), ((48, 8), 78)],
    },
    Guard {
        function: "15groups_of_codes6others4avx2",
        products: &["vpmaddwd"],
        with: BROADCASTS,
        // Three rows by three vectors are less than a line a step: which steps ask for one is worked out in the loop.
        committed: &[
            ((8, 2), 48),
            ((8, 4), 37),
            ((8, 8), 37),
            ((10, 10), 43),
            ((12, 6), 47),
            ((12, 12), 49),
            ((16, 2), 92),
            ((16, 4), 68),
            ((16, 8), 59),
            ((18, 6), 81),
            ((20, 10), 69),
            ((24, 12), 79),
        ],
    },
    Guard { function: "15groups_of_codes6others6avx512", products: &["vpdpbusd"], with: BROADCASTS, committed: CODES },
    Guard {
        function: "kvist_kernels6matmul8run_tile6others4avx2",
        products: &["vfmadd"],
        with: BROADCASTS,
        committed: &[
            ((8, 4), 23),
            ((12, 6), 30),
            ((16, 2), 48),
            ((16, 4), 35),
            ((16, 8), 36),
            ((20, 10), 42),
            ((24, 12), 49),
        ],
    },
    Guard {
        function: "kvist_kernels6matmul8run_tile6others6avx512",
        products: &["vdpbf16ps"],
        with: BROADCASTS,
        committed: &[((8, 2), 22), ((12, 3), 23), ((16, 4), 28), ((20, 5), 34), ((24, 6), 40)],
    },
    Guard {
        function: "5quant6matmul8run_tile6others6others4avx2",
        products: &["vpmaddubsw"],
        with: &["vfmadd"],
        committed: &[
            ((8, 8), 152),
            ((8, 16), 160),
            ((16, 2), 146),
            ((16, 4), 192),
            ((24, 6), 167),
            ((32, 4), 210),
            ((32, 8), 343),
            ((48, 6), 290),
            ((48, 12), 285),
            ((64, 8), 652),
            ((64, 16), 641),
        ],
    },
    Guard {
        function: "5quant6matmul8run_tile7avxvnni",
        products: &["vpdpbusd"],
        with: &["vfmadd"],
        committed: &[
            ((10, 10), 141),
            ((10, 20), 158),
            ((12, 12), 159),
            ((12, 24), 179),
            ((16, 2), 128),
            ((16, 4), 174),
            ((20, 20), 228),
            ((24, 6), 134),
            ((24, 24), 259),
            ((32, 4), 171),
            ((32, 8), 306),
            ((48, 6), 212),
            ((48, 12), 222),
            ((64, 8), 571),
            ((64, 16), 556),
        ],
    },
    Guard {
        function: "5quant6matmul8run_tile6others6others6avx512",
        products: &["vpdpbusd"],
        with: &["vfmadd"],
        committed: WIDE_QUANT,
    },
    Guard {
        function: "16groups_of_shorts10avx512vnni",
        products: &["vpdpwssd"],
        with: BROADCASTS,
        committed: &[((8, 2), 34), ((16, 4), 44), ((24, 6), 54), ((32, 4), 58), ((40, 6), 68), ((48, 8), 78)],
    },
    Guard { function: "15groups_of_codes10avx512vnni", products: &["vpdpbusd"], with: BROADCASTS, committed: CODES },
    Guard {
        function: "kvist_kernels6matmul8run_tile10avx512vnni",
        products: &["vfmadd"],
        with: BROADCASTS,
        committed: &[
            ((8, 2), 30),
            ((16, 4), 36),
            ((24, 6), 46),
            ((32, 8), 58),
            ((32, 16), 66),
            ((40, 10), 68),
            ((40, 18), 76),
            ((48, 12), 78),
            ((48, 20), 90),
        ],
    },
    Guard {
        function: "5quant6matmul8run_tile6others10avx512vnni",
        products: &["vpdpbusd"],
        with: &["vfmadd"],
        committed: WIDE_QUANT,
    },
];

/// An instruction more or less is the compiler's choice, and of a hundred some more; sums that are kept in memory take
/// many.
fn tolerance(count: usize) -> usize {
    3.max(count / 16)
}

#[test]
fn inner_loops_have_no_more_instructions_than_they_had() {
    // The kernels must be part of this program.
    std::hint::black_box(kvist_kernels::attend as *const ());
    std::hint::black_box(kvist_kernels::matmul as *const ());
    std::hint::black_box(kvist_kernels::matmul_quant as *const ());
    let program = std::env::current_exe().expect("this program has a path");
    let Ok(output) = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program).output() else {
        println!("SKIPPED: no objdump here (binutils)");
        return;
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    for Guard { function, products, with, committed } in GUARDS {
        let found = loops(&printed, function, products, with);
        println!("{function}: {found:?}");
        for &(kind, most) in committed {
            let &count = found.get(&kind).unwrap_or_else(|| panic!("{function}: no loop of {kind:?} in {found:?}"));
            let limit = most + tolerance(most);
            assert!(count <= limit, "{function} {kind:?}: {count} instructions, there were {most}");
        }
    }
}

/// The loops of a function that have what goes with products and no such loop inside, from its disassembly.
/// Instructions of a loop inside, which is repeated for the steps of a group, count once.
fn loops(printed: &str, function: &str, products: &[&str], with: &[&str]) -> Loops {
    let starts = |line: &str| line.ends_with(">:");
    let body = printed.lines().skip_while(|line| !(starts(line) && line.contains(function))).skip(1);
    let mut code: Vec<(u64, &str, &str)> = Vec::new();
    for line in body.take_while(|line| !starts(line)) {
        let Some((address, instruction)) = line.trim().split_once(':') else { continue };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        let instruction = instruction.trim().trim_start_matches("{vex} ");
        let (name, operands) = instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
        code.push((address, name, operands.trim()));
    }
    let target = |&(_, name, operands): &(u64, &str, &str)| {
        let to = u64::from_str_radix(operands.split(' ').next()?, 16).ok().filter(|_| name.starts_with('j'))?;
        code.binary_search_by_key(&to, |c| c.0).ok()
    };
    let backwards =
        code.iter().enumerate().filter_map(|(end, jump)| Some((target(jump).filter(|&to| to <= end)?, end)));
    let count = |range: (usize, usize), of: &[&str]| {
        code[range.0..=range.1].iter().filter(|c| of.iter().any(|name| c.1.starts_with(name))).count()
    };
    // On the stack are what the registers do not hold, and sums of a tile.
    let kept = |range: (usize, usize)| {
        let store = |name: &str, to: &str| name.starts_with("vmov") && to.starts_with("%zmm") && to.contains('(');
        code[range.0..=range.1].iter().filter(|c| store(c.1, c.2) && !c.2.contains("(%rsp")).count()
    };
    // What lies before its only jump, and leaves for somewhere else, is no loop.
    let comes_back = |&(first, last): &(usize, usize)| {
        let mut reached = vec![false; last - first + 1];
        reached[0] = true;
        for at in first..last {
            let (name, target) = (code[at].1, target(&code[at]));
            if !reached[at - first] {
                continue;
            }
            if let Some(to) = target.filter(|to| (at..=last).contains(to)) {
                reached[to - first] = true;
            }
            reached[at + 1 - first] |= !["jmp", "ret"].iter().any(|leaves| name.starts_with(leaves));
        }
        reached[last - first]
    };
    let ranges: Vec<(usize, usize)> = backwards.filter(|&range| count(range, with) > 0).filter(comes_back).collect();
    let mut out = Loops::new();
    for &range in &ranges {
        if ranges.iter().any(|r| *r != range && r.0 >= range.0 && r.1 <= range.1) {
            continue;
        }
        let longest = out.entry((count(range, products), count(range, with) + kept(range))).or_default();
        *longest = (*longest).max(range.1 - range.0 + 1);
    }
    out.retain(|&(products, _), _| products >= 8);
    out
}

#[test]
fn loops_are_found_in_what_objdump_prints() {
    let product = |at: usize| format!("    {at:x}:\tvfmadd231ps %ymm1,%ymm2,%ymm3\n");
    let body: String = (0x10..0x18).map(product).collect();
    let printed = format!(
        "0000000000000001 <_other>:\n    1:\tjmp    1 <_other>\n\n0000000000000010 <_name8run_task4avx217h0>:\n{body}\
         \x20   18:\tvbroadcastss (%rax),%ymm1\n    19:\tjne    12 <_name+0x2>\n    1a:\tjne    10 <_name>\n    1b:\tret\n"
    );
    let found = |printed: &str| loops(printed, "8run_task4avx2", &["vfmadd"], BROADCASTS);
    // The outer loop is not counted, nor is what is too small to be of interest.
    assert!(found(&printed).is_empty());
    let once = printed.replace("12 <_name+0x2>", "10 <_name>").replace("1a:\tjne    10", "1a:\tjne    1b");
    assert_eq!(found(&once), Loops::from([((8, 1), 10)]));
    // Nor is what is jumped to from behind it and leaves.
    let leaves = once.replace("17:\tvfmadd231ps %ymm1,%ymm2,%ymm3", "17:\tjmp    1b <_name>");
    assert!(leaves != once && found(&leaves).is_empty());
    // A loop of products alone belongs to the one around it.
    let steps = printed.replace("18:\tvbroadcastss (%rax),%ymm1", "18:\tjne    12 <_name+0x2>");
    let steps = steps.replace("19:\tjne    12 <_name+0x2>", "19:\tvbroadcastss (%rax),%ymm1");
    assert_eq!(found(&steps), Loops::from([((8, 1), 11)]));
}
