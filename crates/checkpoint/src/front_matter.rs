//! The part of YAML that model cards and mergekit configurations are written in.
//!
//! Block mappings and sequences, flow ones (`[a, b]`, `{k: v}`), plain, quoted and block scalars, comments.
//! Scalars stay text: `no`, `1.0` and `2024-01-01` mean what is written (a language code, a version, a tag).
//! Anchors, aliases, tags and several documents are not read.

/// A value; keys keep the order of the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Yaml {
    Null,
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

/// Nesting beyond this is refused rather than followed.
const MAX_DEPTH: usize = 32;

impl Yaml {
    /// The value under `key` of a mapping, unless it is null.
    pub(crate) fn get(&self, key: &str) -> Option<&Yaml> {
        match self {
            Yaml::Map(entries) => {
                entries.iter().find(|(k, _)| k == key).map(|(_, v)| v).filter(|v| **v != Yaml::Null)
            }
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list, or the value itself as the only one.
    pub(crate) fn items(&self) -> &[Yaml] {
        match self {
            Yaml::List(items) => items,
            Yaml::Null => &[],
            other => std::slice::from_ref(other),
        }
    }

    /// The texts among [`Yaml::items`].
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.items().iter().filter_map(Yaml::text)
    }
}

/// The text between the first line and the next, both `---`; `None` where the file does not begin so.
pub(crate) fn front_matter(text: &str) -> Option<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rest = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let mut end = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..end]);
        }
        end += line.len();
    }
    Some(rest)
}

/// The document in `text`.
///
/// # Errors
/// The number of the line that is not understood, and why.
pub(crate) fn parse(text: &str) -> Result<Yaml, String> {
    let lines = text.lines().map(|line| line.trim_end().replace('\t', "  ")).collect();
    let mut parser = Parser { lines, at: 0 };
    if parser.peek().is_some_and(|line| line.trim_start() == "---") {
        parser.at += 1;
    }
    let value = parser.block(0, 0).map_err(|why| format!("line {}: {why}", parser.at + 1))?;
    match parser.peek() {
        Some(_) => Err(format!("line {}: not part of what comes before", parser.at + 1)),
        None => Ok(value),
    }
}

struct Parser {
    lines: Vec<String>,
    at: usize,
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_item(content: &str) -> bool {
    content == "-" || content.starts_with("- ")
}

impl Parser {
    /// The next line that says something; blank lines and comments are passed over.
    fn peek(&mut self) -> Option<&str> {
        while let Some(line) = self.lines.get(self.at) {
            let content = line.trim_start();
            if !content.is_empty() && !content.starts_with('#') {
                break;
            }
            self.at += 1;
        }
        self.lines.get(self.at).map(String::as_str)
    }

    /// Whatever begins at the next line, if it is indented by at least `min_indent`.
    fn block(&mut self, min_indent: usize, depth: usize) -> Result<Yaml, String> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        let Some(line) = self.peek() else { return Ok(Yaml::Null) };
        let indent = indent_of(line);
        let content = &line[indent..];
        if indent < min_indent {
            Ok(Yaml::Null)
        } else if is_item(content) {
            self.list(indent, depth)
        } else if split_key(content)?.is_some() {
            self.map(indent, depth)
        } else {
            let first = content.to_owned();
            self.at += 1;
            self.scalar(first, indent.saturating_sub(1), depth)
        }
    }

    fn list(&mut self, indent: usize, depth: usize) -> Result<Yaml, String> {
        let mut items = Vec::new();
        while let Some(line) = self.peek() {
            if indent_of(line) != indent || !is_item(&line[indent..]) {
                break;
            }
            let rest = line[indent + 1..].trim_start();
            let column = line.len() - rest.len();
            let rest = rest.to_owned();
            if rest.is_empty() || rest.starts_with('#') {
                self.at += 1;
                items.push(self.block(indent + 1, depth + 1)?);
            } else if is_item(&rest) || split_key(&rest)?.is_some() {
                // The item's own block starts behind the dash.
                self.lines[self.at] = format!("{}{rest}", " ".repeat(column));
                items.push(self.block(column, depth + 1)?);
            } else {
                self.at += 1;
                items.push(self.scalar(rest, indent, depth)?);
            }
        }
        Ok(Yaml::List(items))
    }

