//! Runs a template: Jinja as Hugging Face's tokenizers use it, on minijinja, with bounded work.

use super::clock::format_time;
use super::{Error, Message};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Work a template may do for each rendering, in minijinja's unit (an instruction, or 64 bytes made): far above what
/// any real template needs, a fraction of a second.
const FUEL: u64 = 2_000_000;

/// Time for each rendering.
const TIME: Duration = Duration::from_secs(2);

/// Stack in bytes, and depth of calls, each of which takes some of it.
const STACK: usize = 8 << 20;
const RECURSION: usize = 100;

/// A template with the values that do not change between renderings.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    source: String,
    bos_token: String,
    eos_token: String,
    now: SystemTime,
}

impl Engine {
    /// # Errors
    /// [`Error::Syntax`] if `source` is not Jinja.
    pub(super) fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Engine, Error> {
        let engine = Engine {
            source: plain_jinja(source),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
            // Fixed, so that a conversation over midnight stays one text.
            now: SystemTime::now(),
        };
        match environment(engine.now, &Arc::default(), FUEL).template_from_str(&engine.source) {
            Ok(_) => Ok(engine),
            Err(e) => Err(Error::Syntax { line: e.line().unwrap_or(0), detail: describe(&e) }),
        }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// The text of `messages`.
    ///
    /// Fuel does not cover everything: a list joined to itself again and again is made at no cost, and walked in
    /// exponential time. So the work is done on a thread of its own, which is left behind when time is up, to the end of
    /// the process at worst; it also has a stack of known size.
    pub(super) fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (engine, messages) = (self.clone(), messages.to_vec());
        let work = move || {
            // Nobody listens any more when time is up.
            let _ = sender.send(engine.render_here(&messages, add_generation_prompt));
        };
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        let failed = |detail: String| Error::Render { line: 0, detail };
        thread.spawn(work).map_err(|e| failed(format!("no thread to render on: {e}")))?;
        match receiver.recv_timeout(TIME) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(Error::Endless),
            Err(RecvTimeoutError::Disconnected) => Err(failed("the template engine failed".to_owned())),
        }
    }

    fn render_here(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, Error> {
        let refusal = Arc::new(Mutex::new(None));
        let size: usize = messages.iter().map(|m| m.content.len()).sum();
        let env = environment(self.now, &refusal, FUEL.saturating_add(size as u64));
        let values: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let context = context! {
            messages => values,
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            tools => (),
            documents => (),
        };
        let rendered = env.template_from_str(&self.source).and_then(|template| template.render(context));
        rendered.map_err(|e| {
            let line = e.line().unwrap_or(0);
            match refusal.lock().ok().and_then(|mut refusal| refusal.take()) {
                Some(message) => Error::Refused(message),
                None if is_endless(&e) => Error::Endless,
                None => Error::Render { line, detail: describe(&e) },
            }
        })
    }
}

fn environment(now: SystemTime, refusal: &Arc<Mutex<Option<String>>>, fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    // Without delimiters of its own this cannot fail; with the default syntax a template only has more white space.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.unwrap_or_default());
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    let refusal = Arc::clone(refusal);
    env.add_function("raise_exception", move |message: String| -> Result<Value, minijinja::Error> {
        if let Ok(mut slot) = refusal.lock() {
            *slot = Some(message.clone());
        }
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", move |format: String| format_time(&format, now));
    env.add_filter("tojson", to_json);
    env
}

/// Whether work or depth ran out. Depth shows only in the words of the error.
fn is_endless(error: &minijinja::Error) -> bool {
    error.kind() == ErrorKind::OutOfFuel
        || error
            .detail()
            .is_some_and(|detail| detail.contains("recursion limit") || detail.contains("too large"))
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Takes out Hugging Face's `{% generation %}`, which marks text for training and is no Jinja.
fn plain_jinja(source: &str) -> String {
    match regex::Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}") {
        Ok(tag) => tag
            .replace_all(source, |found: &regex::Captures<'_>| {
                let word = if found.get(2).is_some() { "endif" } else { "if true" };
                format!("{{%{} {word} {}%}}", &found[1], &found[3])
            })
            .into_owned(),
        Err(_) => source.to_owned(),
    }
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=...)` writes it: minijinja's, without its escapes for
/// HTML. Sorted keys, ASCII and separators, as templates may ask for them, do not matter to a model.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<Value> = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let json = minijinja::filters::tojson(
        value,
        indent.filter(|value| !value.is_none()),
        Kwargs::from_iter([] as [(&str, Value); 0]),
    )?;
    let json = json.to_string();
    let mut out = String::with_capacity(json.len());
    let mut rest = json.as_str();
    while let Some(i) = rest.find('\\') {
        let (before, escape) = rest.split_at(i);
        out.push_str(before);
        let html = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        match html.iter().find(|(code, _)| escape.starts_with(code)) {
            Some((code, c)) => {
                out.push(*c);
                rest = &escape[code.len()..];
            }
            // Any other escape has at least one character behind the backslash, which may be a backslash.
            None => {
                let len = escape.chars().take(2).map(char::len_utf8).sum();
                out.push_str(&escape[..len]);
                rest = &escape[len..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}
