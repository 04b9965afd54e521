//! Mistakes that people make on the command line, and what the programs say to them.

use crate::support::{
    bruce_quant, bruce_run, listing, quantized, refused, root, run, stderr, succeed, tiny_moe_copy,
};
use std::fs;
use std::process::Command;

/// Checks that a command line is refused with `error` in the error and `hint` in the hint.
fn refused_with(command: &mut Command, error: &str, hint: &str) {
    let output = run(command);
    refused(&output, 2, &[error]);
    let said = stderr(&output);
    assert!(said.lines().any(|line| line.starts_with("hint: ") && line.contains(hint)), "{hint:?}: {said}");
}

#[test]
fn mistyped_flags_commands_and_types_are_guessed() {
    let model = root().join("models/tiny-moe");
    refused_with(
        bruce_quant().arg(&model).args(["-q", "q4_k", "--ouput", "x"]),
        "--ouput",
        "did you mean --output?",
    );
    refused_with(bruce_quant().arg(&model).args(["-q", "q4km"]), "\"q4km\"", "did you mean Q4_K_M?");
    refused_with(bruce_quant().args(["verfy", "m.gguf"]), "verfy", "did you mean bruce-quant verify?");
    refused_with(
        bruce_quant().args(["verify", "m.gguf", "--agianst", "x"]),
        "--agianst",
        "did you mean --against? bruce-quant verify --help shows",
    );
    refused_with(bruce_run().args(["m.gguf", "--tmp", "0"]), "--tmp", "did you mean --temp?");
    refused_with(bruce_run().args(["benhc", "m.gguf"]), "benhc", "did you mean bruce-run bench?");
    refused_with(bruce_run().args(["m.gguf", "bench"]), "commands first", "did you mean bruce-run bench?");
    refused_with(bruce_run().args(["inspect", "a", "b"]), "further argument \"b\"", "--help");
    refused_with(bruce_run().args(["m.gguf", "-n", "abc"]), "a number of tokens", "--help");
    refused_with(bruce_run().args(["m.gguf", "-n", "-5"]), "a number of tokens", "--help");
    refused_with(bruce_run().args(["m.gguf", "--ram", "12"]), "12G", "--help");
    refused_with(bruce_run().args(["m.gguf", "--top-k", "abc"]), "expected a whole number", "--help");
    refused_with(bruce_run().args(["m.gguf", "--temp", "nan"]), "expected a number", "--help");
    refused_with(bruce_run().args(["m.gguf", "--repeat-last-n", "-2"]), "-2 is not in -1..", "--help");
    refused_with(
        bruce_run().args(["bench", "m.gguf", "-p", "0", "-n", "0"]),
        "found 0 tokens of both",
        "-n 0 decoding",
    );
    refused_with(
        bruce_run().args(["perplexity", "m.gguf", "-f", "t", "--chunks", "0"]),
        "-1 for all",
        "bruce-run perplexity --help",
    );
    refused_with(bruce_run().args(["perplexity", "m.gguf"]), "missing --file", "bruce-run perplexity --help");
}

#[test]
fn flags_of_llama_cpp_that_bruce_run_lacks_are_called_that() {
    // -h is a flag of ours, and so are -s, -n and -l.
    refused_with(
        bruce_run().args(["m.gguf", "-hf", "user/name"]),
        "-hf: found a flag of llama.cpp",
        "hf download",
    );
    refused_with(bruce_run().args(["m.gguf", "-sm", "none"]), "-sm: found a flag of llama.cpp", "-dev");
    refused_with(
        bruce_run().args(["m.gguf", "--grammar", "x"]),
        "--grammar: found",
        "no sampling by grammar",
    );
    refused_with(bruce_run().args(["bench", "m.gguf", "-nkvo"]), "-nkvo: found", "--help");
    // Nothing is near to this one.
    let output = run(bruce_run().args(["m.gguf", "--frobnicate"]));
    refused(&output, 2, &["--frobnicate"]);
    assert!(!stderr(&output).contains("did you mean"), "{}", stderr(&output));
}

#[test]
fn the_order_of_llama_quantize_is_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("in.gguf");
    fs::write(&model, "GGUF").expect("a file");
    refused_with(
        bruce_quant().arg(&model).args(["out.gguf", "q4_k_m", "4"]),
        "further argument \"out.gguf\"",
        "bruce-quant IN.gguf -q Q4_K_M -o OUT.gguf",
    );
}

