//! Which ids begin, end and pad, whether the tokenizer adds them itself, and the chat templates.
//!
//! The order of authority is the converter's: texts of tokenizer_config.json looked up among the added tokens
//! of tokenizer.json, then the ids of config.json. Whether a token is added comes from tokenizer.json's
//! post-processor, then from tokenizer_config.json. special_tokens_map.json and generation_config.json decide
//! nothing; where they disagree, a warning says so.

use serde_json::{Map, Value};

use super::tokenizer_json::TokenizerJson;
use super::{Companions, Special};
use crate::directory::Directory;
use crate::error::{Error, Result, quoted};
use crate::fields::Fields;
use crate::json::kind;

/// Longest template that is read; real ones have a few kilobytes.
const MAX_TEMPLATE: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Specials {
    pub(super) ids: Vec<(Special, u32)>,
    pub(super) adds: Vec<(Special, bool)>,
}

impl Special {
    /// As in `bos_token`, `bos_token_id` and `add_bos_token`.
    fn key(self) -> &'static str {
        match self {
            Special::Bos => "bos",
            Special::Eos => "eos",
            Special::Unk => "unk",
            Special::Sep => "sep",
            Special::Pad => "pad",
            Special::Cls => "cls",
            Special::Mask => "mask",
            Special::Eot => "eot",
            Special::Eom => "eom",
            Special::Prefix => "prefix",
            Special::Suffix => "suffix",
            Special::Middle => "middle",
        }
    }
}

/// The text of a special token, stated plainly or as an object with `content`.
pub(super) fn token_text(map: &Map<String, Value>, key: &str) -> Option<String> {
    let value = map.get(key)?;
    let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// Texts of special tokens while the post-processor is looked at, which may fill in missing ones.
#[derive(Default)]
struct Texts {
    texts: Vec<(Special, String)>,
}

impl Texts {
    fn get(&self, special: Special) -> Option<&str> {
        self.texts.iter().find(|(s, _)| *s == special).map(|(_, text)| text.as_str())
    }

    fn set(&mut self, special: Special, text: &str) {
        self.texts.retain(|(s, _)| *s != special);
        self.texts.push((special, text.to_owned()));
    }
}

/// The special tokens of a vocabulary.
pub(super) fn read(
    companions: &Companions<'_>,
    tokenizer: Option<&TokenizerJson>,
    tokens: &[String],
    warnings: &mut Vec<String>,
) -> Result<Specials> {
    let n_tokens = tokens.len();
    let mut kinds = vec![Special::Bos, Special::Eos, Special::Unk, Special::Sep, Special::Pad, Special::Mask];
    let mut found = Specials::default();
    let empty = Map::new();
    let config = companions.tokenizer_config.as_ref().unwrap_or(&empty);
    let mut texts = Texts::default();
    for special in kinds.iter().copied().chain([Special::Cls]) {
        if let Some(text) = token_text(config, &format!("{}_token", special.key())) {
            texts.set(special, &text);
        }
    }
    if let Some(tokenizer) = tokenizer {
        for (missing, stand_in) in [(Special::Bos, Special::Cls), (Special::Eos, Special::Sep)] {
            if texts.get(missing).is_none()
                && let Some(text) = texts.get(stand_in).map(str::to_owned)
            {
                texts.set(missing, &text);
            }
        }
        read_post_processor(&tokenizer.post_processor, &mut texts, &mut kinds, &mut found);
    }
    let config_file = companions.dir.join("tokenizer_config.json");
    let config_fields = Fields::new(&config_file, config);
    for &special in &kinds {
        let key = format!("add_{}_token", special.key());
        if let Ok(Some(adds)) = config_fields.bool(&key) {
            match found.adds.iter().find(|(s, _)| *s == special) {
                None => found.adds.push((special, adds)),
                Some((_, by_processor)) if *by_processor != adds => warnings.push(format!(
                    "{}: {key}: found {adds}, but the post-processor of tokenizer.json means {by_processor}, which is \
                     used",
                    config_file.display()
                )),
                Some(_) => {}
            }
        }
        if let Some(text) = texts.get(special)
            && let Some(id) = tokenizer.and_then(|t| t.added_id(text))
        {
            found.set_id(companions, "tokenizer.json", special, u64::from(id), n_tokens, warnings);
        }
    }
    read_config_ids(companions, &kinds, &texts, tokens, &mut found, warnings)?;
    Ok(found)
}

/// The ids of config.json.
fn read_config_ids(
    companions: &Companions<'_>,
    kinds: &[Special],
    texts: &Texts,
    tokens: &[String],
    found: &mut Specials,
    warnings: &mut Vec<String>,
) -> Result<()> {
    for &special in kinds {
        let key = format!("{}_token_id", special.key());
        match companions.config.get(&key) {
            Some(Value::Number(n)) if n.as_u64().is_some() => {
                found.set_id(
                    companions,
                    "config.json",
                    special,
                    n.as_u64().unwrap_or(0),
                    tokens.len(),
                    warnings,
                );
            }
            Some(Value::Array(listed)) if special == Special::Eos => {
                if let Some(id) = end_of(listed, texts.get(special), tokens) {
                    found.set_id(companions, "config.json", special, id, tokens.len(), warnings);
                }
            }
            None | Some(Value::Null | Value::Array(_)) => {}
            Some(Value::Number(n)) if n.as_i64() == Some(-1) => warnings.push(format!(
                "{}: {key}: found -1, taken as none",
                companions.dir.join("config.json").display()
            )),
            Some(other) => {
                let file = companions.dir.join("config.json");
                return Err(Error::malformed(file, key, kind(other), "a token id"));
            }
        }
    }
    Ok(())
}

/// The end token of a list, as a GGUF file has one: that of the stated text, else the first. llama.cpp's converter writes
/// none then, and readers take their default, id 2 with SentencePiece, whatever that is. Where tokenizer.json knows the
/// stated text, its id counts in both.
fn end_of(listed: &[Value], stated: Option<&str>, tokens: &[String]) -> Option<u64> {
    let ids = || listed.iter().filter_map(Value::as_u64);
    let text = |id: u64| tokens.get(usize::try_from(id).ok()?).map(String::as_str);
    ids().find(|id| stated.is_some() && text(*id) == stated).or_else(|| ids().next())
}

impl Specials {
    /// The first to name an id wins.
    fn set_id(
        &mut self,
        companions: &Companions<'_>,
        file: &str,
        special: Special,
        id: u64,
        n_tokens: usize,
        warnings: &mut Vec<String>,
    ) {
        if id >= n_tokens as u64 {
            warnings.push(format!(
                "{}: {}_token_id: found {id}, expected an id below the {n_tokens} tokens; left out",
                companions.dir.join(file).display(),
                special.key()
            ));
        } else if !self.ids.iter().any(|(s, _)| *s == special) {
            self.ids.push((special, id as u32));
        }
    }

    fn set_adds(&mut self, special: Special, adds: bool) {
        match self.adds.iter_mut().find(|(s, _)| *s == special) {
            Some(entry) => entry.1 = adds,
            None => self.adds.push((special, adds)),
        }
    }
}

fn special_token(item: Option<&Value>) -> Option<&str> {
    item?.get("SpecialToken")?.get("id")?.as_str()
}

/// What tokenizer.json puts around a text says which special tokens are added.
fn read_post_processor(processor: &Value, texts: &mut Texts, kinds: &mut Vec<Special>, found: &mut Specials) {
    let single = std::slice::from_ref(processor);
    let processors = processor.get("processors").and_then(Value::as_array).map_or(single, Vec::as_slice);
    for processor in processors {
        match processor.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => {
                for special in [Special::Bos, Special::Eos] {
                    if !found.adds.iter().any(|(s, _)| *s == special) {
                        found.adds.push((special, false));
                    }
                }
            }
            Some("RobertaProcessing") => {
                for special in [Special::Bos, Special::Eos, Special::Sep] {
                    found.set_adds(special, true);
                }
                let stated = processor.get("sep").and_then(|sep| sep.get(0)).and_then(Value::as_str);
                if let Some(sep) = stated.filter(|_| texts.get(Special::Sep).is_none()) {
                    texts.set(Special::Sep, sep);
                }
            }
            Some("TemplateProcessing") => read_template(processor, texts, kinds, found),
            _ => {}
        }
    }
}

