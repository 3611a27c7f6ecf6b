//! What a directory holds of a model, before anything is read in earnest: which form, how large, what is missing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::hub::walk;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of an index that are read at most.
const MOST_INDEX: u64 = 64 << 20;
/// Of a model without a quantisation named: what most people take, then what loses least.
const PREFERRED: [&str; 2] = ["Q4_K_M", "Q8_0"];

/// The files of a directory.
#[derive(Debug)]
pub struct Files {
    pub form: Form,
    /// What is needed and not there, each with the reason.
    pub missing: Vec<String>,
    /// Bytes of the weights.
    pub bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Form {
    Safetensors,
    Gguf(Vec<Gguf>),
    /// Nothing that can be run; what there is instead.
    Other(String),
}

/// A GGUF model, in one file or in several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gguf {
    /// The first file, as a path from the directory.
    pub file: PathBuf,
    /// As the name says: `Q4_K_M`; "" where it does not.
    pub quant: String,
    pub bytes: u64,
    pub parts: usize,
    /// Parts that are not there.
    pub missing: Vec<String>,
}

impl Files {
    pub fn of(dir: &Path) -> Files {
        let all = walk(dir);
        let has = |end: &str| all.iter().any(|file| file.to_string_lossy().ends_with(end));
        let ggufs = ggufs(dir, &all);
        if !ggufs.is_empty() && !all.iter().any(|file| is_weights(file)) {
            let missing = match ggufs.as_slice() {
                [one] => one.missing.clone(),
                _ => Vec::new(),
            };
            let bytes = ggufs.iter().map(|gguf| gguf.bytes).sum();
            return Files { form: Form::Gguf(ggufs), missing, bytes };
        }
        if !all.iter().any(|file| file == Path::new("config.json") || is_weights(file)) {
            let what = match all.len() {
                0 => "no files".into(),
                _ if has(".bin") || has(".pth") || has(".pt") => "PyTorch weights".into(),
                _ if has(".onnx") => "ONNX".into(),
                n => format!("{n} files, none of them config.json, safetensors or GGUF"),
            };
            return Files { form: Form::Other(what), missing: Vec::new(), bytes: 0 };
        }
        let mut files = Files { form: Form::Safetensors, missing: Vec::new(), bytes: 0 };
        for name in ["config.json", "tokenizer.json"] {
            files.missing.extend(lack(dir, name));
        }
        files.weights(dir, has(".bin") || has(".pth"));
        files
    }

    fn weights(&mut self, dir: &Path, pytorch: bool) {
        if is_there(&dir.join(SINGLE)) {
            self.bytes = size(&dir.join(SINGLE));
            self.missing.extend(lack(dir, SINGLE));
        } else if is_there(&dir.join(INDEX)) {
            match shards(&dir.join(INDEX)) {
                Ok(shards) => {
                    for shard in &shards {
                        self.bytes += size(&dir.join(shard));
                        self.missing.extend(lack(dir, shard));
                    }
                }
                Err(what) => self.missing.push(format!("{INDEX} ({what})")),
            }
        } else {
            let instead = if pytorch { " (there are PyTorch weights, which are not read)" } else { "" };
            self.missing.push(format!("{SINGLE}{instead}"));
        }
    }

    /// Why it cannot be run as it is.
    pub fn trouble(&self) -> Option<String> {
        match &self.form {
            Form::Other(what) => Some(format!("no model that can be run: {what}")),
            _ if self.missing.is_empty() => None,
            _ => Some(format!("incomplete: missing {}", list(&self.missing))),
        }
    }
}

/// The GGUF file that was asked for by quantisation or by name; without either the usual one. The error tells which
/// there are.
pub fn pick<'a>(ggufs: &'a [Gguf], asked: Option<&str>) -> Result<&'a Gguf, String> {
    let choices = || {
        let names = ggufs.iter().map(|gguf| match gguf.quant.as_str() {
            "" => gguf.file.display().to_string(),
            quant if ggufs.iter().filter(|g| g.quant == quant).count() > 1 => gguf.file.display().to_string(),
            quant => quant.to_owned(),
        });
        names.collect::<Vec<_>>().join(", ")
    };
    let of = |quant: &str| -> Vec<&Gguf> { ggufs.iter().filter(|g| g.quant.eq_ignore_ascii_case(quant)).collect() };
    let Some(asked) = asked else {
        let usual = PREFERRED.iter().map(|quant| of(quant)).find(|found| !found.is_empty());
        return match (ggufs, usual.as_deref()) {
            ([one], _) => Ok(one),
            (_, Some([one])) => Ok(one),
            _ => Err(format!("it holds several GGUF models: {}", choices())),
        };
    };
    if let Some(named) = ggufs.iter().find(|g| g.file == Path::new(asked) || g.file.file_name() == Some(asked.as_ref()))
    {
        return Ok(named);
    }
    match of(asked).as_slice() {
        [one] => Ok(one),
        [] => Err(format!("it holds no {asked}, but {}", choices())),
        _ => Err(format!("it holds several of {asked}: {}", choices())),
    }
}