#[test]
fn of_a_flag_given_twice_the_last_counts() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let said = |arguments: &[&str]| succeed(bruce_run().arg(&model).args(["-p", "In the"]).args(arguments));
    let greedy = said(&["--temp", "0", "-n", "4"]);
    assert_eq!(said(&["--temp", "9", "-n", "1", "--temp", "0", "-n", "4"]), greedy);
}

#[test]
fn nobody_needs_to_read_stderr() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut command = bruce_run();
    command.arg(&model).args(["-p", "In the", "-n", "1", "--temp", "0"]);
    let answer = succeed(&mut command);
    // A pipe whose reading end is closed before the program starts.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(succeed(command.stderr(writer)), answer);
}

#[test]
fn sizes_of_contexts_are_told_where_they_surprise() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let told_with = |size: &str, flags: &[&str]| {
        let usual = ["-p", "In", "-n", "1", "--no-perf", "-c", size];
        let output = run(bruce_run().arg(&model).args(usual).args(flags));
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let told = |size| told_with(size, &[]);
    assert_eq!(told("256"), "");
    assert_eq!(told("16"), "note: -c 16: the context has 256 tokens, as its size is a multiple of 256\n");
    assert!(
        told("1024").starts_with("warning: -c 1024: the model was trained with 512 tokens"),
        "{}",
        told("1024")
    );
    assert_eq!(told_with("1024", &["--rope-scale", "2"]), "");
}

#[test]
fn help_names_the_whole_command_and_keeps_its_lines() {
    for arguments in [&["verify", "--help"][..], &["card", "--help"], &["--help"]] {
        let help = succeed(bruce_quant().args(arguments));
        for command in ["bruce-quant verify", "bruce-quant card"] {
            let meant = arguments.len() == 1 || command.ends_with(arguments[0]);
            assert_eq!(
                help.lines().any(|l| l.trim().trim_start_matches("Usage: ").starts_with(command)
                    && (l.contains("[OPTIONS]"))),
                meant,
                "{arguments:?} {command}\n{help}"
            );
        }
    }
    // A line of prose that clap has to break leaves a stump below it.
    let commands =
        ["inspect", "tokenize", "bench", "perplexity", "trace", "kl-divergence", "imatrix", "devices"];
    let mut helps: Vec<String> = commands.iter().map(|c| succeed(bruce_run().args([c, "--help"]))).collect();
    helps.push(succeed(bruce_run().arg("--help")));
    helps.extend(
        [&["--help"][..], &["verify", "--help"], &["card", "--help"]].map(|a| succeed(bruce_quant().args(a))),
    );
    for help in helps {
        let examples = help.find("\nExamples:").map(|at| &help[at..]).expect("examples");
        for (line, next) in examples.lines().zip(examples.lines().skip(1)) {
            let is_stump =
                !line.is_empty() && !line.ends_with(['.', ';']) && line.len() < 40 && !next.starts_with(' ');
            let before_prose = next.is_empty() || line.starts_with(' ') || line.ends_with(':');
            assert!(!is_stump || before_prose, "{line:?} in\n{help}");
        }
    }
}

#[test]
fn nothing_is_written_to_a_file_called_by_a_hyphen() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = root().join("models/tiny-moe");
    let text = model.join("heldout.txt");
    let quant = |arguments: &[&str]| run(bruce_quant().current_dir(&folder).arg(&model).args(arguments));
    refused(&quant(&["-q", "q4_k", "-o", "-"]), 2, &["--output", "does not go to stdout"]);
    let imatrix =
        run(bruce_run().current_dir(&folder).args(["imatrix", "m.gguf", "-o", "-", "-f"]).arg(&text));
    refused(&imatrix, 2, &["--output", "does not go to stdout"]);
    assert_eq!(listing(folder.path()), Vec::<String>::new());
}

#[test]
fn force_replaces_gguf_files_only() {
    let checkpoint = tiny_moe_copy();
    let precious = checkpoint.path().join("notes.txt");
    let other = tiny_moe_copy();
    fs::write(&precious, "weeks of work").expect("a file");
    let output = run(bruce_quant().arg(other.path()).args(["-q", "q4_k", "--force", "-o"]).arg(&precious));
    refused(&output, 1, &["notes.txt", "not GGUF"]);
    assert_eq!(fs::read_to_string(&precious).expect("a file"), "weeks of work");
}