fn read_template(processor: &Value, texts: &mut Texts, kinds: &mut Vec<Special>, found: &mut Specials) {
    let items = |key: &str| processor.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (single, pair) = (items("single"), items("pair"));
    let (mut first, mut last) = (None, None);
    if single.len() > 1 {
        first = special_token(single.first());
        if let Some(first) = first {
            if texts.get(Special::Bos).is_none() {
                texts.set(Special::Bos, first);
            }
            if texts.get(Special::Cls).is_none() {
                texts.set(Special::Cls, first);
            }
            let known = [texts.get(Special::Bos), texts.get(Special::Cls)].contains(&Some(first));
            found.set_adds(Special::Bos, known);
        }
        last = special_token(single.last());
        if let Some(last) = last {
            // The template ends with something else than the stated end token: that one ends turns only.
            if let Some(stated) = texts.get(Special::Eos).filter(|eos| *eos != last).map(str::to_owned) {
                for turn in [Special::Eot, Special::Eom] {
                    if !kinds.contains(&turn) {
                        kinds.push(turn);
                        texts.set(turn, &stated);
                        break;
                    }
                }
            }
            texts.set(Special::Eos, last);
            found.set_adds(Special::Eos, true);
        }
    }
    let starts = first.is_some() && special_token(pair.first()) == first;
    let ends = last.is_some() && special_token(pair.last()) == last;
    let inner = pair.get(usize::from(starts)..pair.len().saturating_sub(usize::from(ends))).unwrap_or(&[]);
    let sequence = |item: Option<&Value>| Some(item?.get("Sequence")?.get("id")?.as_str()?.to_owned());
    let between = match inner {
        [a, between @ .., b]
            if sequence(Some(a)).as_deref() == Some("A") && sequence(Some(b)).as_deref() == Some("B") =>
        {
            between
        }
        _ => &[],
    };
    if between.is_empty() {
        return;
    }
    let separates = |item: &Value| {
        let token = special_token(Some(item));
        token.is_some() && [texts.get(Special::Sep), texts.get(Special::Eos)].contains(&token)
    };
    let adds = (separates(&between[0]) && last.is_none()) || (between.len() == 2 && separates(&between[1]));
    found.set_adds(Special::Sep, adds);
    if adds
        && texts.get(Special::Sep).is_none()
        && let Some(eos) = texts.get(Special::Eos).map(str::to_owned)
    {
        texts.set(Special::Sep, &eos);
    }
}