/// The only GGUF model of a directory, in the form that [`pick`] chooses. A directory is no repository: many people keep
/// all their models in one.
pub fn only(ggufs: &[Gguf]) -> Result<&Gguf, String> {
    let names: BTreeSet<String> = ggufs.iter().map(Gguf::name).collect();
    if names.len() > 1 {
        let files: Vec<String> = ggufs.iter().map(|gguf| gguf.file.display().to_string()).collect();
        return Err(format!("it holds several GGUF models: {}", list(&files)));
    }
    pick(ggufs, None)
}

impl Gguf {
    /// What the file is called but for directory, part and type of weights.
    fn name(&self) -> String {
        let stem = gguf_stem(&self.file).unwrap_or_default().to_ascii_lowercase();
        let base = split(&stem).0;
        let name = base.rsplit('/').next().unwrap_or(base);
        let name = name.strip_suffix(&self.quant.to_ascii_lowercase()).unwrap_or(name);
        name.trim_end_matches(['-', '.']).to_owned()
    }
}

/// Groups the parts of split models. Files that go beside a model (vision projectors, importance matrices, drafts) are
/// none.
fn ggufs(dir: &Path, all: &[PathBuf]) -> Vec<Gguf> {
    let mut found: Vec<(String, BTreeSet<usize>, Gguf)> = Vec::new();
    for file in all {
        let Some(stem) = gguf_stem(file) else { continue };
        let name = stem.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        if ["mmproj", "imatrix"].iter().any(|part| name.contains(part)) || name.starts_with("mtp-") {
            continue;
        }
        let (base, part, parts) = split(&stem);
        let key = format!("{base}/{parts}");
        if !found.iter().any(|(k, ..)| *k == key) {
            let gguf = Gguf { file: file.clone(), quant: quant(base), bytes: 0, parts, missing: Vec::new() };
            found.push((key.clone(), BTreeSet::new(), gguf));
        }
        let Some((_, there, gguf)) = found.iter_mut().find(|(k, ..)| *k == key) else { continue };
        match lack(dir, &file.to_string_lossy()) {
            Some(why) => gguf.missing.push(why),
            None => gguf.bytes += size(&dir.join(file)),
        }
        there.insert(part);
        if part == 1 {
            gguf.file = file.clone();
        }
    }
    let complete = |(key, there, mut gguf): (String, BTreeSet<usize>, Gguf)| {
        let base = key.rsplit_once('/').map_or("", |(base, _)| base);
        let parts = gguf.parts;
        let absent = (1..=parts).filter(|part| parts > 1 && !there.contains(part));
        gguf.missing.extend(absent.take(100).map(|part| format!("{base}-{part:05}-of-{parts:05}.gguf")));
        gguf
    };
    found.into_iter().map(complete).collect()
}

fn gguf_stem(file: &Path) -> Option<String> {
    let text = file.to_str()?;
    let (stem, end) = text.split_at_checked(text.len().checked_sub(5)?)?;
    end.eq_ignore_ascii_case(".gguf").then(|| stem.to_owned())
}

/// `name-00002-of-00003` = the second of three parts of `name`.
fn split(stem: &str) -> (&str, usize, usize) {
    let number = |text: &str| (text.len() == 5).then(|| text.parse::<usize>().ok()).flatten();
    let parts = || {
        let (rest, of) = stem.rsplit_once("-of-")?;
        let (base, part) = rest.rsplit_once('-')?;
        Some((base, number(part)?, number(of)?))
    };
    parts().filter(|(_, part, of)| (1..=*of).contains(part)).unwrap_or((stem, 1, 1))
}

/// The last word of the name, if it looks like a type of weights: `Q4_K_M`, `IQ3_XS`, `F16`, `UD-Q4_K_XL`.
fn quant(base: &str) -> String {
    let name = base.rsplit('/').next().unwrap_or(base);
    let (rest, last) = name.rsplit_once(['-', '.']).unwrap_or(("", name));
    let upper = last.to_ascii_uppercase();
    let digits = upper.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let letters = &upper[..upper.len() - digits.len()];
    if !digits.starts_with(|c: char| c.is_ascii_digit())
        || !["Q", "IQ", "TQ", "F", "FP", "BF", "MXFP", "NVFP"].contains(&letters)
    {
        return String::new();
    }
    if rest.rsplit(['-', '.']).next() == Some("UD") { format!("UD-{upper}") } else { upper }
}

/// The type of weights that the name of a GGUF file tells, "" if it does not.
pub fn quant_of(file: &Path) -> String {
    gguf_stem(file).map_or(String::new(), |stem| quant(split(&stem).0))
}

fn is_weights(file: &Path) -> bool {
    file == Path::new(INDEX) || (file.components().count() == 1 && file.extension().is_some_and(|e| e == "safetensors"))
}