#[test]
fn copying_takes_no_rules_about_types() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let copied = |arguments: &[&str]| {
        let output = folder.path().join("copy.gguf");
        run(bruce_quant().arg(&model).args(["-q", "copy"]).args(arguments).arg("-o").arg(output))
    };
    refused(&copied(&["--tensor-type", "attn_v=q4_K"]), 2, &["-q copy", "--tensor-type"]);
    refused(&copied(&["--pure"]), 2, &["-q copy", "--pure"]);
    refused(&copied(&["--recipe", "moe"]), 2, &["-q copy", "--recipe"]);
    assert_eq!(listing(folder.path()), Vec::<String>::new());
}

#[test]
fn options_without_effect_are_warned_of() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let warned = |arguments: &[&str], words: &str| {
        let output =
            run(bruce_run().arg(&model).args(["-p", "In", "-n", "1", "-dev", "none"]).args(arguments));
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains(words), "{words:?}: {}", stderr(&output));
    };
    warned(&["-ngl", "99"], "warning: --n-gpu-layers: there is no GPU");
    warned(&["--stage-experts", "64"], "warning: --stage-experts: there is no GPU");
    warned(&["-ot", "fnf=CPU"], "warning: --override-tensor fnf=CPU: fits no tensor");
    warned(&["-sys", "Be brief."], "warning: --system-prompt: the model has no chat template");
    let output = run(bruce_run().arg(&model).args(["-p", "In", "-n", "1", "-ngl", "0", "-ot", "ffn=CPU"]));
    assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
}

#[test]
fn a_prompt_without_room_is_not_shown() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let text = root().join("models/tiny-moe/heldout.txt");
    let output = run(bruce_run().arg(&model).args(["-c", "256", "-f"]).arg(text));
    refused(&output, 1, &["the prompt has", "256"]);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn imatrix_finds_out_first_that_it_cannot_write() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let text = root().join("models/tiny-moe/heldout.txt");
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("missing/imatrix.gguf");
    let ended = run(bruce_run()
        .arg("imatrix")
        .arg(&model)
        .args(["--chunks", "1", "-f"])
        .arg(text)
        .arg("-o")
        .arg(output));
    refused(&ended, 1, &["missing/imatrix.gguf", "No such file"]);
    assert!(ended.stdout.is_empty(), "{}", String::from_utf8_lossy(&ended.stdout));
}

#[test]
fn verify_names_a_file_with_a_missing_key_once() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut bytes = fs::read(model).expect("a file");
    let key = b"llama.attention.layer_norm_rms_epsilon";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("the key");
    bytes[at + key.len() - 1] = b'X';
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = folder.path().join("damaged.gguf");
    fs::write(&damaged, bytes).expect("a file");
    let output = run(bruce_quant().arg("verify").arg(&damaged));
    refused(&output, 1, &["layer_norm_rms_epsilon: found no such key"]);
    assert_eq!(stderr(&output).matches("damaged.gguf").count(), 1, "{}", stderr(&output));
}

#[test]
fn help_is_a_word_too() {
    assert!(succeed(bruce_quant().arg("help")).contains("Usage: bruce-quant <MODEL>"));
    assert!(succeed(bruce_quant().args(["help", "verify"])).contains("Usage: bruce-quant verify"));
    refused(&run(bruce_quant().args(["help", "-q", "q4_k"])), 1, &["help: cannot open"]);
}

#[test]
fn what_is_no_checkpoint_is_explained() {
    let folder = tiny_moe_copy();
    let quant = |folder: &std::path::Path| {
        let output = run(bruce_quant().arg(folder).args(["-q", "q4_k", "-o", "unwritten.gguf"]));
        (output.status.code(), stderr(&output))
    };
    fs::remove_file(folder.path().join("model.safetensors")).expect("removed");
    fs::write(folder.path().join("other-Q8_0.gguf"), "GGUF").expect("a file");
    let (code, said) = quant(folder.path());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("hint: it holds a GGUF file") && said.contains("other-Q8_0.gguf"), "{said}");

    let (code, said) = quant(std::path::Path::new("mistyped.gguf"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("error: mistyped.gguf: cannot open: No such file"), "{said}");

    // Every type that the help calls fit for use without importances is.
    let help = succeed(bruce_quant().arg("--help"));
    let types = help.split("Types, in any case:").nth(1).and_then(|rest| rest.split("only with").next());
    assert!(types.is_some_and(|types| types.contains("IQ3_S,") && !types.contains("IQ3_XS")), "{types:?}");
}
