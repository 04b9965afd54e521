//! Cuts text into the words that byte-level BPE encodes one by one, by the rule that `tokenizer.ggml.pre` names.
//!
//! The rules are the regular expressions of the models' own tokenizers, as far as llama.cpp (`src/llama-vocab.cpp`)
//! or the models' `tokenizer.json` state them. A rule is a list: each expression cuts the pieces that the one before
//! it left, and what lies between two matches is a piece too.
//!
//! Every expression runs on the `regex` crate, whose time is linear in the text. It has no look-ahead, and the rules
//! need only one: `\s+(?!\S)`, a run of white space up to but not including the last character before a word. That is
//! `\s+` with the last character given back, which [`Pattern::next`] does.

use regex::Regex;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Letters with case, as far as an older Unicode and the makers of DeepSeek LLM knew them.
const CASED: &str = r"\s?[[\p{Lu}\p{Ll}\p{Lt}]--[\u{560}\u{588}\u{10c7}\u{10cd}\u{10d0}-\u{10ff}\u{1c80}-\u{1c8a}\u{2d00}-\u{2d2d}\u{a790}-\u{a7fa}\u{ab30}-\u{ab68}\u{10570}-\u{105bc}\u{16e40}-\u{16e7f}\u{1d400}-\u{1d7cb}\u{1df00}-\u{1df1e}]]+";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";

/// One rule and the names it goes by.
struct Rule {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A word that is a token needs no merges.
    ignore_merges: bool,
    /// Whether a text begins with the BOS token where the file does not say.
    add_bos: bool,
}

const fn rule(names: &'static [&'static str], patterns: &'static [&'static str]) -> Rule {
    Rule { names, patterns, ignore_merges: false, add_bos: false }
}

const fn whole_words(
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    add_bos: bool,
) -> Rule {
    Rule { names, patterns, ignore_merges: true, add_bos }
}

/// The rule of files that name none. llama.cpp cuts runs of punctuation and of digits first.
const DEFAULT: Rule = rule(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]);

