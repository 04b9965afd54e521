//! Flags that llama.cpp's programs have and bruce-run has not, so that whoever types one is told so, and what there is
//! instead.
//!
//! Without this a name of several letters after one hyphen would be read as several flags: `-hf` as `-h`, which prints
//! the help, and `-sm none` as the seed `m`.

use std::ffi::OsStr;

/// The names of flags, and what is said of them.
const FLAGS: &[(&[&str], &str)] = &[
    (
        &["-hf", "-hfr", "-hff", "-hft", "--hf-repo", "--hf-file", "--hf-token", "-mu", "--model-url", "-dr"],
        "nothing is downloaded: fetch the file (hf download USER/NAME FILE), then bruce-run FILE",
    ),
    (
        &["--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"],
        "there is no sampling by grammar",
    ),
    (
        &["--lora", "--lora-scaled", "--control-vector", "--control-vector-scaled"],
        "adapters must be merged into the model first",
    ),
    (
        &["-md", "--model-draft", "-ngld", "-devd", "-cd", "-hfd", "--draft-min", "--draft-p-min"],
        "there is no second model to draft with; --lookup drafts from the text",
    ),
    (
        &[
            "-np",
            "--parallel",
            "-ns",
            "--sequences",
            "-cb",
            "--cont-batching",
            "--host",
            "--port",
            "--api-key",
        ],
        "there is no server, and one sequence",
    ),
    (&["-mm", "--mmproj", "--image", "--audio"], "models read and write text"),
    (
        &[
            "--mirostat",
            "--mirostat-lr",
            "--mirostat-ent",
            "--dry-multiplier",
            "--dry-base",
            "--dry-allowed-length",
            "--dry-penalty-last-n",
            "--dry-sequence-breaker",
            "--xtc-probability",
            "--xtc-threshold",
            "--top-nsigma",
            "--top-n-sigma",
            "--dynatemp-range",
            "--dynatemp-exp",
        ],
        "the stages of sampling are those that --help lists",
    ),
    (
        &["-sm", "--split-mode", "-mg", "--main-gpu"],
        "layers are placed whole: -dev names the GPUs, -ts their shares",
    ),
    (
        &["-kvo", "--kv-offload", "-nkvo", "--no-kv-offload"],
        "keys and values lie where their layers' attention is computed",
    ),
    (&["--override-kv"], "bruce-quant --override-kv writes another value into a file"),
    (
        &["--numa", "-C", "--cpu-mask", "-Cr", "--cpu-range", "--cpu-strict", "--prio", "--poll"],
        "which cores threads take is left to the system (taskset, numactl)",
    ),
    (
        &["-fit", "--fit", "-fitt", "--fit-target", "-fitc", "--fit-ctx"],
        "what there is room for is planned anyway; --vram and --ram set budgets",
    ),
    (&["-dt", "--defrag-thold", "-gan", "--grp-attn-n", "-gaw", "--grp-attn-w", "--verbose-prompt"], ""),
];

/// What to say of a flag that bruce-run has not: that it is another program's, and what there is instead. `None` where
/// nobody has it.
pub fn known_elsewhere(token: &OsStr) -> Option<(String, &'static str)> {
    let text = token.to_str()?;
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    // As clap's flags, these may be written with underscores.
    let hyphens = match name.strip_prefix("--") {
        Some(long) => format!("--{}", long.replace('_', "-")),
        None => name.to_owned(),
    };
    let (_, instead) = FLAGS.iter().find(|(names, _)| names.contains(&hyphens.as_str()))?;
    Some((format!("{name}: found a flag of llama.cpp that bruce-run does not have"), instead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_llama_cpp_are_recognised_in_every_spelling() {
        for token in ["-hf", "--hf-repo=a/b", "--hf_repo", "-sm", "--override-kv"] {
            let (message, instead) = known_elsewhere(OsStr::new(token)).expect(token);
            assert!(message.contains("llama.cpp") && !instead.is_empty(), "{message} {instead}");
        }
        for token in ["-h", "--temp", "model.gguf", "--nobody-has-this", "-"] {
            assert_eq!(known_elsewhere(OsStr::new(token)), None, "{token}");
        }
    }
}
