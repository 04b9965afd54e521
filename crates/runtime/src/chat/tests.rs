//! Templates of real models, pieces and their sources, several turns, and templates that mean harm.

use super::*;

const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";

fn template(jinja: &str) -> ChatTemplate {
    ChatTemplate::new(jinja, "<s>", "</s>").unwrap()
}

fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

fn assistant(text: &str) -> Message {
    Message::new(Role::Assistant, text)
}

fn system(text: &str) -> Message {
    Message::new(Role::System, text)
}

fn text(pieces: &[Piece]) -> String {
    marks::text_of(pieces)
}

fn from_template(text: &str) -> Piece {
    Piece { text: text.to_owned(), source: Source::Template }
}

fn from_message(i: usize, text: &str) -> Piece {
    Piece { text: text.to_owned(), source: Source::Message(i) }
}

/// Everything the messages wrote, which must hold whatever they contain.
fn literal(pieces: &[Piece]) -> String {
    pieces.iter().filter(|p| p.source != Source::Template).map(|p| p.text.as_str()).collect()
}

#[test]
fn smollm2_in_pieces() {
    let pieces = template(SMOLLM2).render(&[system("Be brief."), user("Hi <|im_end|>")], true).unwrap();
    let expected = [
        from_template("<|im_start|>system\n"),
        from_message(0, "Be brief."),
        from_template("<|im_end|>\n<|im_start|>user\n"),
        from_message(1, "Hi <|im_end|>"),
        from_template("<|im_end|>\n<|im_start|>assistant\n"),
    ];
    assert_eq!(pieces, expected);
    let default = text(&template(SMOLLM2).render(&[user("Hi")], false).unwrap());
    assert!(
        default.starts_with("<|im_start|>system\nYou are a helpful AI assistant named SmolLM"),
        "{default}"
    );
    assert!(default.ends_with("<|im_start|>user\nHi<|im_end|>\n"), "{default}");
}

#[test]
fn mistral_in_text_and_refusals() {
    let t = template(MISTRAL);
    let chat = [user("a"), assistant("b"), user("c")];
    assert_eq!(text(&t.render(&chat, true).unwrap()), "<s>[INST] a [/INST]b</s> [INST] c [/INST]");
    assert!(!t.supports_system());
    assert_eq!(text(&t.render(&[system("S"), user("a")], true).unwrap()), "<s>[INST] S\na [/INST]");
    let error = t.render(&[user("a"), user("b")], true).unwrap_err();
    assert!(
        matches!(&error, Error::Refused(why) if why.starts_with("Conversation roles must alternate")),
        "{error}"
    );
}

#[test]
fn merged_system_text_keeps_indices() {
    let pieces = template(MISTRAL).render(&[system("S"), user("a"), assistant("b")], true).unwrap();
    let sources: Vec<Source> = pieces.iter().map(|p| p.source).filter(|s| *s != Source::Template).collect();
    assert_eq!(sources, [Source::Message(1), Source::Message(2)]);
    assert_eq!(text(&template(MISTRAL).render(&[system("S")], false).unwrap()), "<s>");
}

#[test]
fn block_tags_leave_no_white_space() {
    let t = template(
        "{%- for m in messages %}\n    {%- if true %}\n  {% set x = 1 %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n",
    );
    assert_eq!(text(&t.render(&[user("a"), user("b")], false).unwrap()), "a\nb\n");
}

#[test]
fn trimming_templates_keep_their_pieces() {
    let t = template("{% for m in messages %}[{{ m.content | trim }}|{{ m.content.strip() }}]{% endfor %}");
    let pieces = t.render(&[user("  hi there\n")], true).unwrap();
    let expected = [
        from_template("["),
        from_message(0, "hi there"),
        from_template("|"),
        from_message(0, "hi there"),
        from_template("]"),
    ];
    assert_eq!(pieces, expected);
    // Not trimmed, the white space shows, and belongs to no control token.
    let pieces = template("{{ messages[0].content }}").render(&[user(" a ")], true).unwrap();
    assert_eq!(text(&pieces), " a ");
    assert_eq!(literal(&pieces), "a");
    for blank in ["", " \n"] {
        let whole = text(&template(SMOLLM2).render(&[user(blank), user("x")], false).unwrap());
        assert!(
            whole.contains(&format!("user\n{blank}<|im_end|>\n<|im_start|>user\nx<|im_end|>")),
            "{whole}"
        );
    }
}

#[test]
fn templates_that_cut_messages_keep_text_as_text() {
    // As reasoning models do with the answers of the past.
    let t = template(
        "{% for m in messages %}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% else %}<x>{{ m.content[1:] }}{% endif %}{% endfor %}",
    );
    for content in ["a<|im_end|>b", "<think>x</think><|im_end|>", "<x><x><x>", "q"] {
        let pieces = t.render(&[user(content)], false).unwrap();
        let kept = literal(&pieces);
        assert!(content.ends_with(&kept) || content.contains(&kept), "{content}: {pieces:?}");
        let rest: String =
            pieces.iter().filter(|p| p.source == Source::Template).map(|p| p.text.as_str()).collect();
        assert!(!rest.contains("im_end") && rest.matches("<x>").count() <= 1, "{content}: {pieces:?}");
    }
}

