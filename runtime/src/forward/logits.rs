//! What a step gives for an entry of its logits.

/// The logits of an entry, for whoever chooses its token.
pub enum Logits<'a> {
    /// One for each token, minus infinity where they do not matter to [`Step::want_best`](super::Step::want_best).
    All(&'a mut [f32]),
    /// Of a row that looks for one token: all others are ruled out.
    Few(Few<'a>),
}

/// Tokens that could be the one that a row looks for, ascending, and their logits beside.
#[derive(Clone, Copy, Debug)]
pub struct Few<'a> {
    pub tokens: &'a [u32],
    pub logits: &'a [f32],
}

impl Few<'_> {
    /// Tokens with their logits.
    pub fn each(self) -> impl Iterator<Item = (u32, f32)> {
        self.tokens.iter().copied().zip(self.logits.iter().copied())
    }
}
