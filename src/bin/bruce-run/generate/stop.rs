//! Reverse prompts: words that end an answer.
//!
//! Text arrives in pieces, and a word may lie across several. What could still become a word is held back until it is
//! clear, so that a word that ends the answer is never shown.

/// Watches a text for words.
#[derive(Debug, Default)]
pub struct StopWords {
    words: Vec<String>,
    /// The end of the text so far that may be the beginning of a word.
    held: String,
}

/// What a piece of text leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// Text that is certain.
    pub text: String,
    /// Whether a word was found right behind it.
    pub stopped: bool,
}

impl StopWords {
    /// Watches for any of `words`; empty ones are ignored.
    pub fn new(words: &[String]) -> Self {
        StopWords { words: words.iter().filter(|w| !w.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds a piece of text and gives what is certain by now.
    pub fn push(&mut self, piece: &str) -> Seen {
        self.held.push_str(piece);
        // The word that begins first wins; among those the longest, which changes nothing for the text.
        if let Some(start) = self.words.iter().filter_map(|word| self.held.find(word.as_str())).min() {
            self.held.truncate(start);
            return Seen { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.words.iter().map(|word| overlap(&self.held, word)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Seen { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back; the text is at its end.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that a word begins with.
fn overlap(text: &str, word: &str) -> usize {
    let longest = text.len().min(word.len() - 1);
    let starts = text.char_indices().map(|(i, _)| text.len() - i).filter(|len| *len <= longest);
    starts.filter(|len| word.as_bytes().starts_with(&text.as_bytes()[text.len() - len..])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> StopWords {
        StopWords::new(&list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
    }

    fn seen(text: &str, stopped: bool) -> Seen {
        Seen { text: text.to_owned(), stopped }
    }

    #[test]
    fn a_word_across_pieces_is_not_shown() {
        let mut stop = words(&["User:"]);
        assert_eq!(stop.push("Yes.\nUs"), seen("Yes.\n", false));
        assert_eq!(stop.push("er"), seen("", false));
        assert_eq!(stop.push(": and"), seen("", true));
    }

    #[test]
    fn what_turns_out_to_be_no_word_is_shown() {
        let mut stop = words(&["aab"]);
        assert_eq!(stop.push("xaa"), seen("x", false));
        assert_eq!(stop.push("a"), seen("a", false));
        assert_eq!(stop.push("b"), seen("", true));
        let mut stop = words(&["aab"]);
        assert_eq!(stop.push("aa"), seen("", false));
        assert_eq!(stop.finish(), "aa");
    }

    #[test]
    fn the_first_of_several_words_wins() {
        let mut stop = words(&["zz", "b"]);
        assert_eq!(stop.push("abzz"), seen("a", true));
    }

    #[test]
    fn words_of_several_bytes_a_character() {
        let mut stop = words(&["→é"]);
        assert_eq!(stop.push("é→"), seen("é", false));
        assert_eq!(stop.push("e"), seen("→e", false));
        assert_eq!(stop.push("→é"), seen("", true));
    }

    #[test]
    fn without_words_everything_passes() {
        let mut stop = words(&[""]);
        assert_eq!(stop.push("abc"), seen("abc", false));
        assert_eq!(stop.finish(), "");
    }
}
