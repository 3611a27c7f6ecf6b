//! The `decoder` section of `tokenizer.json`, reduced to what it means for one token: its bytes, and what is dropped at
//! the start of a text.

use serde_json::Value;

/// How the pieces of a vocabulary become bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decoder {
    /// Each character of a piece stands for one byte (the GPT-2 alphabet).
    ByteLevel,
    /// Pieces are text after `replace`; `<0xAB>` is one byte if `byte_fallback`.
    Pieces { replace: Vec<(String, String)>, byte_fallback: bool },
    /// No decoder: pieces joined by spaces.
    Joined,
}

/// What is dropped at the very start of a decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    Nothing,
    /// Up to `count` bytes equal to `byte`.
    Strip {
        byte: u8,
        count: usize,
    },
    /// Every space that the first piece was given by replacing the metaspace.
    FirstPiece,
}

impl Decoder {
    pub fn parse(section: Option<&Value>) -> Result<(Decoder, Lead), String> {
        let mut steps = Vec::new();
        flatten(section.unwrap_or(&Value::Null), &mut steps);
        if steps.is_empty() {
            return Ok((Decoder::Joined, Lead::Nothing));
        }
        let mut replace = Vec::new();
        let mut byte_fallback = false;
        let mut fused = false;
        let mut lead = Lead::Nothing;
        for step in &steps {
            let kind = step["type"].as_str().unwrap_or("?");
            match kind {
                "ByteLevel" if steps.len() == 1 => return Ok((Decoder::ByteLevel, Lead::Nothing)),
                "Metaspace" if steps.len() == 1 => {
                    let from = step["replacement"].as_str().unwrap_or("▁").to_owned();
                    let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == false;
                    let lead = if never { Lead::Nothing } else { Lead::FirstPiece };
                    let replace = vec![(from, " ".to_owned())];
                    return Ok((Decoder::Pieces { replace, byte_fallback: false }, lead));
                }
                "Replace" if !fused && !byte_fallback => {
                    let from = step["pattern"]["String"].as_str().ok_or("decoder Replace by regex is not supported")?;
                    replace.push((from.to_owned(), step["content"].as_str().unwrap_or_default().to_owned()));
                }
                "ByteFallback" if !fused => byte_fallback = true,
                "Fuse" => fused = true,
                "Strip" if fused && lead == Lead::Nothing && step["stop"].as_u64() == Some(0) => {
                    let content = step["content"].as_str().unwrap_or_default();
                    let (&[byte], Some(count)) = (content.as_bytes(), step["start"].as_u64()) else {
                        return Err(format!("decoder Strip of {content:?} is not supported"));
                    };
                    lead = Lead::Strip { byte, count: count as usize };
                }
                _ => {
                    return Err(format!(
                        "decoder step {kind} is not supported here (known: ByteLevel, Metaspace, and sequences of \
                         Replace, ByteFallback, Fuse, Strip)"
                    ));
                }
            }
        }
        Ok((Decoder::Pieces { replace, byte_fallback }, lead))
    }

    /// The bytes of one piece anywhere but at the start of a text.
    pub fn bytes(&self, piece: &str) -> Vec<u8> {
        match self {
            Decoder::ByteLevel => {
                piece.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            Decoder::Pieces { replace, byte_fallback } => {
                let mut text = piece.to_owned();
                for (from, to) in replace {
                    text = text.replace(from, to);
                }
                if *byte_fallback && let Some(byte) = fallback_byte(&text) {
                    return vec![byte];
                }
                text.into_bytes()
            }
            Decoder::Joined => [b" ", piece.as_bytes()].concat(),
        }
    }

    /// The bytes of one piece at the start of a text, where [`Lead::FirstPiece`] holds.
    pub fn first_bytes(&self, piece: &str) -> Vec<u8> {
        match self {
            Decoder::Pieces { replace, .. } => {
                replace.iter().fold(piece.to_owned(), |text, (from, _)| text.replace(from, "")).into_bytes()
            }
            _ => self.bytes(piece),
        }
    }
}

fn flatten<'a>(section: &'a Value, out: &mut Vec<&'a Value>) {
    match section {
        Value::Null => {}
        Value::Object(map) if map.get("type").is_some_and(|t| t == "Sequence") => {
            for step in map.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                flatten(step, out);
            }
        }
        other => out.push(other),
    }
}

fn fallback_byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// Inverse of the GPT-2 alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on, in order.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for byte in (0..0x200).filter_map(|c| byte_of(char::from_u32(c).unwrap())) {
            assert!(!std::mem::replace(&mut seen[byte as usize], true), "two characters for {byte}");
        }
        assert_eq!(seen, [true; 256]);
        assert_eq!((byte_of('Ġ'), byte_of('Ċ')), (Some(b' '), Some(b'\n')));
    }

    #[test]
    fn unknown_decoders_are_refused() {
        let wordpiece = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        assert!(Decoder::parse(Some(&wordpiece)).unwrap_err().contains("WordPiece"));
    }
}
