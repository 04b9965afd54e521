//! Chat templates by name, for files without one. The names and layouts are llama.cpp's (`src/llama-chat.cpp`), the
//! templates our own. System text has a place in all of them.

/// Mistral's instruction format until v3: spaces around the tags and in front of an answer, and the answer.
macro_rules! mistral {
    ($before:literal, $after:literal, $answer:literal) => {
        concat!(
            "{{ bos_token }}{% for m in messages %}",
            "{% if m.role != 'assistant' and (loop.first or loop.previtem.role == 'assistant') %}{{ '",
            $before,
            "[INST]",
            $after,
            "' }}{% endif %}",
            "{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}{% elif m.role == 'user' %}{{ m.content + '",
            $before,
            "[/INST]' }}{% else %}{{ '",
            $after,
            "' + ",
            $answer,
            " + '</s>' }}{% endif %}{% endfor %}"
        )
    };
}

/// Mistral's instruction format since v7, with a space behind the tags or without.
macro_rules! mistral_v7 {
    ($after:literal) => {
        concat!(
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]",
            $after,
            "' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}{{ '[INST]",
            $after,
            "' + m.content + '[/INST]' }}{% else %}{{ '",
            $after,
            "' + m.content + '</s>' }}{% endif %}{% endfor %}"
        )
    };
}

/// Name and Jinja source.
const TEMPLATES: [(&str, &str); 15] = [
    (
        "chatml",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ),
    (
        "llama2",
        "{{ bos_token }}{{ '[INST] ' }}{% for m in messages %}\
         {% if m.role == 'system' %}{{ m.content + '\\n' }}\
         {% elif m.role == 'user' %}{% if loop.previtem and loop.previtem.role == 'assistant' %}{{ '[INST] ' }}{% endif %}\
         {{ m.content + ' [/INST]' }}{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}",
    ),
    (
        "llama2-sys",
        "{{ bos_token }}{{ '[INST] ' }}{% for m in messages %}\
         {% if m.role == 'system' %}{{ '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' }}\
         {% elif m.role == 'user' %}{% if loop.previtem and loop.previtem.role == 'assistant' %}{{ '[INST] ' }}{% endif %}\
         {{ m.content + ' [/INST]' }}{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}",
    ),
    ("mistral-v1", mistral!(" ", " ", "m.content")),
    ("mistral-v3", mistral!("", " ", "m.content|trim")),
    ("mistral-v3-tekken", mistral!("", "", "m.content")),
    ("mistral-v7", mistral_v7!(" ")),
    ("mistral-v7-tekken", mistral_v7!("")),
    (
        "llama3",
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + \
         m.content|trim + '<|eot_id|>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    (
        "zephyr",
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|endoftext|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    (
        "phi3",
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ),
    (
        "vicuna",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}\
         {% elif m.role == 'user' %}{{ 'USER: ' + m.content + '\\n' }}\
         {% else %}{{ 'ASSISTANT: ' + m.content + '</s>\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ),
    (
        "openchat",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '<|end_of_turn|>' }}\
         {% else %}{{ 'GPT4 Correct ' + m.role|capitalize + ': ' + m.content + '<|end_of_turn|>' }}{% endif %}\
         {% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}",
    ),
    (
        "deepseek",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\
         {% elif m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n' }}\
         {% else %}{{ '### Response:\\n' + m.content + '\\n<|EOT|>\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    ),
    (
        "gemma",
        "{% set ns = namespace(system='') %}{% for m in messages %}\
         {% if m.role == 'system' %}{% set ns.system = m.content|trim + '\\n\\n' %}\
         {% else %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}\
         {% if m.role == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}\
         {{ m.content|trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ),
];

/// The Jinja source of the template called `name`. `llama2-sys` and the Mistral formats also go by a short name.
pub(super) fn source(name: &str) -> Option<&'static str> {
    let name = match name {
        "mistral" => "mistral-v1",
        "llama-2" => "llama2-sys",
        "llama-3" => "llama3",
        other => other,
    };
    TEMPLATES.iter().find(|row| row.0 == name).map(|row| row.1)
}

/// All names.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|row| row.0)
}