    fn map(&mut self, indent: usize, depth: usize) -> Result<Yaml, String> {
        let mut entries: Vec<(String, Yaml)> = Vec::new();
        while let Some(line) = self.peek() {
            if indent_of(line) != indent || is_item(&line[indent..]) {
                break;
            }
            let Some((key, rest)) = split_key(&line[indent..])? else {
                return Err("neither a key nor part of the value before".into());
            };
            self.at += 1;
            let value = if rest.is_empty() || rest.starts_with('#') {
                // A list may stand under its key without being indented.
                let below = self.peek().is_some_and(|l| indent_of(l) == indent && is_item(&l[indent..]));
                if below { self.list(indent, depth + 1)? } else { self.block(indent + 1, depth + 1)? }
            } else {
                self.scalar(rest, indent, depth)?
            };
            if entries.iter().any(|(other, _)| *other == key) {
                return Err(format!("key {key:?} for the second time"));
            }
            entries.push((key, value));
        }
        Ok(Yaml::Map(entries))
    }

    /// A value that begins with `first`; further lines of it are indented by more than `indent`.
    fn scalar(&mut self, first: String, indent: usize, depth: usize) -> Result<Yaml, String> {
        match first.as_bytes()[0] {
            b'|' | b'>' => Ok(Yaml::Text(self.block_scalar(&first, indent))),
            b'"' | b'\'' | b'[' | b'{' => {
                let mut text = first;
                loop {
                    let mut flow = Flow { rest: &text };
                    match flow.value(depth) {
                        Ok(value) => {
                            let left = flow.rest.trim_start();
                            return if left.is_empty() || left.starts_with('#') {
                                Ok(value)
                            } else {
                                Err("text behind the end of a value".into())
                            };
                        }
                        Err(Stop::Wrong(why)) => return Err(why),
                        Err(Stop::Unfinished) => {
                            let Some(line) = self.lines.get(self.at) else {
                                return Err("the end of the file within a value".into());
                            };
                            text.push(' ');
                            text.push_str(line.trim_start());
                            self.at += 1;
                            if text.len() > 1 << 16 {
                                return Err("a value of more than 65536 bytes".into());
                            }
                        }
                    }
                }
            }
            b'&' | b'*' | b'!' | b'%' | b'@' | b'`' => {
                self.at -= 1;
                Err("an anchor, alias or tag, which is not read here".into())
            }
            _ => {
                let mut text = without_comment(&first).to_owned();
                while let Some(line) = self.lines.get(self.at) {
                    if line.is_empty() || indent_of(line) <= indent || line.trim_start().starts_with('#') {
                        break;
                    }
                    text.push(' ');
                    text.push_str(without_comment(line.trim_start()));
                    self.at += 1;
                }
                Ok(plain(&text))
            }
        }
    }

    /// `|` keeps line ends, `>` turns single ones into spaces; `-` behind either drops the last.
    fn block_scalar(&mut self, header: &str, indent: usize) -> String {
        let folded = header.starts_with('>');
        let mut lines = Vec::new();
        while let Some(line) = self.lines.get(self.at) {
            if !line.is_empty() && indent_of(line) <= indent {
                break;
            }
            lines.push(line.as_str());
            self.at += 1;
        }
        while lines.last().is_some_and(|l| l.is_empty()) {
            lines.pop();
        }
        let margin = lines.iter().filter(|l| !l.is_empty()).map(|l| indent_of(l)).min().unwrap_or(0);
        let lines: Vec<&str> = lines.iter().map(|l| l.get(margin..).unwrap_or("")).collect();
        let mut text = if folded { lines.join(" ").replace("  ", "\n") } else { lines.join("\n") };
        if !header.contains('-') {
            text.push('\n');
        }
        text
    }
}

/// Key and rest of `key: rest`; `None` where there is no key.
fn split_key(content: &str) -> Result<Option<(String, String)>, String> {
    if content.starts_with(['"', '\'']) {
        let mut flow = Flow { rest: content };
        let Ok(Yaml::Text(key)) = flow.value(0) else { return Ok(None) };
        let Some(rest) = flow.rest.strip_prefix(':').filter(|r| r.is_empty() || r.starts_with(' ')) else {
            return Ok(None);
        };
        return Ok(Some((key, rest.trim().to_owned())));
    }
    if content.starts_with(['[', '{', '#', '|', '>']) {
        return Ok(None);
    }
    if content.starts_with("? ") {
        return Err("a key marked with ?, which is not read here".into());
    }
    let split = match content.find(": ") {
        Some(at) => Some((&content[..at], &content[at + 2..])),
        None => content.strip_suffix(':').map(|key| (key, "")),
    };
    let split = split.filter(|(key, _)| !key.contains(" #"));
    Ok(split.map(|(key, rest)| (key.trim().to_owned(), rest.trim().to_owned())))
}