/// The shards that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>, String> {
    let mut bytes = Vec::new();
    let file = File::open(index).map_err(|e| e.to_string())?;
    let read = file.take(MOST_INDEX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if read as u64 > MOST_INDEX {
        return Err("it is too large".into());
    }
    let json = kvist_text::read_file(&bytes).map_err(|e| e.to_string())?;
    let map = json["weight_map"].as_object().ok_or("it has no weight_map")?;
    let shards: BTreeSet<String> = map.values().filter_map(|v| v.as_str()).map(str::to_owned).collect();
    if shards.is_empty() {
        return Err("it names no shards".into());
    }
    match shards.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        Some(name) => Err(format!("{name:?} is not the name of a file beside it")),
        None => Ok(shards),
    }
}

/// What is wrong with a file that is needed.
fn lack(dir: &Path, name: &str) -> Option<String> {
    let path = dir.join(name);
    match File::open(&path).and_then(|file| file.metadata()) {
        Ok(meta) if meta.is_file() => None,
        Ok(_) => Some(format!("{name} (it is not a file)")),
        Err(e) => Some(match e.kind() {
            ErrorKind::NotFound if is_there(&path) => format!("{name} (a link to a download that is not there)"),
            ErrorKind::NotFound => name.into(),
            _ => format!("{name} ({})", plain(&e)),
        }),
    }
}

/// The error without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

/// Whether there is an entry of this name, also a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

/// The first few.
pub fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gguf(file: &str) -> Gguf {
        let (base, _, parts) = split(file.strip_suffix(".gguf").unwrap());
        Gguf { file: file.into(), quant: quant(base), bytes: 0, parts, missing: Vec::new() }
    }

    #[test]
    fn names_tell_the_type_of_the_weights() {
        for (name, expected) in [
            ("Qwen3-0.6B-Q4_K_M", "Q4_K_M"),
            ("qwen2.5-0.5b-instruct-q8_0", "Q8_0"),
            ("model.Q6_K", "Q6_K"),
            ("sub/Model-UD-Q4_K_XL", "UD-Q4_K_XL"),
            ("Model-IQ3_XXS", "IQ3_XXS"),
            ("Llama-3.2-1B-BF16", "BF16"),
            ("gemma-f16", "F16"),
            ("Q4_0", "Q4_0"),
            ("Qwen3-0.6B", ""),
            ("Llama-3.2-1B", ""),
            ("model", ""),
            ("model-F", ""),
        ] {
            assert_eq!(quant(name), expected, "{name}");
        }
        assert_eq!(split("m-00002-of-00003"), ("m", 2, 3));
        for whole in ["m-00004-of-00003", "m-2-of-3", "m-of-00003", "m"] {
            assert_eq!(split(whole), (whole, 1, 1));
        }
    }

    /// `kvist serve ~/models` took the one file in `Q4_K_M`, whatever model it was of.
    #[test]
    fn a_directory_is_of_one_model() {
        let one = ["Q8_0/m-1b-Q8_0-00001-of-00002.gguf", "m-1B-UD-Q4_K_XL.gguf", "m-1b-q4_k_m.gguf"].map(gguf);
        assert_eq!(only(&one).unwrap().quant, "Q4_K_M");
        let two = ["m-1b-Q4_K_M.gguf", "m-8b-Q8_0.gguf"].map(gguf);
        assert_eq!(only(&two), Err("it holds several GGUF models: m-1b-Q4_K_M.gguf, m-8b-Q8_0.gguf".into()));
        assert_eq!(only(&two[..1]).unwrap().quant, "Q4_K_M");
    }

    #[test]
    fn one_of_several_is_picked() {
        let some = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16.gguf"].map(gguf);
        assert_eq!(pick(&some, None).unwrap().quant, "Q4_K_M");
        assert_eq!(pick(&some[1..], None).unwrap().quant, "Q8_0");
        assert_eq!(pick(&some[2..], None).unwrap().quant, "F16");
        assert_eq!(pick(&some, Some("f16")).unwrap().quant, "F16");
        assert_eq!(pick(&some, Some("m-F16.gguf")).unwrap().quant, "F16");
        assert_eq!(pick(&some, Some("Q5_K_M")), Err("it holds no Q5_K_M, but Q4_K_M, Q8_0, F16".into()));
        let twice = ["m-Q4_K_M.gguf", "n-Q4_K_M.gguf", "x.gguf"].map(gguf);
        let all = "m-Q4_K_M.gguf, n-Q4_K_M.gguf, x.gguf";
        assert_eq!(pick(&twice, None), Err(format!("it holds several GGUF models: {all}")));
        assert_eq!(pick(&twice, Some("Q4_K_M")), Err(format!("it holds several of Q4_K_M: {all}")));
        assert_eq!(pick(&twice, Some("x.gguf")).unwrap().file, Path::new("x.gguf"));
    }
}
