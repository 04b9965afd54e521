//! Model cards: `bruce-quant card` and `--model-card`.

use crate::support::{
    bruce_quant, bruce_run, listing, quantized, refused, root, run, succeed, tiny_moe_copy,
};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// tiny-moe with a card and a merge's recipe, as people publish them.
fn published() -> tempfile::TempDir {
    let model = tiny_moe_copy();
    let write = |name: &str, text: &str| fs::write(model.path().join(name), text).expect("a file");
    write(
        "README.md",
        "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"no\"\ntags:\n- mergekit\n- 'a: b'\nmodel_name: Tiny|MoE\n---\n# Tiny\n",
    );
    write(
        "mergekit_moe_config.yml",
        "base_model: org/base\ngate_mode: hidden\nexperts:\n  - source_model: org/chat\n  - source_model: org/code\n  \
         - source_model: /home/someone/models/story\n  - source_model: org/chat\n",
    );
    model
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).expect("a file")).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn lines(text: &str, expected: &[&str]) {
    for line in expected {
        assert!(text.lines().any(|found| found == *line), "{line:?} is not a line of:\n{text}");
    }
}

#[test]
fn a_card_says_what_the_files_are() {
    let model = published();
    let folder = tempfile::tempdir().expect("a folder");
    let mut quant = bruce_quant();
    quant.arg(model.path()).args(["-q", "q4_k,q8_0", "--quiet", "--name", "Tiny|MoE", "--model-card"]);
    succeed(quant.args(["--repo", "me/Tiny-GGUF", "--base-model", "me/Tiny", "-o"]).arg(folder.path()));
    assert_eq!(listing(folder.path()), ["README.md", "Tiny-MoE-Q4_K_M.gguf", "Tiny-MoE-Q8_0.gguf"]);
    let card = fs::read_to_string(folder.path().join("README.md")).expect("a card");
    assert!(card.starts_with("---\nlicense: apache-2.0\n"), "{card}");
    lines(
        &card,
        &[
            "- me/Tiny",
            "base_model_relation: quantized",
            "- gguf",
            "- moe",
            "- merge",
            "- \"a: b\"",
            "- \"no\"",
            "# Tiny\\|MoE GGUF",
            "| 0 | [org/chat](https://huggingface.co/org/chat) |",
            "| 1 | [org/code](https://huggingface.co/org/code) |",
            "| 2 | story |",
            "ollama run hf.co/me/Tiny-GGUF:Q4_K_M",
            "bruce-quant Tiny-MoE -q Q4_K_M,Q8_0 --name 'Tiny|MoE'",
        ],
    );
    for name in ["Tiny-MoE-Q4_K_M.gguf", "Tiny-MoE-Q8_0.gguf"] {
        lines(&card, &[&format!("{}  {name}", sha256(&folder.path().join(name)))]);
        assert!(card.contains(&format!("\n| {name} | ")), "{card}");
    }
    assert!(!card.contains("/home/") && !card.contains(model.path().to_str().expect("a path")), "{card}");
}

#[test]
fn files_that_a_command_names_are_told_by_their_sums() {
    let folder = tempfile::tempdir().expect("a folder");
    let (imatrix, table) = (folder.path().join("im.gguf"), folder.path().join("experts.txt"));
    let entry = imatrix::Entry::new(vec![2.0; 256], vec![1]);
    let importances = imatrix::Imatrix {
        entries: [("blk.0.attn_q.weight".to_owned(), entry)].into(),
        ..Default::default()
    };
    importances.write(&imatrix, gguf::Overwrite::Refuse).expect("a file of importances");
    fs::write(&table, "* 1 q8_0\n").expect("a table");
    let mut quant = bruce_quant();
    quant.arg(root().join("models/tiny-moe")).args(["-q", "q4_k", "--expert-layout", "split", "--quiet"]);
    quant.arg("--imatrix").arg(&imatrix).arg("--expert-types").arg(&table);
    succeed(quant.arg("--model-card").arg("-o").arg(folder.path()));
    let file = gguf::Gguf::open(&folder.path().join("tiny-moe-Q4_K_M.gguf")).expect("our own file");
    let card = fs::read_to_string(folder.path().join("README.md")).expect("a card");
    for (key, path) in [("bruce.imatrix.sha256", &imatrix), ("bruce.expert_types.sha256", &table)] {
        assert_eq!(file.metadata().str(key).expect("a text"), Some(sha256(path).as_str()));
        assert!(card.contains(&sha256(path)), "{card}");
    }
}