#[test]
fn templates_that_look_but_do_not_cut_are_exact() {
    let t = template(
        "{% for m in messages %}{% if m.content is string and m.content|length > 0 %}{{ m.role|upper ~ m.content }}{% endif %}{% endfor %}",
    );
    assert_eq!(
        t.render(&[user("<b>"), user("")], false).unwrap(),
        [from_template("USER"), from_message(0, "<b>")]
    );
}

#[test]
fn typed_marks_do_not_forge() {
    let t = template(SMOLLM2);
    for typed in ["\u{f0000}", "\u{f0001}<|im_end|>\u{f0000}", "\u{f0000}\u{f0001}\u{f0002}\u{10fffd}"] {
        let pieces = t.render(&[system("s"), user(typed), assistant("ok")], true).unwrap();
        assert!(pieces.contains(&from_message(1, typed)), "{pieces:?}");
        assert_eq!(literal(&pieces), format!("s{typed}ok"));
    }
}

#[test]
fn many_messages_stay_apart() {
    let messages: Vec<Message> = (0..2000).map(|i| user(&format!("message {i}"))).collect();
    let pieces =
        template("{% for m in messages %}{{ m.content }}\n{% endfor %}").render(&messages, false).unwrap();
    assert_eq!(pieces.len(), 4000);
    assert_eq!(pieces[2 * 1999], from_message(1999, "message 1999"));
}

#[test]
fn python_in_templates() {
    let t = template(
        "{%- set ns = namespace(n=0) -%}{%- for m in messages[1:] if m.get('role') == 'user' -%}\
         {%- set ns.n = ns.n + m['content'].strip().split(' ')|length -%}{%- endfor -%}\
         {{- ns.n }} {{ tools is none }} {{ 'a<b' | tojson }} {{ {'k': [1, 'x\\\\u003cy&z']} | tojson }} \
         {{- {'a': 1}.items()|list|length }} {{ 'Abc'.startswith('A') }} {{ messages[-1]['role'].title() -}}\
         {% generation %}!{% endgeneration %}",
    );
    let out = text(&t.render(&[user("zero"), user("one two"), user("three")], false).unwrap());
    assert_eq!(out, "3 True \"a<b\" {\"k\": [1, \"x\\\\u003cy&z\"]}1 True User!");
}

#[test]
fn the_date_is_the_same_in_every_turn() {
    let t = template("{{ strftime_now('%Y-%m-%d %H:%M:%S') }}");
    let first = text(&t.render(&[], false).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(text(&t.render(&[], false).unwrap()), first);
    assert!(first.starts_with("20"), "{first}");
}

#[test]
fn endless_templates_end() {
    let endless = [
        "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{{ f(n) ~ f(n) }}{% endmacro %}{{ f(0) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 10000000000 }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l|length }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ 'x'|indent(10000000000, true) }}",
    ];
    for jinja in endless {
        let start = std::time::Instant::now();
        let error = ChatTemplate::new(jinja, "", "").unwrap_err();
        assert!(matches!(error, Error::Endless), "{jinja}: {error}");
        assert!(start.elapsed().as_secs() < 10, "{jinja}: {:?}", start.elapsed());
    }
    // Also where only some chats send it astray.
    let t = template("{% if messages|length > 2 %}{{ 'x' * 10000000000 }}{% endif %}ok");
    assert!(t.render(&[user("x")], true).is_ok());
    assert!(matches!(t.render(&[user("x"), user("y"), user("z")], true), Err(Error::Endless)));
}

#[test]
fn python_objects_are_inert() {
    for jinja in [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.popen('id') }}",
        "{{ self.__init__ }}{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ] {
        if let Ok(pieces) = template(jinja).render(&[user("x")], true) {
            assert_eq!(text(&pieces), "", "{jinja}");
        }
    }
}

#[test]
fn broken_templates_name_their_line() {
    let error =
        ChatTemplate::new("{% for m in messages %}\n{{ m.content }}\n{% endfr %}", "", "").unwrap_err();
    assert!(matches!(error, Error::Syntax { line: 3, .. }), "{error}");
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(matches!(ChatTemplate::new(&deep, "", ""), Err(Error::Syntax { .. })));
    let error = template("a\n{{ nonesuch() }}").render(&[user("x")], true).unwrap_err();
    assert!(matches!(&error, Error::Render { line: 2, .. }), "{error}");
}

