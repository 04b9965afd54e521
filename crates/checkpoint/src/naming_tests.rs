use super::*;

#[test]
fn names_come_apart_as_in_the_converter() {
    // (name, weights) and organisation, basename, finetune, version, size label, from gguf-py.
    type Case = (&'static str, u64, [Option<&'static str>; 5]);
    const CASES: &[Case] = &[
        (
            "mistralai/Mistral-7B-Instruct-v0.2",
            7_200_000_000,
            [Some("mistralai"), Some("Mistral"), Some("Instruct"), Some("v0.2"), Some("7B")],
        ),
        (
            "mistralai/Mixtral-8x7B-v0.1",
            46_700_000_000,
            [Some("mistralai"), Some("Mixtral"), None, Some("v0.1"), Some("8x7B")],
        ),
        ("tiny4", 0, [None; 5]),
        ("BurningBruce-004", 24_000_000_000, [None, Some("BurningBruce"), None, Some("004"), None]),
        (
            "NousResearch/Yarn-Mistral-7b-128k",
            7_200_000_000,
            [Some("NousResearch"), Some("Yarn-Mistral"), Some("128k"), None, Some("7B")],
        ),
        (
            "meta-llama/Llama-2-7b-chat-hf",
            6_700_000_000,
            [Some("meta-llama"), Some("Llama-2"), Some("chat-hf"), None, Some("7B")],
        ),
        (
            "bigscience/bloom-7b1-petals",
            7_000_000_000,
            [Some("bigscience"), Some("bloom"), Some("petals"), None, Some("7.1B")],
        ),
        ("./local-Model", 0, [None; 5]),
        ("Qwen3-30B-A3B", 30_000_000_000, [None, Some("Qwen3"), None, None, Some("30B-A3B")]),
        (
            "phi-3-mini-4k-instruct",
            3_800_000_000,
            [None, Some("phi-3"), Some("4k-instruct"), None, Some("mini")],
        ),
        ("x-7b-Q4_K_M-bf16", 7_000_000_000, [None, Some("x"), None, None, Some("7B")]),
        ("A model with spaces", 0, [None; 5]),
        ("Llama-3.2-1B-v2-v3", 1_200_000_000, [None, Some("Llama-3.2"), None, Some("v2-v3"), Some("1B")]),
        ("v2-3-foo", 0, [None; 5]),
    ];
    for (name, weights, expected) in CASES {
        let parts = parse(name, *weights);
        let found = [parts.organization, parts.basename, parts.finetune, parts.version, parts.size_label];
        assert_eq!(found.each_ref().map(Option::as_deref), *expected, "{name}");
    }
}

#[test]
fn titles_keep_versions_and_capitals() {
    for (id, expected) in [
        ("smol4x", "Smol4X"),
        ("tiny-moe", "Tiny Moe"),
        ("Llama-2-7b-chat-hf", "Llama 2 7b Chat Hf"),
        ("x-7b-Q4_K_M-bf16", "X 7b Q4_K_M Bf16"),
        ("v2-3-foo", "v2 3 Foo"),
        ("synthetic", "Synthetic"),
    ] {
        assert_eq!(title(id), expected);
    }
}

#[test]
fn size_labels_have_two_digits_at_least() {
    for (experts, each, expected) in [
        (4, 42_000_000, "4x42M"),
        (4, 2_200_000, "4x2.2M"),
        (0, 7_241_732_096, "7.2B"),
        (8, 9_960_000, "8x10M"),
        (0, 999, "1.0K"),
        (0, 134_515_008, "135M"),
        (0, 12_500_000_000, "12B"),
        (0, 1_000_000, "1000K"),
        (0, 0, "0.00K"),
    ] {
        assert_eq!(size_label(experts, each), expected);
    }
}
