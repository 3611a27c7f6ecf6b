//! Token ids for the comparison with Hugging Face `tokenizers` (`tools/compare_tokenizers.py`).
//!
//!     tokenize FILE < texts > answers
//!
//! FILE is a `tokenizer.json`, or the fields of a `GgufVocab` as JSON. Each line of input is a text as a JSON string;
//! each line of output is `[ids without special tokens, ids with them, text of the former]`. Ends with an error if the
//! text that comes piece by piece is not the text that comes at once.

use std::io::{BufWriter, Error, Write, stdin, stdout};

use kvist_text::{Detokenizer, GgufVocab, Tokenizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: tokenize FILE < texts > answers")?;
    let bytes = std::fs::read(&path)?;
    let tokenizer = match serde_json::from_slice::<GgufVocab>(&bytes) {
        Ok(vocab) => Tokenizer::from_gguf(&vocab)?,
        Err(_) => Tokenizer::from_bytes(&bytes)?,
    };
    let mut out = BufWriter::new(stdout().lock());
    for line in stdin().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let ids = tokenizer.encode(&text, false)?;
        let decoded = tokenizer.decode(&ids, false);
        let mut stream = Detokenizer::new(&tokenizer, false);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        if streamed != decoded {
            return Err(Error::other(format!("{text:?}: {decoded:?} at once, {streamed:?} piece by piece")).into());
        }
        serde_json::to_writer(&mut out, &(&ids, tokenizer.encode(&text, true)?, decoded))?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
