//! Instructions in the inner loops of attention, counted in this program's own machine code: a guard that no noise moves,
//! and that sees the paths that this CPU cannot run.
//!
//! A loop is known by its multiply-adds and by the words of rows that it broadcasts: with AVX2, `R` rows by `V` vectors are
//! `2 R V` and `2 R` in a step, with AVX-512 `R V` and `R`. What else a loop has is loads, conversions, prefetches and
//! counting; what it must not have is accumulators on the stack.
//!
//! `cargo test --release -p kvist-kernels --test instructions`: development builds check each index in these loops.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::collections::BTreeMap;
use std::process::Command;

/// Instructions of the longest loop by (multiply-adds, broadcasts).
type Loops = BTreeMap<Kind, usize>;
type Kind = (usize, usize);

/// What the longest loops of each kind had when these numbers were taken.
const COMMITTED: [(&str, &[(Kind, usize)]); 2] = [
    ("4avx2", &[((16, 2), 53), ((16, 4), 40), ((18, 6), 42), ((16, 8), 38), ((20, 10), 44), ((24, 12), 50)]),
    ("6avx512", &[((8, 2), 23), ((12, 3), 28), ((16, 4), 34), ((20, 5), 39), ((24, 6), 44)]),
];

/// An instruction more or less is the compiler's choice; an accumulator that is kept in memory takes many.
const TOLERANCE: usize = 3;

#[test]
fn inner_loops_have_no_more_instructions_than_they_had() {
    if cfg!(debug_assertions) {
        println!("SKIPPED: a development build; run it with --release");
        return;
    }
    // The kernel must be part of this program.
    std::hint::black_box(kvist_kernels::attend as *const ());
    let program = std::env::current_exe().expect("this program has a path");
    let Ok(output) = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program).output() else {
        println!("SKIPPED: no objdump here (binutils)");
        return;
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    for (path, wanted) in COMMITTED {
        let found = loops(&printed, &format!("15groups_of_words{path}"));
        println!("{path}: {found:?}");
        for &(kind, most) in wanted {
            let &count = found.get(&kind).unwrap_or_else(|| panic!("{path}: no loop of {kind:?} in {found:?}"));
            assert!(count <= most + TOLERANCE, "{path} {kind:?}: {count} instructions, there were {most}");
        }
    }
}

/// The inner loops of a function, from its disassembly.
fn loops(printed: &str, function: &str) -> Loops {
    let starts = |line: &str| line.ends_with(">:");
    let body = printed.lines().skip_while(|line| !(starts(line) && line.contains(function))).skip(1);
    let mut code: Vec<(u64, &str, &str)> = Vec::new();
    for line in body.take_while(|line| !starts(line)) {
        let Some((address, instruction)) = line.trim().split_once(':') else { continue };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        let (name, operands) = instruction.trim().split_once(char::is_whitespace).unwrap_or((instruction.trim(), ""));
        code.push((address, name, operands.trim()));
    }
    let backwards = code.iter().enumerate().filter_map(|(end, &(address, name, operands))| {
        let target = u64::from_str_radix(operands.split(' ').next()?, 16)
            .ok()
            .filter(|t| name.starts_with('j') && *t <= address)?;
        Some((code.binary_search_by_key(&target, |c| c.0).ok()?, end))
    });
    let ranges: Vec<(usize, usize)> = backwards.collect();
    let mut out = Loops::new();
    for &(start, end) in &ranges {
        if ranges.iter().any(|r| *r != (start, end) && r.0 >= start && r.1 <= end) {
            continue;
        }
        let count = |of: fn(&str) -> bool| code[start..=end].iter().filter(|c| of(c.1)).count();
        let products = count(|name| name.starts_with("vfmadd") || name == "vdpbf16ps");
        let broadcasts = count(|name| name == "vbroadcastss" || name == "vpbroadcastd");
        let longest = out.entry((products, broadcasts)).or_default();
        *longest = (*longest).max(end - start + 1);
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
    // The outer loop is not counted, nor is what is too small to be of interest.
    assert!(loops(&printed, "8run_task4avx2").is_empty());
    let printed = printed.replace("12 <_name+0x2>", "10 <_name>").replace("1a:\tjne    10", "1a:\tjne    1b");
    assert_eq!(loops(&printed, "8run_task4avx2"), Loops::from([((8, 1), 10)]));
}
