//! What a Hub name says: `org/Base-7B-Instruct-v0.2` taken apart as llama.cpp's converter does.

/// The parts of a name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NameParts {
    /// The name without the organisation.
    pub(crate) full_name: Option<String>,
    pub(crate) organization: Option<String>,
    pub(crate) basename: Option<String>,
    pub(crate) finetune: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) size_label: Option<String>,
}

/// What one part between hyphens is taken for; several at once while undecided.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Kinds {
    basename: bool,
    size: bool,
    finetune: bool,
    version: bool,
    /// An encoding such as `Q4_K` or `bf16`.
    encoding: bool,
}

impl Kinds {
    fn count(self) -> usize {
        [self.basename, self.size, self.finetune, self.version, self.encoding]
            .into_iter()
            .filter(|k| *k)
            .count()
    }
}

/// The parts of `id`; `total_weights` (0 where unknown) tells sizes from context lengths (`32k`).
pub(crate) fn parse(id: &str, total_weights: u64) -> NameParts {
    if id.contains(' ') {
        return NameParts { full_name: Some(id.to_owned()), ..NameParts::default() };
    }
    let (organization, full_name) = match id.split_once('/') {
        Some((organization, name)) => (Some(organization).filter(|o| !o.starts_with('.')), name),
        None => (None, id),
    };
    let mut parts = classified(full_name, total_weights);
    settle(&mut parts);
    let those = |is: fn(Kinds) -> bool| -> Vec<&str> {
        parts.iter().filter(|(_, kinds)| is(*kinds)).map(|(part, _)| part.as_str()).collect()
    };
    let joined = |parts: Vec<&str>| (!parts.is_empty()).then(|| parts.join("-"));
    let mut sizes: Vec<&str> = Vec::new();
    for size in those(|k| k.size) {
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    let size_label = joined(sizes);
    let finetune = joined(those(|k| k.finetune));
    let version = joined(those(|k| k.version && !k.basename));
    let is_ambiguous = size_label.is_none() && finetune.is_none() && version.is_none();
    NameParts {
        full_name: Some(full_name.to_owned()),
        organization: organization.map(str::to_owned),
        basename: joined(those(|k| k.basename)).filter(|_| !is_ambiguous),
        finetune,
        version,
        size_label,
    }
}

/// The parts of a name between hyphens, and what each is by its own spelling.
fn classified(name: &str, total_weights: u64) -> Vec<(String, Kinds)> {
    let mut parts: Vec<(String, Kinds)> =
        name.split('-').filter(|p| !p.is_empty()).map(|p| (p.to_owned(), Kinds::default())).collect();
    for (i, (part, kinds)) in parts.iter_mut().enumerate() {
        let lower = part.to_lowercase();
        if is_version(&lower) {
            kinds.version = true;
        } else if is_encoding(&lower) {
            kinds.encoding = true;
            *part = part.to_uppercase();
        } else if i > 0 && is_size(&lower) {
            (*part, *kinds) = size_or_context(part, total_weights);
        } else if i > 0 && matches!(lower.as_str(), "chat" | "instruct" | "vision" | "lora") {
            kinds.finetune = true;
        }
    }
    parts
}

/// Decides by the neighbours what spelling leaves open: which words at the start are the basename, and which are of a
/// finetune.
fn settle(parts: &mut [(String, Kinds)]) {
    // `mini` is a size only where no number says it better.
    let digits = |part: &str| part.chars().any(|c| c.is_ascii_digit());
    if parts.iter().any(|(part, kinds)| kinds.size && digits(part)) {
        for (part, kinds) in &mut *parts {
            kinds.size &= !part.chars().all(char::is_alphabetic);
        }
    }
    let mut at_start = true;
    for (part, kinds) in &mut *parts {
        let plain_word = kinds.count() == 0 && part.starts_with(char::is_alphabetic);
        if at_start && (plain_word || kinds.version) {
            kinds.basename = true;
        } else {
            at_start = false;
            kinds.finetune |= kinds.count() == 0;
        }
    }
    // A version that ends the basename is the version.
    for (_, kinds) in parts.iter_mut().rev() {
        if !(kinds.basename && kinds.count() > 1) {
            break;
        }
        kinds.basename = false;
    }
}

fn is_version(lower: &str) -> bool {
    let number = lower.strip_prefix('v').or_else(|| lower.strip_prefix("iter")).unwrap_or(lower);
    number.split('.').all(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn is_encoding(lower: &str) -> bool {
    let float = lower.strip_prefix('b').unwrap_or(lower).strip_prefix('f');
    if float.is_some_and(|bits| matches!(bits.strip_prefix('p').unwrap_or(bits), "16" | "32")) {
        return true;
    }
    let Some(rest) = lower.strip_prefix('i').unwrap_or(lower).strip_prefix('q') else { return false };
    let mut chars = rest.chars();
    // q4, then any number of an underscore with one letter or digit.
    let digit = chars.next().is_some_and(|c| c.is_ascii_digit());
    let rest: Vec<char> = chars.collect();
    digit && rest.chunks(2).all(|pair| matches!(pair, ['_', c] if c.is_alphanumeric() || *c == '_'))
}

fn is_size(lower: &str) -> bool {
    if matches!(lower, "small" | "mini" | "medium" | "large" | "xl" | "xxl") {
        return true;
    }
    let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let mut rest = lower;
    if let Some(active) = rest.strip_prefix('a') {
        rest = active;
    } else if digits(rest) > 0 && rest[digits(rest)..].starts_with('x') {
        rest = &rest[digits(rest) + 1..];
    }
    if digits(rest) == 0 {
        return false;
    }
    rest = &rest[digits(rest)..];
    if let Some(fraction) = rest.strip_prefix(['.', '_']) {
        if digits(fraction) == 0 {
            return false;
        }
        rest = &fraction[digits(fraction)..];
    }
    let Some(rest) = rest.strip_prefix(['k', 'm', 'b', 't']) else { return false };
    rest.is_empty() || (rest.len() == 1 && digits(rest) == 1)
}

/// A size label spelled the usual way, or a context length, which is far from the number of weights.
fn size_or_context(part: &str, total_weights: u64) -> (String, Kinds) {
    let mut chars: Vec<char> = part.replace('_', ".").chars().collect();
    // 7b1 is 7.1b.
    if let [.., unit, digit] = chars[..]
        && digit.is_ascii_digit()
    {
        chars.truncate(chars.len() - 2);
        chars.extend(['.', digit, unit]);
    }
    if let [.., before, unit] = &mut chars[..]
        && before.is_ascii_digit()
        && matches!(unit, 'k' | 'm' | 'b' | 't')
    {
        *unit = unit.to_ascii_uppercase();
    }
    let text: String = chars.iter().collect();
    let unit = chars.last().and_then(|unit| " KMBT".find(*unit));
    let number = text.get(..text.len().saturating_sub(1)).and_then(|n| n.parse::<f64>().ok());
    if let (true, Some(unit), Some(number)) = (total_weights > 0, unit, number) {
        let label = number * 1000f64.powi(unit as i32);
        let total = total_weights as f64;
        if (label - total).abs() > (7.0 * total / 8.0).floor() {
            let context: String = text.to_lowercase();
            return (context, Kinds { finetune: true, ..Kinds::default() });
        }
    }
    (text, Kinds { size: true, ..Kinds::default() })
}

/// `mistral-7b-instruct` as people write it: `Mistral 7b Instruct`. Words with capitals, versions and words
/// that begin with a digit stay.
pub(crate) fn title(id: &str) -> String {
    let words = id.trim().replace('-', " ");
    let words = words.split_whitespace().map(|word| {
        let cased = || word.chars().filter(|c| c.is_uppercase() || c.is_lowercase());
        let is_lower = cased().next().is_some() && cased().all(char::is_lowercase);
        let stays =
            word.starts_with(|c: char| c.is_ascii_digit()) || (word.starts_with('v') && is_version(word));
        if is_lower && !stays { capitalised(word) } else { word.to_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The first letter of every run of letters in upper case: `smol4x` becomes `Smol4X`.
fn capitalised(word: &str) -> String {
    let mut out = String::new();
    let mut within = false;
    for c in word.chars() {
        match within {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        within = c.is_alphabetic();
    }
    out
}

/// The number of weights as a label: `4x7.2B`, of `each` weights used by an expert's path.
pub(crate) fn size_label(n_expert: u32, each: u64) -> String {
    let count = rounded(each);
    if n_expert > 0 { format!("{n_expert}x{count}") } else { count }
}

/// Two digits at least: 7.2B, 42M, 229M.
fn rounded(n: u64) -> String {
    let n = n as f64;
    let (scaled, unit) = match n {
        n if n > 1e12 => (n * 1e-12, 'T'),
        n if n > 1e9 => (n * 1e-9, 'B'),
        n if n > 1e6 => (n * 1e-6, 'M'),
        n => (n * 1e-3, 'K'),
    };
    let whole = scaled.round_ties_even() as u64;
    let digits = if whole == 0 { 0 } else { whole.ilog10() as usize + 1 };
    format!("{scaled:.*}{unit}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
#[path = "naming_tests.rs"]
mod tests;
