//! Errors of clap in the words of all others: `error: what` and `hint: what to do`.

use super::command;

/// What other servers call a thing, and how it is asked for here.
const FOREIGN: [(&[&str], &str); 9] = [
    (
        &["--model", "-m", "-hf", "-hfr", "--hf-repo", "--hf-file"],
        "the model is an argument without a flag: kvist serve MODEL",
    ),
    (&["--ctx-size", "-c", "--max-model-len", "--context-length", "--num-ctx"], "here it is --ctx"),
    (&["--parallel", "-np", "--max-num-seqs", "--max-running-requests"], "here it is --max-batch"),
    (&["--cache-ram", "-cram", "--kv-cache-memory-bytes"], "here it is --kv-ram"),
    (&["--cache-type-k", "--cache-type-v", "--kv-cache-dtype", "-ctk", "-ctv"], "here it is --kv-type"),
    (&["--quantization", "-q", "--dtype"], "here it is --weights"),
    (&["-t", "--n-threads"], "here it is --threads"),
    (&["--api-key"], "keys come from a file, so that they are in no list of processes: --api-key-file FILE"),
    (&["--n-gpu-layers", "-ngl", "--tensor-parallel-size", "--device"], "leave it out: this version runs on CPUs"),
];

/// Rewrites what clap says of these arguments.
pub fn restyle(text: &str, args: &[String]) -> String {
    let Some(rest) = text.strip_prefix("error: ") else { return text.to_owned() };
    let mut paragraphs = rest.split("\n\n");
    let what = paragraphs.next().unwrap_or_default().trim_end();
    let tip = paragraphs.find_map(|p| p.trim_start().strip_prefix("tip: ")).map(str::trim_end);
    let unknown = what.strip_prefix("unexpected argument '").and_then(|rest| rest.split('\'').next());
    let foreign = FOREIGN.iter().find(|(names, _)| unknown.is_some_and(|unknown| names.contains(&unknown)));
    // How to pass what looks like a flag as a value helps nobody.
    let tip = tip.filter(|tip| !tip.contains("use '-- "));
    let hint = match (foreign, tip) {
        (Some((_, hint)), _) => (*hint).to_owned(),
        (None, Some(tip)) => tip.split_whitespace().collect::<Vec<_>>().join(" "),
        (None, None) => format!("`{} --help` lists what there is", asked(args)),
    };
    format!("error: {what}\nhint: {hint}\n")
}

/// The command that was asked for, as far as it exists.
fn asked(args: &[String]) -> String {
    let (mut command, mut words) = (command(), vec!["kvist".to_owned()]);
    for arg in args.iter().skip(1) {
        let Some(next) = command.find_subcommand(arg).cloned() else { break };
        words.push(arg.clone());
        command = next;
    }
    words.join(" ")
}