/// The template to use, and further ones by name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Templates {
    pub(super) main: Option<String>,
    pub(super) named: Vec<(String, String)>,
}

/// Templates of tokenizer_config.json (one, or a list by name), else of chat_template.jinja with
/// additional_chat_templates/, else of chat_template.json. A template is only text here: nothing runs it.
pub(super) fn read_templates(companions: &Companions<'_>, warnings: &mut Vec<String>) -> Result<Templates> {
    let dir = companions.dir;
    let text = |name: &str| -> Result<Option<String>> {
        let Some(bytes) = dir.read(name, MAX_TEMPLATE)? else { return Ok(None) };
        crate::json::utf8(&dir.join(name), &bytes).map(|s| Some(s.to_owned()))
    };
    let from_file = text("chat_template.jinja")?;
    let stated =
        companions.tokenizer_config.as_ref().and_then(|c| c.get("chat_template")).filter(|v| !v.is_null());
    match stated {
        Some(Value::String(template)) => {
            if from_file.as_ref().is_some_and(|other| other != template) {
                warnings.push(format!(
                    "{}: chat_template: differs from chat_template.jinja and is used, as by llama.cpp",
                    dir.join("tokenizer_config.json").display()
                ));
            }
            return Ok(Templates { main: Some(template.clone()), named: Vec::new() });
        }
        Some(Value::Array(list)) => return Ok(by_name(list)),
        Some(other) => warnings.push(format!(
            "{}: chat_template: found {}, expected a template or a list of them; left out",
            dir.join("tokenizer_config.json").display(),
            kind(other)
        )),
        None => {}
    }
    if let Some(main) = from_file {
        return Ok(Templates { main: Some(main), named: additional_templates(dir, &text)? });
    }
    let json = dir.read_json("chat_template.json", MAX_TEMPLATE)?;
    let main = json.as_ref().and_then(|map| map.get("chat_template")).and_then(Value::as_str);
    Ok(Templates { main: main.map(str::to_owned), named: Vec::new() })
}

fn by_name(list: &[Value]) -> Templates {
    let mut templates = Templates::default();
    for entry in list {
        let member = |key: &str| entry.get(key).and_then(Value::as_str);
        let (Some(name), Some(template)) = (member("name"), member("template")) else { continue };
        templates.add(name, template.to_owned());
    }
    templates
}

impl Templates {
    fn add(&mut self, name: &str, template: String) {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = name.chars().map(letter).collect();
        if name == "default" {
            self.main = Some(template);
        } else if !name.is_empty() && !self.named.iter().any(|(other, _)| *other == name) {
            self.named.push((name, template));
        }
    }
}

fn additional_templates(
    dir: &Directory,
    text: &dyn Fn(&str) -> Result<Option<String>>,
) -> Result<Vec<(String, String)>> {
    const FOLDER: &str = "additional_chat_templates";
    let mut templates = Templates::default();
    let Ok(entries) = std::fs::read_dir(dir.join(FOLDER)) else { return Ok(templates.named) };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    for name in names {
        if let Some(stem) = name.strip_suffix(".jinja")
            && let Some(template) = text(&format!("{FOLDER}/{name}"))?
        {
            templates.add(stem, template);
        }
    }
    Ok(templates.named)
}

/// Warns where files name other special tokens than those chosen.
pub(super) fn compare(
    companions: &Companions<'_>,
    specials: &Specials,
    tokens: &[String],
    warnings: &mut Vec<String>,
) {
    for &(special, id) in &specials.ids {
        let chosen = &tokens[id as usize];
        let key = format!("{}_token", special.key());
        for (file, map) in companions.named_maps() {
            if let Some(text) = token_text(map, &key).filter(|text| text != chosen) {
                warnings.push(format!(
                    "{}: {key}: found {}, but id {id} is used, which is {}",
                    companions.dir.join(file).display(),
                    quoted(&text),
                    quoted(chosen)
                ));
            }
        }
    }
    let eos = specials.ids.iter().find(|(s, _)| *s == Special::Eos).map(|(_, id)| u64::from(*id));
    let Some(generation) = &companions.generation_config else { return };
    let listed: Vec<u64> = match generation.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
        Some(value) => value.as_u64().into_iter().collect(),
        None => return,
    };
    if let Some(eos) = eos.filter(|eos| !listed.is_empty() && !listed.contains(eos)) {
        warnings.push(format!(
            "{}: eos_token_id: found {listed:?}, but id {eos} is used",
            companions.dir.join("generation_config.json").display()
        ));
    }
}

#[cfg(test)]
#[path = "special_tests.rs"]
mod tests;
