//! Whether texts can be cut into terminals in one way only. The grammar library takes the longest terminal that fits; GBNF
//! knows none, every way to read a text counts. The two agree where no text of a terminal begins another text of any.

use std::collections::HashSet;

use super::Expr;

/// An automaton of several expressions side by side.
#[derive(Default)]
pub(super) struct Nfa {
    /// States that are reached without a character.
    free: Vec<Vec<u32>>,
    /// Ranges of characters, and the state behind them.
    edges: Vec<Vec<(u32, u32, u32)>>,
    /// Which expression a state belongs to.
    owner: Vec<u32>,
    starts: Vec<u32>,
    is_end: Vec<bool>,
}

/// What the texts of an automaton are to each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// None begins another, and none is empty.
    Unique,
    /// One begins others, which are of these expressions.
    Begins(Vec<u32>),
    /// One is empty.
    Empty,
    /// It takes too much work to say.
    Unknown,
}

impl Nfa {
    /// Adds an expression that stands for itself, or for what `rules` say.
    pub(super) fn add(&mut self, expr: &Expr, rules: &[Expr]) {
        let owner = u32::try_from(self.starts.len()).expect("terminals are few");
        let start = self.state(owner);
        let end = self.part(expr, rules, start, owner);
        self.starts.push(start);
        self.is_end[end as usize] = true;
    }

    fn state(&mut self, owner: u32) -> u32 {
        self.free.push(Vec::new());
        self.edges.push(Vec::new());
        self.owner.push(owner);
        self.is_end.push(false);
        u32::try_from(self.owner.len() - 1).expect("states are counted before")
    }

    /// The state behind an expression that begins at `from`.
    fn part(&mut self, expr: &Expr, rules: &[Expr], from: u32, owner: u32) -> u32 {
        match expr {
            Expr::Chars(ranges) => {
                let to = self.state(owner);
                let edges = ranges.iter().map(|&(first, last)| (first, last, to));
                self.edges[from as usize].extend(edges);
                to
            }
            Expr::Sequence(items) => items.iter().fold(from, |at, item| self.part(item, rules, at, owner)),
            Expr::Alternatives(ways) => {
                let to = self.state(owner);
                for way in ways {
                    let begin = self.state(owner);
                    self.free[from as usize].push(begin);
                    let end = self.part(way, rules, begin, owner);
                    self.free[end as usize].push(to);
                }
                to
            }
            Expr::Repeat(inner, least, most) => {
                let mut at = from;
                for _ in 0..*least {
                    at = self.part(inner, rules, at, owner);
                }
                let Some(most) = most else {
                    let (begin, to) = (self.state(owner), self.state(owner));
                    self.free[at as usize].push(begin);
                    let end = self.part(inner, rules, begin, owner);
                    self.free[end as usize].push(begin);
                    self.free[begin as usize].push(to);
                    return to;
                };
                let to = self.state(owner);
                for _ in *least..*most {
                    let begin = self.state(owner);
                    self.free[at as usize].extend([to, begin]);
                    at = self.part(inner, rules, begin, owner);
                }
                self.free[at as usize].push(to);
                to
            }
            Expr::Rule(rule) => self.part(&rules[*rule], rules, from, owner),
        }
    }

    /// Everything that is reached without a character, sorted.
    fn closed(&self, mut states: Vec<u32>) -> Vec<u32> {
        let mut seen: Vec<bool> = vec![false; self.free.len()];
        let mut at = 0;
        states.iter().for_each(|state| seen[*state as usize] = true);
        while at < states.len() {
            for &next in &self.free[states[at] as usize] {
                if !std::mem::replace(&mut seen[next as usize], true) {
                    states.push(next);
                }
            }
            at += 1;
        }
        states.retain(|state| !self.edges[*state as usize].is_empty() || self.is_end[*state as usize]);
        states.sort_unstable();
        states
    }

    /// How the texts of all expressions stand to each other. Every state leads to an end, so that a text which is whole where
    /// another goes on begins that one.
    pub(super) fn cut(&self, work: &mut usize) -> Cut {
        let start = self.closed(self.starts.clone());
        if start.iter().any(|state| self.is_end[*state as usize]) {
            return Cut::Empty;
        }
        let mut known = HashSet::from([start.clone()]);
        let mut waiting = vec![start];
        while let Some(states) = waiting.pop() {
            if states.iter().any(|state| self.is_end[*state as usize]) {
                let mut going_on: Vec<u32> = states
                    .iter()
                    .filter(|state| !self.edges[**state as usize].is_empty())
                    .map(|state| self.owner[*state as usize])
                    .collect();
                going_on.dedup();
                if !going_on.is_empty() {
                    return Cut::Begins(going_on);
                }
            }
            let edges: Vec<(u32, u32, u32)> =
                states.iter().flat_map(|state| &self.edges[*state as usize]).copied().collect();
            let mut bounds: Vec<u32> = edges.iter().flat_map(|&(first, last, _)| [first, last + 1]).collect();
            bounds.sort_unstable();
            bounds.dedup();
            for &at in &bounds {
                let mut next: Vec<u32> =
                    edges.iter().filter(|(first, last, _)| (*first..=*last).contains(&at)).map(|edge| edge.2).collect();
                let cost = self.free.len() + edges.len();
                if *work < cost {
                    return Cut::Unknown;
                }
                *work -= cost;
                if next.is_empty() {
                    continue;
                }
                next.sort_unstable();
                next.dedup();
                let next = self.closed(next);
                if known.insert(next.clone()) {
                    waiting.push(next);
                }
            }
        }
        Cut::Unique
    }
}