fn without_comment(text: &str) -> &str {
    text.split_once(" #").map_or(text, |(before, _)| before).trim_end()
}

fn plain(text: &str) -> Yaml {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Yaml::Null,
        text => Yaml::Text(text.to_owned()),
    }
}

/// Values within one line: quoted, or in brackets.
struct Flow<'a> {
    rest: &'a str,
}

enum Stop {
    /// The value goes on in the next line.
    Unfinished,
    Wrong(String),
}

impl Flow<'_> {
    fn value(&mut self, depth: usize) -> Result<Yaml, Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::Wrong(format!("nested deeper than {MAX_DEPTH}")));
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next().ok_or(Stop::Unfinished)? {
            '[' => {
                self.rest = &self.rest[1..];
                let mut items = Vec::new();
                while !self.closes(']')? {
                    items.push(self.value(depth + 1)?);
                    self.separator(']')?;
                }
                Ok(Yaml::List(items))
            }
            '{' => {
                self.rest = &self.rest[1..];
                let mut entries = Vec::new();
                while !self.closes('}')? {
                    let key = match self.value(depth + 1)? {
                        Yaml::Text(key) => key,
                        _ => return Err(Stop::Wrong("a key that is no text".into())),
                    };
                    self.rest = self.rest.trim_start();
                    let value = match self.rest.strip_prefix(':') {
                        Some(rest) => {
                            self.rest = rest;
                            self.value(depth + 1)?
                        }
                        None => Yaml::Null,
                    };
                    entries.push((key, value));
                    self.separator('}')?;
                }
                Ok(Yaml::Map(entries))
            }
            quote @ ('"' | '\'') => self.quoted(quote).map(Yaml::Text),
            _ => {
                let end = self.rest.find([',', ']', '}']).unwrap_or(self.rest.len());
                let end = self.rest.find(": ").map_or(end, |colon| end.min(colon));
                if end == 0 {
                    return Err(Stop::Wrong("an empty value in brackets".into()));
                }
                let (text, rest) = self.rest.split_at(end);
                self.rest = rest;
                Ok(plain(text.trim()))
            }
        }
    }

    /// Whether the bracket closes here, which is then behind.
    fn closes(&mut self, bracket: char) -> Result<bool, Stop> {
        self.rest = self.rest.trim_start();
        if self.rest.is_empty() {
            return Err(Stop::Unfinished);
        }
        if let Some(rest) = self.rest.strip_prefix(bracket) {
            self.rest = rest;
            return Ok(true);
        }
        Ok(false)
    }

    fn separator(&mut self, bracket: char) -> Result<(), Stop> {
        self.rest = self.rest.trim_start();
        match self.rest.chars().next() {
            None => Err(Stop::Unfinished),
            Some(',') => {
                self.rest = &self.rest[1..];
                Ok(())
            }
            Some(c) if c == bracket => Ok(()),
            Some(c) => Err(Stop::Wrong(format!("{c:?} between values in brackets"))),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, Stop> {
        let mut out = String::new();
        let mut chars = self.rest[1..].char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                if quote == '\'' && chars.peek().is_some_and(|(_, next)| *next == '\'') {
                    chars.next();
                    out.push('\'');
                    continue;
                }
                self.rest = &self.rest[1 + at + 1..];
                return Ok(out);
            }
            if quote == '"' && c == '\\' {
                let (_, escape) = chars.next().ok_or(Stop::Unfinished)?;
                let digits = match escape {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    'n' => {
                        out.push('\n');
                        continue;
                    }
                    't' => {
                        out.push('\t');
                        continue;
                    }
                    other => {
                        out.push(other);
                        continue;
                    }
                };
                let code: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
                let value = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                out.push(value.ok_or_else(|| Stop::Wrong(format!("escape \\{escape}{code}")))?);
                continue;
            }
            out.push(c);
        }
        Err(Stop::Unfinished)
    }
}

#[cfg(test)]
#[path = "front_matter_tests.rs"]
mod tests;