const RULES: [Rule; 22] = [
    DEFAULT,
    rule(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    rule(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    whole_words(
        &[
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[LLAMA3],
        true,
    ),
    rule(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    whole_words(&["glm4", "glm5"], &[LLAMA3], false),
    rule(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "stablelm2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    rule(&["qwen35"], &[QWEN35]),
    whole_words(&["tekken"], &[TEKKEN], true),
    rule(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    rule(
        &["deepseek-llm"],
        &[
            "[\r\n]",
            CASED,
            r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-\u{d7ff}]+",
            r"\p{N}+",
        ],
    ),
    rule(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{d7ff}]+", r"\p{N}"]),
    rule(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[r"\p{N}{1,3}", "[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3],
    ),
    rule(&["falcon"], &[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"]),
    rule(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    rule(&["viking"], &[BLOOM, r"\p{N}"]),
    rule(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    rule(&["seed-coder"], &[SEED_CODER]),
    rule(&["ufakzeka"], &[UFAKZEKA]),
    rule(&["exaone-moe"], &[EXAONE_MOE]),
    rule(&["laguna"], &["[^\n]+|[\n]+", QWEN2]),
    whole_words(&["minicpm5"], &[r"\p{N}{1,3}", MINICPM5], false),
];

/// An expression with its look-ahead taken out.
struct Pattern {
    regex: Regex,
    /// Whether a run of white space before a word leaves its last character to the word.
    gives_back: bool,
}

impl Pattern {
    /// None if the expression is not one of this module's, none of which fails.
    fn new(source: &str) -> Option<Pattern> {
        let plain = source.replace(r"\s+(?!\S)|", "");
        let regex = Regex::new(&plain).ok()?;
        Some(Pattern { gives_back: plain.len() != source.len(), regex })
    }

    /// The first match in `text` from `start` on.
    fn next(&self, text: &str, start: usize) -> Option<std::ops::Range<usize>> {
        let found = self.regex.find_at(text, start)?;
        let run = found.as_str();
        // A run that ends a line was matched by an alternative before `\s+`, which keeps all of it; rules without
        // such an alternative have no other match of white space alone.
        let ends_line = run.ends_with(['\r', '\n']) && self.regex.as_str().contains(r"\s*[\r\n]");
        if self.gives_back && found.end() < text.len() && !ends_line && run.chars().all(char::is_whitespace) {
            let last = run.char_indices().next_back().map_or(0, |(i, _)| i);
            if last > 0 {
                return Some(found.start()..found.start() + last);
            }
        }
        Some(found.range())
    }

    /// Cuts `text` into matches and what lies between them.
    fn cut<'t>(&self, text: &'t str, pieces: &mut Vec<&'t str>) {
        let mut done = 0;
        while let Some(found) = self.next(text, done) {
            if found.is_empty() {
                break;
            }
            if found.start > done {
                pieces.push(&text[done..found.start]);
            }
            pieces.push(&text[found.clone()]);
            done = found.end;
        }
        if done < text.len() {
            pieces.push(&text[done..]);
        }
    }
}

/// The compiled rule of one vocabulary.
pub(super) struct PreTokenizer {
    patterns: Vec<Pattern>,
    /// A word that is a token needs no merges.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the BOS token where the file does not say.
    pub(super) add_bos: bool,
    /// Why the ids may differ from the original tokenizer's.
    pub(super) warning: Option<String>,
}

impl PreTokenizer {
    /// The rule called `name`; the default one, with a warning, where there is none of that name.
    pub(super) fn named(name: &str) -> Self {
        let known = RULES.iter().find(|rule| rule.names.contains(&name));
        let warning = known.is_none().then(|| {
            let found = if name.is_empty() { "nothing".to_owned() } else { format!("{name:?}") };
            format!(
                "{}: found {found}, treated as \"default\"; token ids may differ from the original tokenizer's",
                model_spec::keys::TOKENIZER_PRE
            )
        });
        let rule = known.unwrap_or(&DEFAULT);
        PreTokenizer {
            patterns: rule.patterns.iter().filter_map(|source| Pattern::new(source)).collect(),
            ignore_merges: rule.ignore_merges,
            add_bos: rule.add_bos,
            warning,
        }
    }

    /// The words of `text`, which together are the text.
    pub(super) fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = if text.is_empty() { vec![] } else { vec![text] };
        for pattern in &self.patterns {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                pattern.cut(piece, &mut finer);
            }
            pieces = finer;
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_compiles_and_loses_nothing() {
        let text = "I'd've  said: \t\n\n \u{a0}x1234567 été 中文ab  ...?!\r\n//  \n end   ";
        for rule in &RULES {
            for name in rule.names {
                let pre = PreTokenizer::named(name);
                assert_eq!(pre.patterns.len(), rule.patterns.len(), "{name}");
                assert!(pre.warning.is_none());
                let words = pre.words(text);
                assert_eq!(words.concat(), text, "{name}");
                assert!(words.iter().all(|word| !word.is_empty()), "{name}");
                assert!(pre.words("").is_empty());
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = RULES.iter().flat_map(|rule| rule.names).collect();
        let n = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), n);
    }

    #[test]
    fn unknown_names_warn() {
        let warning = PreTokenizer::named("nonesuch").warning.unwrap();
        assert!(warning.contains("\"nonesuch\""), "{warning}");
        assert!(PreTokenizer::named("").warning.unwrap().contains("found nothing"));
    }

    #[test]
    fn white_space_leaves_one_character_to_the_next_word() {
        let gpt2 = PreTokenizer::named("gpt-2");
        assert_eq!(gpt2.words("a   b"), ["a", "  ", " b"]);
        assert_eq!(gpt2.words("a\t\tb"), ["a", "\t", "\t", "b"]);
        assert_eq!(gpt2.words("a \n\nb  "), ["a", " \n", "\n", "b", "  "]);
        assert_eq!(gpt2.words("a \u{3000}b"), ["a", " ", "\u{3000}", "b"]);
        assert_eq!(gpt2.words("we'll 'S"), ["we", "'ll", " '", "S"]);
        let llama3 = PreTokenizer::named("llama-bpe");
        assert_eq!(llama3.words("a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(llama3.words("a\t\tb 12345"), ["a", "\t", "\tb", " ", "123", "45"]);
        assert_eq!(llama3.words("WE'LL!\n\n"), ["WE", "'LL", "!\n\n"]);
    }

    #[test]
    fn digits_and_letters_by_rule() {
        assert_eq!(PreTokenizer::named("smollm").words("x12 34"), ["x", "1", "2", " ", "3", "4"]);
        assert_eq!(PreTokenizer::named("qwen2").words("x12"), ["x", "1", "2"]);
        assert_eq!(PreTokenizer::named("tekken").words("HelloWorld"), ["Hello", "World"]);
        assert_eq!(PreTokenizer::named("default").words("a12345"), ["a", "123", "45"]);
    }
}