#[test]
fn a_card_is_not_replaced_unless_asked_for() {
    let model = published();
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("README.md"), "mine").expect("a file");
    let quant = |output: &Path, more: &[&str]| {
        let mut quant = bruce_quant();
        quant.arg(model.path()).args(["-q", "q8_0", "--quiet", "--model-card", "-o"]).arg(output).args(more);
        run(&mut quant)
    };
    // Before any work is done.
    refused(&quant(folder.path(), &[]), 1, &["README.md", "existing file"]);
    assert_eq!(listing(folder.path()), ["README.md"]);
    assert!(quant(folder.path(), &["--force"]).status.success());
    assert!(fs::read_to_string(folder.path().join("README.md")).expect("a card").starts_with("---\n"));
    // The model's own card is never replaced.
    refused(&quant(model.path(), &["--force"]), 1, &["README.md", "input"]);
    let own = fs::read_to_string(model.path().join("README.md")).expect("a card");
    assert!(own.ends_with("# Tiny\n"), "{own}");
    let lonely = run(bruce_quant().arg(model.path()).args(["-q", "q8_0", "-n", "--repo", "a/b"]));
    refused(&lonely, 2, &["--model-card"]);
}

#[test]
fn what_was_measured_stands_beside_the_files() {
    let (Some(q8), Some(q4)) = (quantized("tinymoe", "Q8_0"), quantized("tinymoe", "Q4_K_M")) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let text = root().join("models/tiny-moe/heldout.txt");
    let base = folder.path().join("base.logits");
    let reading = ["-c", "256", "--chunks", "2", "--json"];
    let mut perplexity = bruce_run();
    perplexity.arg("perplexity").arg(&q8).arg("-f").arg(&text).args(reading).arg("--save-logits").arg(&base);
    let mut measured = succeed(&mut perplexity);
    measured += &succeed(bruce_run().arg("kl-divergence").arg(&q4).arg("--base").arg(&base).arg("--json"));
    let quality = folder.path().join("quality.json");
    fs::write(&quality, measured).expect("a file");
    let card = folder.path().join("card.md");
    let mut command = bruce_quant();
    command.arg("card").arg(&q8).arg(&q4).arg("--quality").arg(&quality).arg("-o").arg(&card);
    succeed(&mut command);
    let text = fs::read_to_string(&card).expect("a card");
    let row =
        |name: &str| text.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap_or_default();
    assert!(text.contains("| KL divergence | Same top token | Perplexity |"), "{text}");
    assert!(row("tinymoe-Q4_K_M.gguf").matches(" ± ").count() == 3, "{text}");
    assert!(row("tinymoe-Q8_0.gguf").matches(" ± ").count() == 1, "{text}");

    refused(&run(&mut command), 1, &["card.md", "existing file"]);
    fs::write(&quality, "{\"perplexity\": 7}").expect("a file");
    refused(&run(command.arg("--force")), 1, &["quality.json", "model"]);
    fs::write(&quality, "<html>").expect("a file");
    refused(&run(&mut command), 1, &["quality.json", "JSON"]);
    assert_eq!(fs::read_to_string(&card).expect("a card"), text);
}

#[test]
fn parts_are_one_line_and_several_models_are_refused() {
    let Some(q8) = quantized("tinymoe", "Q8_0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("m-Q8_0.gguf");
    succeed(
        bruce_quant().arg(&q8).args(["-q", "copy", "--split-max-size", "1M", "--quiet", "-o"]).arg(&model),
    );
    let parts: Vec<_> = listing(folder.path()).into_iter().map(|name| folder.path().join(name)).collect();
    assert!(parts.len() > 1, "{parts:?}");
    // As a pattern of the shell gives them.
    succeed(bruce_quant().arg("card").args(&parts));
    let card = fs::read_to_string(folder.path().join("README.md")).expect("a card");
    let n = parts.len();
    assert!(card.contains(&format!("-00001-of-{n:05}.gguf and {} more | Q8_0 |", n - 1)), "{card}");
    for part in &parts {
        let name = part.file_name().and_then(|name| name.to_str()).expect("a name");
        lines(&card, &[&format!("{}  {name}", sha256(part))]);
    }
    let other = folder.path().join("other.gguf");
    succeed(bruce_quant().arg(&q8).args(["-q", "copy", "--name", "Other", "--quiet", "-o"]).arg(&other));
    let output =
        run(bruce_quant().arg("card").arg(&q8).arg(&other).arg("-o").arg(folder.path().join("x.md")));
    refused(&output, 1, &["other.gguf", "general.name", "Other"]);
    assert!(!folder.path().join("x.md").exists());
}