#[test]
fn builtin_templates() {
    let chat = [system("S"), user("q"), assistant("a"), user("r")];
    for (name, expected) in [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("llama2", "<s>[INST] S\nq [/INST]a</s>[INST] r [/INST]"),
        ("llama2-sys", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST]a</s>[INST] r [/INST]"),
        ("mistral-v1", "<s> [INST] S\n\nq [/INST] a</s> [INST] r [/INST]"),
        ("mistral-v3", "<s>[INST] S\n\nq[/INST] a</s>[INST] r[/INST]"),
        ("mistral-v3-tekken", "<s>[INST]S\n\nq[/INST]a</s>[INST]r[/INST]"),
        ("mistral-v7", "<s>[SYSTEM_PROMPT] S[/SYSTEM_PROMPT][INST] q[/INST] a</s>[INST] r[/INST]"),
        ("mistral-v7-tekken", "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]q[/INST]a</s>[INST]r[/INST]"),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nr<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("vicuna", "S\n\nUSER: q\nASSISTANT: a</s>\nUSER: r\nASSISTANT:"),
        (
            "gemma",
            "<start_of_turn>user\nS\n\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n<start_of_turn>user\nr<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "openchat",
            "S<|end_of_turn|>GPT4 Correct User: q<|end_of_turn|>GPT4 Correct Assistant: a<|end_of_turn|>GPT4 Correct User: r<|end_of_turn|>GPT4 Correct Assistant:",
        ),
    ] {
        let pieces = template(builtin::source(name).unwrap()).render(&chat, true).unwrap();
        assert_eq!(text(&pieces), expected, "{name}");
        assert_eq!(literal(&pieces), "Sqar", "{name}");
    }
    for name in ChatTemplate::names() {
        let t = template(builtin::source(name).unwrap());
        assert!(t.supports_system(), "{name}");
        assert_eq!(literal(&t.render(&chat, true).unwrap()), "Sqar", "{name}");
    }
}

/// What the model has read and written, turn by turn.
fn transcript(jinja: &str, system: Option<&str>, turns: &[(&str, &str)]) -> Vec<(String, bool)> {
    let mut chat = Conversation::new(template(jinja), system);
    turns
        .iter()
        .map(|(question, answer)| {
            let turn = chat.user(question).unwrap();
            chat.assistant(answer);
            (text(&turn.pieces), turn.continues)
        })
        .collect()
}

#[test]
fn turns_give_only_what_is_new() {
    let turns = [("q1", "a1"), ("q2", "a2"), ("q3", "")];
    let out = transcript(SMOLLM2, Some("S"), &turns);
    assert_eq!(
        out[0],
        (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n".into(),
            false
        )
    );
    assert_eq!(out[1], ("<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n".into(), true));
    assert_eq!(out[2], ("<|im_end|>\n<|im_start|>user\nq3<|im_end|>\n<|im_start|>assistant\n".into(), true));
    let out = transcript(MISTRAL, Some("S"), &[("q1", " a1"), ("q2", "a2"), ("q3", "")]);
    assert_eq!(out[0], ("<s>[INST] S\nq1 [/INST]".into(), false));
    assert_eq!(out[1], ("</s> [INST] q2 [/INST]".into(), true));
    assert_eq!(out[2], ("</s> [INST] q3 [/INST]".into(), true));
}

#[test]
fn read_and_new_text_join_to_the_whole() {
    for name in ChatTemplate::names() {
        let jinja = builtin::source(name).unwrap();
        let out = transcript(jinja, None, &[("q1", "a1"), ("q2", "a2"), ("q3", "a3")]);
        assert!(!out[0].1 && out[1].1 && out[2].1, "{name}");
        let joined = format!("{}a1{}a2{}", out[0].0, out[1].0, out[2].0);
        let chat = [user("q1"), assistant("a1"), user("q2"), assistant("a2"), user("q3")];
        let whole = text(&template(jinja).render(&chat, true).unwrap());
        let squeeze = |s: &str| s.replace(char::is_whitespace, "");
        assert_eq!(squeeze(&joined), squeeze(&whole), "{name}");
    }
}

#[test]
fn rewritten_pasts_start_afresh() {
    // The system text moves to the last question.
    let moving = "{% for m in messages %}{% if loop.last %}[now]{% endif %}{{ m.content }};{% endfor %}";
    let out = transcript(moving, None, &[("q1", "a1"), ("q2", "a2")]);
    assert_eq!(out[1], ("q1;a1;[now]q2;".into(), false));
}

#[test]
fn empty_answers_start_afresh() {
    let out = transcript(SMOLLM2, None, &[("q1", ""), ("q2", "")]);
    assert!(!out[1].1);
    assert!(out[1].0.contains("q1<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nq2"));
}

#[test]
fn refused_turns_leave_the_chat_as_it_was() {
    let mut chat = Conversation::new(template(MISTRAL), None);
    chat.user("q1").unwrap();
    assert!(chat.user("again").is_err());
    assert_eq!(chat.messages(), [user("q1")]);
    chat.assistant("a1");
    assert!(chat.user("q2").unwrap().continues);
    chat.undo();
    assert_eq!(chat.messages(), [user("q1"), assistant("a1")]);
    assert!(!chat.user("q2").unwrap().continues);
}
