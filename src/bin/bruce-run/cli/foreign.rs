//! Flags that llama.cpp's programs have and bruce-run has not, so that whoever types one is told so, and what there is
//! instead.
//!
//! Without this a name of several letters after one hyphen would be read as several flags: `-hf` as `-h`, which prints
//! the help, and `-sm none` as the seed `m`.

use std::ffi::OsStr;

/// The names of flags, and what is said of them.
const FLAGS: &[(&[&str], &str)] = &[
    (
        &[
            "-hf",
            "-hfr",
            "-hff",
            "-hft",
            "--hf-repo",
            "--hf-file",
            "--hf-token",
            "-mu",
            "--model-url",
            "-dr",
            "--docker-repo",
            "-cl",
            "--cache-list",
        ],
        "nothing is downloaded: fetch the file (hf download USER/NAME FILE), then bruce-run FILE",
    ),
    (
        &["--grammar", "--grammar-file", "-j", "--json-schema", "-jf", "--json-schema-file"],
        "there is no sampling by grammar",
    ),
    (
        &[
            "--lora",
            "--lora-scaled",
            "--control-vector",
            "--control-vector-scaled",
            "--control-vector-layer-range",
        ],
        "adapters must be merged into the model first",
    ),
    (
        &[
            "-md",
            "--model-draft",
            "--spec-draft-model",
            "-ngld",
            "--n-gpu-layers-draft",
            "-devd",
            "--device-draft",
            "-cd",
            "-ctkd",
            "--cache-type-k-draft",
            "-ctvd",
            "--cache-type-v-draft",
            "-hfd",
            "-hfrd",
            "--hf-repo-draft",
            "-td",
            "--threads-draft",
            "-tbd",
            "--threads-batch-draft",
            "-otd",
            "--override-tensor-draft",
            "-cmoed",
            "--cpu-moe-draft",
            "-ncmoed",
            "--n-cpu-moe-draft",
            "--draft-min",
            "--draft-p-min",
            "--draft-p-split",
            "--spec-type",
        ],
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
            "-nocb",
            "--no-cont-batching",
            "-kvu",
            "--kv-unified",
            "-no-kvu",
            "--no-kv-unified",
            "-cram",
            "--cache-ram",
            "-ctxcp",
            "--ctx-checkpoints",
            "-sps",
            "--slot-prompt-similarity",
            "-to",
            "--timeout",
            "--host",
            "--port",
            "--api-key",
        ],
        "there is no server, and one sequence",
    ),
    (
        &["-mm", "--mmproj", "-mmu", "--mmproj-url", "--image", "--audio", "--video"],
        "models read and write text",
    ),
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
            "--adaptive-target",
            "--adaptive-decay",
            "-bs",
            "--backend-sampling",
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
        &[
            "--numa",
            "-C",
            "-Cb",
            "--cpu-mask",
            "--cpu-mask-batch",
            "-Cr",
            "-Crb",
            "--cpu-range",
            "--cpu-range-batch",
            "--cpu-strict",
            "--cpu-strict-batch",
            "--prio",
            "--prio-batch",
            "--poll",
            "--poll-batch",
        ],
        "which cores threads take is left to the system (taskset, numactl)",
    ),
    (
        &["-fit", "--fit", "-fitt", "--fit-target", "-fitc", "--fit-ctx", "-fitp", "--fit-print"],
        "what there is room for is planned anyway; --vram and --ram set budgets",
    ),
    (&["--list-devices"], "bruce-run devices lists them"),
    (&["--rpc"], "models run on one machine"),
    (
        &["--op-offload", "--no-op-offload"],
        "--stage-experts says which prompts GPUs read with the experts that are on the CPU",
    ),
    (
        &["-ncffn", "--n-cpu-ffn"],
        "-ot 'blk\\.[0-3]\\.ffn_.*=CPU' keeps the feed-forward network of four layers on the CPU",
    ),
    (
        &[
            "-lv",
            "--verbosity",
            "--log-verbosity",
            "--log-verbose",
            "--log-file",
            "--log-colors",
            "--log-prefix",
            "--log-timestamps",
        ],
        "what is said goes to stderr, and more of it with -v",
    ),
    (&["-bf", "--binary-file"], "-f FILE --no-escape reads a prompt"),
    (
        &["-if", "--interactive-first", "--in-prefix", "--in-prefix-bos", "--in-suffix", "--no-jinja"],
        "turns are written by the chat template: --chat-template names another, -no-cnv does without",
    ),
    (
        &["-rea", "--reasoning", "--reasoning-format", "--reasoning-budget", "--chat-template-kwargs"],
        "what a model thinks is printed as it comes",
    ),
    (
        &["--hellaswag", "--winogrande", "--multiple-choice", "--ppl-stride"],
        "bruce-run perplexity and kl-divergence measure texts in chunks",
    ),
    (
        &["-ofreq", "--output-frequency", "--save-frequency", "--output-format"],
        "bruce-run imatrix writes one file, in the GGUF format, at its end",
    ),
    (&["--show-statistics"], ""),
    (
        &[
            "-dt",
            "--defrag-thold",
            "-gan",
            "--grp-attn-n",
            "-gaw",
            "--grp-attn-w",
            "--verbose-prompt",
            "--swa-full",
            "--no-host",
            "-lzm",
            "--lazy-mode",
            "-mli",
            "--multiline-input",
        ],
        "",
    ),
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
        for token in
            ["-hf", "--hf-repo=a/b", "--hf_repo", "-sm", "--override-kv", "-lv", "-td", "--log_file=x"]
        {
            let (message, instead) = known_elsewhere(OsStr::new(token)).expect(token);
            assert!(message.contains("llama.cpp") && !instead.is_empty(), "{message} {instead}");
        }
        for token in ["-h", "--temp", "model.gguf", "--nobody-has-this", "-"] {
            assert_eq!(known_elsewhere(OsStr::new(token)), None, "{token}");
        }
    }
}
