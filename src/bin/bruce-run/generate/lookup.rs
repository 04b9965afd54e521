//! Drafts from the text itself: what followed the last few tokens when they stood there before.

use runtime::tokenizer::TokenId;

/// Lengths of the ending that is looked for, the longest first: a longer one says more about what follows.
const ENDINGS: std::ops::RangeInclusive<usize> = 2..=5;

/// At most `n` tokens that followed the latest place where `text` had its present ending; none where it never had.
pub fn draft(text: &[TokenId], n: usize) -> Vec<TokenId> {
    if n == 0 {
        return Vec::new();
    }
    for len in ENDINGS.rev() {
        let Some(start) = text.len().checked_sub(len) else { continue };
        let (before, ending) = (&text[..text.len() - 1], &text[start..]);
        if let Some(place) = before.windows(len).rposition(|window| window == ending) {
            let follows = &text[place + len..];
            return follows[..follows.len().min(n)].to_vec();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::draft;

    #[test]
    fn what_followed_the_longest_ending_is_drafted() {
        // "2 3" is followed by 9 later, but "1 2 3" only by 4.
        let text = [1, 2, 3, 4, 5, 8, 2, 3, 9, 1, 2, 3];
        assert_eq!(draft(&text, 2), [4, 5]);
        assert_eq!(draft(&text[..text.len() - 4], 1), [4]);
    }

    #[test]
    fn a_repeated_token_drafts_itself_as_far_as_the_text_goes() {
        assert_eq!(draft(&[7, 7, 7, 7], 8), [7]);
    }

    #[test]
    fn nothing_is_drafted_from_nothing() {
        assert!(
            draft(&[], 4).is_empty() && draft(&[1, 2, 3], 4).is_empty() && draft(&[1, 1, 1], 0).is_empty()
        );
    }
}
