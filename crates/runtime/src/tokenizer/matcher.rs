//! Finds the texts of whole tokens (control tokens, user-defined tokens) inside a text.

use super::TokenId;

/// A set of texts, searched for at one place at a time, longest first.
pub(super) struct Matcher {
    /// The texts with their tokens, ascending: all that begin alike lie together.
    entries: Vec<(Box<[u8]>, TokenId)>,
    /// Which bytes any text begins with.
    begins: [bool; 256],
}

impl Matcher {
    /// A matcher of `entries`; empty texts are left out.
    pub(super) fn new<'a>(entries: impl Iterator<Item = (&'a str, TokenId)>) -> Self {
        let mut entries: Vec<(Box<[u8]>, TokenId)> = entries
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, id)| (text.as_bytes().into(), id))
            .collect();
        entries.sort_unstable();
        let mut begins = [false; 256];
        for (text, _) in &entries {
            begins[usize::from(text[0])] = true;
        }
        Matcher { entries, begins }
    }

    /// The longest entry that `text` begins with and `allowed` admits, with its length in bytes.
    pub(super) fn longest(
        &self,
        text: &[u8],
        mut allowed: impl FnMut(TokenId, usize) -> bool,
    ) -> Option<(TokenId, usize)> {
        if !self.begins[usize::from(*text.first()?)] {
            return None;
        }
        let mut alike = &self.entries[..];
        let mut found = None;
        for (depth, byte) in text.iter().enumerate() {
            // All of `alike` agree with the text in their first `depth` bytes and have at least one more.
            let low = alike.partition_point(|(entry, _)| entry[depth] < *byte);
            let high = alike.partition_point(|(entry, _)| entry[depth] <= *byte);
            alike = &alike[low..high];
            // The shortest of them comes first, and no two are equal.
            if let Some((entry, id)) = alike.first()
                && entry.len() == depth + 1
            {
                if allowed(*id, depth + 1) {
                    found = Some((*id, depth + 1));
                }
                alike = &alike[1..];
            }
            if alike.is_empty() {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::Matcher;

    fn matcher(texts: &[&'static str]) -> Matcher {
        Matcher::new(texts.iter().enumerate().map(|(id, text)| (*text, id as u32)))
    }

    #[test]
    fn the_longest_entry_wins() {
        let m = matcher(&["<", "<|a|>", "<|a", "b", "<|ab|>", ""]);
        let longest = |text: &str| m.longest(text.as_bytes(), |_, _| true);
        assert_eq!(longest("<|a|> "), Some((1, 5)));
        assert_eq!(longest("<|ab|>"), Some((4, 6)));
        assert_eq!(longest("<|ab"), Some((2, 3)));
        assert_eq!(longest("<x"), Some((0, 1)));
        assert_eq!(longest("b"), Some((3, 1)));
        assert_eq!(longest("x<"), None);
        assert_eq!(longest(""), None);
    }

    #[test]
    fn refused_entries_leave_the_shorter_ones() {
        let m = matcher(&["ab", "a", "abc"]);
        assert_eq!(m.longest(b"abcd", |id, _| id != 2), Some((0, 2)));
        assert_eq!(m.longest(b"abcd", |_, len| len < 2), Some((1, 1)));
        assert_eq!(m.longest(b"abcd", |_, _| false), None);
    }

    #[test]
    fn agrees_with_a_search_of_every_entry() {
        let mut seed = 1u32;
        let mut letters = |n: usize| -> String {
            (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    char::from(b'a' + (seed >> 24) as u8 % 3)
                })
                .collect()
        };
        let mut texts: Vec<String> = (0..60).map(|i| letters(1 + i % 6)).collect();
        texts.sort();
        texts.dedup();
        let m = Matcher::new(texts.iter().enumerate().map(|(id, text)| (text.as_str(), id as u32)));
        for _ in 0..500 {
            let text = letters(8);
            let naive = texts
                .iter()
                .enumerate()
                .filter(|(_, entry)| text.starts_with(entry.as_str()))
                .max_by_key(|(_, entry)| entry.len())
                .map(|(id, entry)| (id as u32, entry.len()));
            assert_eq!(m.longest(text.as_bytes(), |_, _| true), naive, "{text}");
        }
    }
}
