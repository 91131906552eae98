//! Stop strings in a stream of text: found wherever the pieces happen to be cut, and never printed by half.

/// Looks for stop strings in text that arrives in pieces.
///
/// The stop that is complete first wins, of those that end together the longest. Text that may yet turn out to be the beginning
/// of a stop is held back; so the output does not depend on how the text was cut.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What a piece of text brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text that is certainly no part of a stop.
    pub text: String,
    /// The stop that was found, as its place in the list; the text before it is in `text`, and nothing follows.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`. Empty strings, which would stop before the first character, are left out.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            stops: stops.into_iter().map(Into::into).collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next piece. After a stop was found, every later piece gives nothing.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.stopped {
            return Stopped {
                text: String::new(),
                stop: None,
            };
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_complete() {
            self.stopped = true;
            self.held.truncate(start);
            return Stopped {
                text: std::mem::take(&mut self.held),
                stop: Some(stop),
            };
        }
        let keep = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(keep);
        Stopped {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// The text held back, when nothing more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Start of the stop that ends first in the held text, of those the one that starts first, and its place in the list.
    fn first_complete(&self) -> Option<(usize, usize)> {
        let found = |(i, stop): (usize, &String)| {
            let start = self.held.find(stop.as_str()).filter(|_| !stop.is_empty())?;
            Some((start + stop.len(), start, i))
        };
        self.stops
            .iter()
            .enumerate()
            .filter_map(found)
            .min()
            .map(|(_, start, i)| (start, i))
    }

    /// Length of the longest end of the held text with which a stop begins.
    fn longest_beginning(&self) -> usize {
        let longest = self.stops.iter().map(|s| s.len().saturating_sub(1)).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let is_beginning = |&at: &usize| {
            self.held.is_char_boundary(at)
                && self
                    .stops
                    .iter()
                    .any(|s| s.as_bytes().starts_with(&self.held.as_bytes()[at..]))
        };
        (from..self.held.len())
            .find(is_beginning)
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
        let mut m = StopMatcher::new(stops.iter().copied());
        let mut out = String::new();
        for piece in pieces {
            let s = m.push(piece);
            out.push_str(&s.text);
            if s.stop.is_some() {
                return (out, s.stop);
            }
        }
        out.push_str(&m.finish());
        (out, None)
    }

    #[test]
    fn a_stop_is_found_across_pieces_and_text_after_it_is_dropped() {
        assert_eq!(all(&["END"], &["one E", "N", "D two"]), ("one ".into(), Some(0)));
        assert_eq!(all(&["END"], &["one E", "N", "Q"]), ("one ENQ".into(), None));
        assert_eq!(all(&["aab"], &["aa", "ab"]), ("a".into(), Some(0)));
        assert_eq!(all(&["ß!"], &["gro", "ß", "?", "ß", "!x"]), ("groß?".into(), Some(0)));
    }

    #[test]
    fn text_that_cannot_be_a_stop_is_given_at_once_and_the_rest_at_the_end() {
        let mut m = StopMatcher::new(["\n\n"]);
        assert_eq!(
            m.push("a\n"),
            Stopped {
                text: "a".into(),
                stop: None
            }
        );
        assert_eq!(
            m.push("b"),
            Stopped {
                text: "\nb".into(),
                stop: None
            }
        );
        m.push("\n");
        assert_eq!(m.finish(), "\n");
    }

    #[test]
    fn the_first_to_be_complete_wins_and_then_nothing_comes() {
        assert_eq!(all(&["abc", "b"], &["abc"]), ("a".into(), Some(1)));
        assert_eq!(all(&["b", "ab"], &["xab"]), ("x".into(), Some(1)));
        assert_eq!(all(&["", "z"], &["xyz"]), ("xy".into(), Some(1)));
        let mut m = StopMatcher::new(["x"]);
        assert_eq!(m.push("x").stop, Some(0));
        assert_eq!(
            m.push("more x"),
            Stopped {
                text: String::new(),
                stop: None
            }
        );
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_cuts(text in "[abß]{0,24}", stops in prop::collection::vec("[abß]{1,4}", 0..4), cuts in prop::collection::vec(0usize..25, 0..6)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let letters: Vec<char> = text.chars().collect();
            let one_by_one: Vec<String> = letters.iter().map(char::to_string).collect();
            let one_by_one = all(&stops, &one_by_one.iter().map(String::as_str).collect::<Vec<_>>());
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(letters.len())).collect();
            cuts.extend([0, letters.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> = cuts.windows(2).map(|w| letters[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(&all(&stops, &pieces), &one_by_one);
            // And it is what a search in the whole text finds.
            let whole = stops.iter().enumerate().filter_map(|(i, s)| text.find(s).map(|at| (at + s.len(), at, i))).min();
            let expected = whole.map_or((text.clone(), None), |(_, at, i)| (text[..at].to_owned(), Some(i)));
            prop_assert_eq!(one_by_one, expected);
        }
    }
}
