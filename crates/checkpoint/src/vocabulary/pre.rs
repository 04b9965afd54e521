//! Which of llama.cpp's pre-tokenizers a tokenizer.json means.
//!
//! llama.cpp's converter encodes a probe text and looks the hash of the ids up in a table, which fails for any
//! vocabulary it has not seen. What decides the splitting is the `pre_tokenizer` itself, so its steps are
//! compared instead; names that llama.cpp splits alike (starcoder, refact, command-r and smollm; dbrx and
//! smaug-bpe) are one.

use serde_json::Value;

/// GPT-4's pattern (cl100k), with digits in groups of up to three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o's pattern (o200k).
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's pattern, which the ByteLevel step applies by itself when told to.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One step of a pre-tokenizer, reduced to what decides where text is split.
#[derive(Debug, PartialEq)]
enum Step<'a> {
    /// Bytes become characters; split by GPT-2's pattern first where true.
    Bytes { split: bool },
    /// Each digit on its own.
    SingleDigits,
    /// Matches of the pattern stand alone.
    Split(&'a str),
    /// Anything else.
    Other,
}

/// llama.cpp's name for this pre-tokenizer; `None` where it has none that is known here.
pub(super) fn recognise(pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static str> {
    let steps = steps(pre_tokenizer);
    let name = match steps.as_slice() {
        [Step::Bytes { split: true }] | [Step::Split(GPT2), Step::Bytes { split: false }] => "gpt-2",
        [Step::SingleDigits, Step::Bytes { split: true }] => "smollm",
        // Whole words are looked up before merging, or they are not; the split is the same.
        [Step::Split(LLAMA3), Step::Bytes { split: false }] if ignore_merges => "llama-bpe",
        [Step::Split(LLAMA3), Step::Bytes { split: false }] => "smaug-bpe",
        [Step::Split(QWEN2), Step::Bytes { split: false }] => "qwen2",
        [Step::Split(TEKKEN), Step::Bytes { split: false }] => "tekken",
        [Step::Split(GPT4O), Step::Bytes { split: false }] => "gpt-4o",
        _ => return None,
    };
    Some(name)
}

fn steps(component: &Value) -> Vec<Step<'_>> {
    if component.get("type").and_then(Value::as_str) == Some("Sequence") {
        let inner = component.get("pretokenizers").and_then(Value::as_array);
        return inner.into_iter().flatten().map(step).collect();
    }
    vec![step(component)]
}

fn step(component: &Value) -> Step<'_> {
    let flag = |key: &str, usual: bool| component.get(key).and_then(Value::as_bool).unwrap_or(usual);
    let text = |key: &str| component.get(key).and_then(Value::as_str);
    match text("type") {
        Some("ByteLevel") => Step::Bytes { split: flag("use_regex", true) },
        Some("Digits") if flag("individual_digits", false) => Step::SingleDigits,
        Some("Split") if text("behavior") == Some("Isolated") && !flag("invert", false) => {
            let pattern = component.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str);
            match pattern {
                Some(r"\p{N}" | r"\d") => Step::SingleDigits,
                Some(pattern) => Step::Split(pattern),
                None => Step::Other,
            }
        }
        // What some writers state for GPT-2's pattern: everything it matches, and nothing between.
        Some("Split") if text("behavior") == Some("Removed") && flag("invert", false) => {
            match component.get("pattern").and_then(|p| p.get("Regex")).and_then(Value::as_str) {
                Some(pattern) => Step::Split(pattern),
                None => Step::Other,
            }
        }
        _ => Step::Other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn split(pattern: &str) -> Value {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]})
    }

    #[test]
    fn known_pre_tokenizers_have_llama_cpps_names() {
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(recognise(&bytes, false), Some("gpt-2"));
        assert_eq!(recognise(&json!({"type": "ByteLevel"}), false), Some("gpt-2"));
        let smollm = json!({"type": "Sequence", "pretokenizers": [digits, bytes]});
        assert_eq!(recognise(&smollm, false), Some("smollm"));
        assert_eq!(recognise(&split(LLAMA3), true), Some("llama-bpe"));
        assert_eq!(recognise(&split(LLAMA3), false), Some("smaug-bpe"));
        assert_eq!(recognise(&split(QWEN2), false), Some("qwen2"));
        assert_eq!(recognise(&split(TEKKEN), true), Some("tekken"));
        assert_eq!(recognise(&split(GPT4O), false), Some("gpt-4o"));
    }

    #[test]
    fn others_have_none() {
        for other in [
            Value::Null,
            json!({"type": "Whitespace"}),
            json!({"type": "Digits", "individual_digits": false}),
            json!({"type": "Sequence", "pretokenizers": []}),
            split(r"\w+"),
            json!({"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": false}),
        ] {
            assert_eq!(recognise(&other, true), None, "{other}");
        }
    }
}
