//! Prompts of about a wanted number of tokens, made of everyday words.
use super::schedule::Random;

#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    seed: u64,
    words: usize,
}

impl Prompts {
    pub(crate) fn new(seed: u64, tokens: u32, words_per_token: f64) -> Self {
        let words = (f64::from(tokens) * words_per_token).round().max(1.0);
        Self { seed, words: words as usize }
    }

    /// The prompt of request `index`: the same for the same seed.
    pub(crate) fn prompt(&self, index: u32) -> String {
        words(self.seed, u64::from(index), self.words)
    }
}

/// The text by which a server's tokens are counted against words.
pub(crate) fn sample() -> (String, usize) {
    (words(0, 0, SAMPLE_WORDS), SAMPLE_WORDS)
}

/// Of English text in the vocabularies of the field, where the server cannot be asked.
pub(crate) const WORDS_PER_TOKEN: f64 = 0.75;

fn words(seed: u64, index: u64, count: usize) -> String {
    let mut random = Random::new(seed, index);
    let mut text = String::with_capacity(7 * count);
    for i in 0..count {
        if i > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[(random.next() % WORDS.len() as u64) as usize]);
    }
    text
}

const SAMPLE_WORDS: usize = 256;
const WORDS: [&str; 96] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money",
    "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue", "side",
    "kind", "head", "house", "service", "friend", "father", "power", "hour", "game", "line", "end", "member", "law",
    "car", "city", "name", "team", "minute", "idea", "kid", "body", "back", "parent", "face", "level", "office",
    "door", "health", "person", "art", "war", "history", "party", "result", "change", "morning", "reason", "research",
    "girl", "guy", "moment", "air", "teacher", "force", "river", "garden",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_their_length_and_follow_the_seed() {
        let prompts = Prompts::new(1, 100, 0.5);
        assert_eq!(prompts.prompt(3).split(' ').count(), 50);
        assert_eq!(prompts.prompt(3), Prompts::new(1, 100, 0.5).prompt(3));
        assert_ne!(prompts.prompt(3), prompts.prompt(4));
        assert_ne!(prompts.prompt(3), Prompts::new(2, 100, 0.5).prompt(3));
        assert!(!Prompts::new(1, 1, 0.01).prompt(0).is_empty());
    }
}
