//! What a sequence has seen so far: the tokens of its prompt and how often it gave each token itself.

/// Tokens of one sequence, for penalties. Space for all its tokens is taken at the start.
#[derive(Clone, Debug)]
pub struct History {
    seen: Vec<Seen>,
    /// Open addressing: index into `seen` plus one, 0 where free.
    slots: Vec<u32>,
}

/// One token of a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub token: u32,
    /// How often the sequence gave it; 0 for a token of the prompt only.
    pub output_count: u32,
}

impl History {
    /// For sequences of at most `tokens_max` tokens, prompt and output together; more make it grow.
    pub fn with_capacity(tokens_max: usize) -> Self {
        Self { seen: Vec::with_capacity(tokens_max), slots: vec![0; slots_for(tokens_max)] }
    }

    /// Takes in the prompt.
    pub fn push_prompt(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.entry(token);
        }
    }

    /// Takes in a token that the sequence gave.
    pub fn push_output(&mut self, token: u32) {
        self.entry(token).output_count += 1;
    }

    /// For the next sequence; keeps its space.
    pub fn clear(&mut self) {
        self.seen.clear();
        self.slots.fill(0);
    }

    /// Each token once, in order of first appearance.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    fn entry(&mut self, token: u32) -> &mut Seen {
        let mut slot = self.slot(token);
        if self.slots[slot] == 0 {
            if (self.seen.len() + 1) * 2 > self.slots.len() {
                self.grow();
                slot = self.slot(token);
            }
            self.seen.push(Seen { token, output_count: 0 });
            self.slots[slot] = u32::try_from(self.seen.len()).expect("token ids are u32 and stand here once");
        }
        &mut self.seen[self.slots[slot] as usize - 1]
    }

    fn slot(&self, token: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = (token.wrapping_mul(0x9e37_79b1) >> 7) as usize & mask;
        while self.slots[slot] != 0 && self.seen[self.slots[slot] as usize - 1].token != token {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![0; slots_for(self.seen.len() * 2)];
        for index in 0..self.seen.len() {
            let slot = self.slot(self.seen[index].token);
            self.slots[slot] = u32::try_from(index + 1).expect("as in `entry`");
        }
    }
}

fn slots_for(tokens: usize) -> usize {
    (tokens.max(8) * 2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_once_each() {
        let mut history = History::with_capacity(2);
        history.push_prompt(&[7, 8, 7]);
        for i in 0..1000 {
            history.push_output(i % 500);
        }
        assert_eq!(history.seen().len(), 500);
        assert_eq!(history.seen()[0], Seen { token: 7, output_count: 2 });
        history.clear();
        history.push_output(8);
        assert_eq!(history.seen(), [Seen { token: 8, output_count: 1 }]);
    }
}
