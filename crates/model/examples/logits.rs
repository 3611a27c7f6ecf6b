//! Logits of given tokens, for comparisons with other programs: `logits MODEL [ISA|oracle]`.
//!
//! MODEL is a `.gguf` file or a directory. Each line of the standard input is one sequence of token ids with spaces
//! between them; the standard output is f32, little-endian, `[token][vocab]` for one sequence after the other.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use kvist_base::{CHUNK, Executor};
use kvist_kernels::Isa;
use kvist_model::testing::logits;
use kvist_model::{LoadOptions, Model, ModelSource, OracleExecutor};

/// Rows of a step, as a server would have them.
const STEP: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = || format!("usage: logits MODEL [{}|oracle]", Isa::NAMES.join("|"));
    let path = PathBuf::from(args.next().ok_or_else(usage)?);
    let source = if path.is_dir() { ModelSource::Dir(path) } else { ModelSource::Gguf(path) };
    let lines: Vec<String> = io::stdin().lock().lines().collect::<Result<_, _>>()?;
    let parse = |line: &String| line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>();
    let sequences = lines.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
    let chunks = longest.div_ceil(CHUNK) as u32;

    let mut executor: Box<dyn Executor> = match args.next().as_deref() {
        Some("oracle") => Box::new(OracleExecutor::new(&source, chunks, None)?),
        isa => {
            let isa = isa.map_or(Ok(Isa::detect()), str::parse)?;
            let threads = std::thread::available_parallelism()?.get();
            let model = Model::load(&source, &LoadOptions { threads, ..LoadOptions::default() })?;
            Box::new(model.into_executor(chunks, None, isa, threads)?)
        }
    };
    let info = executor.info();
    eprintln!("{}", info.name);
    if longest > info.context || sequences.iter().flatten().any(|&id| id as usize >= info.vocab) {
        return Err(format!("ids below {}, {} in a line at most", info.vocab, info.context).into());
    }
    let mut out = io::stdout().lock();
    for ids in sequences {
        let cuts: Vec<usize> = (STEP..ids.len()).step_by(STEP).collect();
        let bytes: Vec<u8> = logits(&mut *executor, &ids, &cuts, 0).into_iter().flat_map(f32::to_le_bytes).collect();
        out.write_all(&bytes)?;
    }
    Ok(())
}
