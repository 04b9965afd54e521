//! The words of a model card: YAML for the hub, Markdown for people.

use std::fmt::Write;

use super::CardOptions;
use super::facts::{BaseModel, FileFacts, Model, is_hub_id};
use super::quality::{Measured, Number};
use crate::command::quoted;
use crate::output::without_type;

/// The whole card.
pub fn card(model: &Model, measured: &[Measured], options: &CardOptions) -> String {
    let card = Card { model, measured, options };
    let mut text = card.front_matter();
    let sections = [
        card.introduction(),
        card.files(),
        card.experts(),
        card.download(),
        card.run(),
        card.making(),
        card.checksums(),
    ];
    for section in sections.iter().filter(|section| !section.is_empty()) {
        let _ = write!(text, "\n{section}");
    }
    text
}

struct Card<'a> {
    model: &'a Model,
    measured: &'a [Measured],
    options: &'a CardOptions,
}

impl Card<'_> {
    /// Where the files will be.
    fn repo(&self) -> String {
        self.options.repo.clone().unwrap_or_else(|| format!("USER/{}-GGUF", self.stem()))
    }

    /// What the files are called but for their types.
    fn stem(&self) -> String {
        self.model.files.first().map_or("MODEL".to_owned(), |file| without_type(&file.parts[0].0).to_owned())
    }

    fn is_moe(&self) -> bool {
        self.model.hparams.as_ref().is_some_and(|h| h.is_moe())
    }

    fn is_merge(&self) -> bool {
        !self.model.experts.is_empty() || self.model.base_models.len() > 1
    }

    /// The model that was quantized, or what it was made from, and how the hub calls that.
    fn base_models(&self) -> (Vec<String>, &'static str) {
        if !self.options.base_model.is_empty() {
            return (self.options.base_model.clone(), "quantized");
        }
        if let Some(id) = &self.model.id {
            return (vec![id.clone()], "quantized");
        }
        let parents: Vec<String> = self.model.base_models.iter().filter_map(|base| base.id.clone()).collect();
        // A merge that is not on the hub itself was not quantized from any one of its parents.
        let relation = if parents.len() > 1 { "merge" } else { "quantized" };
        (parents, relation)
    }

    fn front_matter(&self) -> String {
        let model = self.model;
        let mut yaml = "---\n".to_owned();
        let one = |yaml: &mut String, key: &str, value: &str| {
            let _ = writeln!(yaml, "{key}: {}", scalar(value));
        };
        let list = |yaml: &mut String, key: &str, values: &[String]| {
            if !values.is_empty() {
                let _ = writeln!(yaml, "{key}:");
                values.iter().for_each(|value| {
                    let _ = writeln!(yaml, "- {}", scalar(value));
                });
            }
        };
        match &model.license[..] {
            [] => {}
            [license] => one(&mut yaml, "license", license),
            several => list(&mut yaml, "license", several),
        }
        for (key, value) in [("license_name", &model.license_name), ("license_link", &model.license_link)] {
            value.iter().for_each(|value| one(&mut yaml, key, value));
        }
        let (bases, relation) = self.base_models();
        list(&mut yaml, "base_model", &bases);
        if !bases.is_empty() {
            one(&mut yaml, "base_model_relation", relation);
        }
        list(&mut yaml, "language", &model.languages);
        let mut tags = vec!["gguf".to_owned()];
        tags.extend(self.is_moe().then(|| "moe".to_owned()));
        tags.extend(self.is_merge().then(|| "merge".to_owned()));
        tags.extend(model.files.iter().any(|file| file.imatrix.is_some()).then(|| "imatrix".to_owned()));
        for tag in &model.tags {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        list(&mut yaml, "tags", &tags);
        one(&mut yaml, "pipeline_tag", "text-generation");
        model.quantized_by.iter().for_each(|by| one(&mut yaml, "quantized_by", by));
        yaml.push_str("---\n");
        yaml
    }

    fn introduction(&self) -> String {
        let model = self.model;
        let name = plain(if model.name.is_empty() { "Model" } else { &model.name });
        let mut text = format!("# {name} GGUF\n\n");
        let (bases, relation) = self.base_models();
        let of = match (&bases[..], relation) {
            ([id], "quantized") if is_hub_id(id) && !self.is_merge() || self.names_itself() => {
                format!("[{name}](https://huggingface.co/{})", bases[0])
            }
            _ => name.clone(),
        };
        let _ = write!(
            text,
            "{of} as GGUF files, for llama.cpp, Ollama, bruce-run and whatever else reads them."
        );
        if let Some(h) = &model.hparams {
            let n = match model.n_weights {
                n if n >= 1_000_000_000 => format!("{:.1} billion", n as f64 / 1e9),
                n => format!("{:.1} million", n as f64 / 1e6),
            };
            let kind = match h.n_expert {
                0 => "A dense model".to_owned(),
                n => format!("A mixture of {n} experts, {} of them per token", h.n_expert_used),
            };
            let context = h.n_ctx_train;
            let _ = write!(text, " {kind}: {n} weights, {} layers, context {context}.", h.n_layer);
        }
        if model.experts.is_empty() && !model.base_models.is_empty() {
            let shown = |base: &BaseModel| match &base.id {
                Some(id) => format!("[{}](https://huggingface.co/{id})", plain(&base.name)),
                None => plain(&base.name),
            };
            let bases: Vec<String> = model.base_models.iter().map(shown).collect();
            let _ = write!(text, " Made from {}.", bases.join(", "));
        }
        text.push('\n');
        if let Some(description) = &model.description {
            let _ = write!(text, "\n{}\n", plain(description));
        }
        text
    }

    /// Whether it is known where the quantized model itself is.
    fn names_itself(&self) -> bool {
        let stated = self.options.base_model.first().or(self.model.id.as_ref());
        stated.is_some_and(|id| is_hub_id(id)) && self.options.base_model.len() < 2
    }

    fn of_file(&self, file: &FileFacts, get: fn(&Measured) -> Option<Number>) -> Option<Number> {
        self.measured.iter().filter(|m| m.is_of(file)).filter_map(get).next_back()
    }

    fn files(&self) -> String {
        type Column = (&'static str, fn(&Measured) -> Option<Number>, fn(Number) -> String);
        let columns: [Column; 3] = [
            ("KL divergence", |m| m.kld, |n| with_error(n, 1.0, 4, "")),
            ("Same top token", |m| m.same_top, |n| with_error(n, 100.0, 2, " %")),
            ("Perplexity", |m| m.perplexity, |n| with_error(n, 1.0, 3, "")),
        ];
        let files = &self.model.files;
        let columns: Vec<&Column> =
            columns.iter().filter(|c| files.iter().any(|f| self.of_file(f, c.1).is_some())).collect();
        let mut text = "## Files\n\n| File | Type | Size | Bits per weight |".to_owned();
        columns.iter().for_each(|column| text.push_str(&format!(" {} |", column.0)));
        text.push_str("\n|---|---|--:|--:|");
        text.push_str(&"--:|".repeat(columns.len()));
        for file in files {
            let name = cell(&file.parts[0].0);
            let name = match file.parts.len() {
                1 => name,
                n => format!("{name} and {} more", n - 1),
            };
            let (size, bits) = (file.size() as f64 / 1e9, file.bits_per_weight);
            let size = if size < 0.1 { format!("{:.1} MB", size * 1e3) } else { format!("{size:.2} GB") };
            let _ = write!(text, "\n| {name} | {} | {size} | {bits:.2} |", cell(&file.file_type));
            for column in &columns {
                let shown = self.of_file(file, column.1).map_or(String::new(), column.2);
                let _ = write!(text, " {shown} |");
            }
        }
        text.push_str(
            "\n\nA GB is 10^9 bytes; what a model needs in memory is that and room for the context.\n",
        );
        if !columns.is_empty() {
            text.push_str("Measured with bruce-run");
            let mut bases: Vec<&String> = self.measured.iter().filter_map(|m| m.base.as_ref()).collect();
            bases.dedup();
            if let Some(base) = bases.first() {
                let _ = write!(
                    text,
                    " against {}: the KL divergence says how far the probabilities of the next token have moved, in \
                     nats on average, the same top token how often the likeliest one stayed",
                    cell(base)
                );
            }
            text.push_str("; ± is the standard error.\n");
        }
        text
    }

    fn experts(&self) -> String {
        if self.model.experts.is_empty() {
            return String::new();
        }
        let mut text = "## Experts\n\n| Expert | Made from |\n|--:|---|\n".to_owned();
        for (i, expert) in self.model.experts.iter().enumerate() {
            let shown = match is_hub_id(expert) {
                true => format!("[{expert}](https://huggingface.co/{expert})"),
                false => plain(expert),
            };
            let _ = writeln!(text, "| {i} | {shown} |");
        }
        text
    }

    /// The file that most will want: of about 4.8 bits, or the nearest to that.
    fn favourite(&self) -> Option<&FileFacts> {
        let far = |file: &FileFacts| (file.bits_per_weight - 4.8).abs();
        self.model.files.iter().min_by(|a, b| far(a).total_cmp(&far(b)))
    }

    fn download(&self) -> String {
        let Some(file) = self.favourite() else { return String::new() };
        let include = match file.parts.len() {
            1 => file.parts[0].0.clone(),
            _ => format!("*{}*", file.file_type),
        };
        let (repo, include) = (quoted(&self.repo()), quoted(&include));
        format!("## Download\n\n```sh\nhf download {repo} --include {include} --local-dir .\n```\n")
    }

    fn run(&self) -> String {
        let Some(file) = self.favourite() else { return String::new() };
        let (repo, name) = (self.repo(), quoted(&file.parts[0].0));
        let with_type = quoted(&format!("{repo}:{}", file.file_type));
        let ollama = quoted(&format!("hf.co/{repo}:{}", file.file_type));
        let ask = if self.model.has_chat_template { "" } else { " -p 'Once upon a time'" };
        let mut text = format!("## Run\n\n```sh\nllama-cli -hf {with_type}{ask}\n");
        // Ollama takes no files in parts.
        if file.parts.len() == 1 {
            let _ = writeln!(text, "ollama run {ollama}");
        }
        let _ = writeln!(text, "bruce-run {name}{ask}\n```");
        text
    }

    fn making(&self) -> String {
        let mut text = "## How the files were made\n\n".to_owned();
        let commands = self.commands();
        if !commands.is_empty() {
            let version = self.model.version.as_deref().map(|v| format!(" {}", plain(v))).unwrap_or_default();
            let _ = write!(
                text,
                "With bruce-quant{version}, from the model's own weights in one pass:\n\n```sh\n"
            );
            commands.iter().for_each(|command| {
                let _ = writeln!(text, "{}", command.replace("```", ""));
            });
            text.push_str("```\n");
        } else if let Some(by) = &self.model.quantized_by {
            let _ = writeln!(text, "Quantized by {}.", plain(by));
        }
        let mut imatrices: Vec<&String> =
            self.model.files.iter().filter_map(|f| f.imatrix.as_ref()).collect();
        imatrices.dedup();
        for imatrix in imatrices {
            let _ = writeln!(text, "\nImportance matrix: {}.", plain(imatrix));
        }
        let mut tables: Vec<&String> =
            self.model.files.iter().filter_map(|f| f.expert_types.as_ref()).collect();
        tables.dedup();
        for table in tables {
            let _ = writeln!(text, "\nTable of types by expert: SHA-256 {}.", plain(table));
        }
        if let Some(fingerprint) = &self.model.fingerprint {
            let _ = writeln!(
                text,
                "\nThe same version, input and options give the same bytes on any machine. Fingerprint of the input's \
                 weights (samples of every tensor): `{}`",
                plain(fingerprint)
            );
        }
        text
    }

    /// The commands that give the files, one for all that differ in their type alone.
    fn commands(&self) -> Vec<String> {
        let mut commands: Vec<(String, Vec<&str>)> = Vec::new();
        for file in &self.model.files {
            let Some(command) = &file.command else { continue };
            // What is between -q and the next word is the type.
            let Some((head, rest)) = command.split_once(" -q ") else { continue };
            let (ty, tail) = rest.split_once(' ').map_or((rest, ""), |(ty, tail)| (ty, tail));
            let head = head.replacen("MODEL", &quoted(&self.stem()), 1);
            let key = format!("{}\n{}", one_line(&head), one_line(tail));
            match commands.iter_mut().find(|row| row.0 == key) {
                Some(row) => row.1.push(ty),
                None => commands.push((key, vec![ty])),
            }
        }
        let joined = |(key, types): (String, Vec<&str>)| {
            let (head, tail) = key.split_once('\n').unwrap_or((&key, ""));
            format!("{head} -q {} {tail}", types.join(",")).trim_end().to_owned()
        };
        commands.into_iter().map(joined).collect()
    }

    fn checksums(&self) -> String {
        let mut text = "## SHA-256\n\n```text\n".to_owned();
        for (name, _, hash) in self.model.files.iter().flat_map(|file| &file.parts) {
            let _ = writeln!(text, "{hash}  {}", one_line(name));
        }
        text.push_str("```\n");
        text
    }
}

fn with_error(number: Number, factor: f64, digits: usize, unit: &str) -> String {
    let value = number.value * factor;
    match number.error {
        Some(error) => format!("{value:.digits$} ± {:.digits$}{unit}", error * factor),
        None => format!("{value:.digits$}{unit}"),
    }
}

/// The text of a stranger without line ends and other controls.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text of a stranger as words of a paragraph: nothing in it is Markdown or HTML.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in one_line(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '!' | '~' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// A name in a table. File names are for copying, so that underscores stay.
fn cell(text: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || " -_.+,()@=".contains(c);
    one_line(text).chars().map(|c| if kept(c) { c } else { '-' }).collect()
}

/// A YAML scalar, quoted unless nobody could take it for something else.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let words = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf"];
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(plain)
        && !words.contains(&text.to_ascii_lowercase().as_str());
    // JSON's strings are YAML's.
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_strangers_stay_texts() {
        assert_eq!(plain("a|b\n# *c* <script>"), "a\\|b \\# \\*c\\* &lt;script>");
        assert_eq!(cell("m-Q4_K_M.gguf"), "m-Q4_K_M.gguf");
        assert_eq!(cell("a|b<c>"), "a-b-c-");
    }

    #[test]
    fn yaml_takes_no_text_for_something_else() {
        assert_eq!(scalar("apache-2.0"), "apache-2.0");
        assert_eq!(scalar("org/Model-7B"), "org/Model-7B");
        for text in ["no", "1.0", "a: b", "- x", "", "a\nb: c", "Ünder", "#c"] {
            assert!(scalar(text).starts_with('"') && scalar(text).ends_with('"'), "{text}: {}", scalar(text));
        }
        assert!(!scalar("a\nb").contains('\n'));
    }
}
