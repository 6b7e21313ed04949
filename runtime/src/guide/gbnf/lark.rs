//! A grammar as a regular expression where it is one, else in Lark: rules over terminals, as long ones as can be cut out of
//! a text in one way only, so that a token goes through an automaton and not, character by character, through the parser.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::terminals::{Cut, Nfa};
use super::{Expr, GbnfError, Grammar};

/// A grammar as the library takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Translated {
    Regex(String),
    Lark(String),
}

/// What `text` says in GBNF.
pub(in super::super) fn translate(text: &str) -> Result<Translated, GbnfError> {
    let grammar = super::parse::parse(text)?;
    let sizes = sizes(&grammar);
    if sizes[grammar.root].fits() {
        return Ok(Translated::Regex(regex(&grammar.rules[grammar.root], &grammar.rules)));
    }
    let mut banned = HashSet::new();
    for _ in 0..TRIES_MAX {
        let mut writer = Writer::new(&grammar, &sizes, &banned);
        let lark = writer.write();
        match writer.cut() {
            Cut::Unique => return Ok(Translated::Lark(lark)),
            Cut::Begins(terminals) => {
                let found = terminals.iter().map(|terminal| writer.terminals[*terminal as usize].0.clone());
                let found: Vec<String> = found.collect();
                banned.extend(found);
            }
            Cut::Empty | Cut::Unknown => break,
        }
    }
    // Characters are apart by themselves.
    let mut writer = Writer::new(&grammar, &sizes, &banned);
    writer.work = 0;
    Ok(Translated::Lark(writer.write()))
}

/// What it takes to write an expression without rules.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// States of its automaton; no number where it refers to itself.
    states: u64,
    depth: u64,
}

impl Size {
    const NONE: Self = Self { states: u64::MAX, depth: u64::MAX };

    fn fits(self) -> bool {
        self.states <= TERMINAL_STATES_MAX && self.depth <= TERMINAL_DEPTH_MAX
    }

    fn of(expr: &Expr, rules: &[Self]) -> Self {
        let sum = |items: &[Expr]| {
            items.iter().map(|item| Self::of(item, rules)).fold(Self { states: 1, depth: 0 }, |sum, size| Self {
                states: sum.states.saturating_add(size.states).saturating_add(1),
                depth: sum.depth.max(size.depth),
            })
        };
        let size = match expr {
            Expr::Chars(_) => Self { states: 1, depth: 0 },
            Expr::Sequence(items) | Expr::Alternatives(items) => sum(items),
            Expr::Repeat(inner, least, most) => {
                let size = Self::of(inner, rules);
                let times = most.unwrap_or(least + 1).max(1);
                Self { states: size.states.saturating_add(1).saturating_mul(u64::from(times)), ..size }
            }
            Expr::Rule(rule) => rules[*rule],
        };
        Self { depth: size.depth.saturating_add(1), ..size }
    }
}

/// The sizes of all rules, from those that refer to none.
fn sizes(grammar: &Grammar) -> Vec<Size> {
    let count = grammar.rules.len();
    let (mut users, mut missing) = (vec![Vec::new(); count], vec![0_usize; count]);
    for (rule, body) in grammar.rules.iter().enumerate() {
        references(body, &mut |other| {
            users[other].push(rule);
            missing[rule] += 1;
        });
    }
    let mut sizes = vec![Size::NONE; count];
    let mut ready: Vec<usize> = (0..count).filter(|rule| missing[*rule] == 0).collect();
    while let Some(rule) = ready.pop() {
        sizes[rule] = Size::of(&grammar.rules[rule], &sizes);
        for &user in &users[rule] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(user);
            }
        }
    }
    sizes
}

fn references(expr: &Expr, found: &mut impl FnMut(usize)) {
    match expr {
        Expr::Chars(_) => {}
        Expr::Sequence(items) | Expr::Alternatives(items) => items.iter().for_each(|item| references(item, found)),
        Expr::Repeat(inner, ..) => references(inner, found),
        Expr::Rule(rule) => found(*rule),
    }
}

struct Writer<'g> {
    grammar: &'g Grammar,
    sizes: &'g [Size],
    /// Terminals that begin others, or that others begin.
    banned: &'g HashSet<String>,
    /// Each terminal with the expression it is made of.
    terminals: Vec<(String, Expr)>,
    names: HashMap<String, usize>,
    /// Rules that are referred to, in the order that they are written in.
    rules: Vec<usize>,
    is_named: Vec<bool>,
    work: usize,
}

impl<'g> Writer<'g> {
    fn new(grammar: &'g Grammar, sizes: &'g [Size], banned: &'g HashSet<String>) -> Self {
        let mut is_named = vec![false; grammar.rules.len()];
        is_named[grammar.root] = true;
        let (terminals, names, rules) = (Vec::new(), HashMap::new(), vec![grammar.root]);
        Self { grammar, sizes, banned, terminals, names, rules, is_named, work: WORK_MAX }
    }

    fn write(&mut self) -> String {
        let mut text = format!("start: r{}\n", self.grammar.root);
        let mut at = 0;
        while at < self.rules.len() {
            let rule = self.rules[at];
            let grammar = self.grammar;
            let body = self.body(&grammar.rules[rule]);
            writeln!(text, "r{rule}: {body}").expect("memory takes it");
            at += 1;
        }
        for (index, (regex, _)) in self.terminals.iter().enumerate() {
            writeln!(text, "T{index}: /{regex}/").expect("memory takes it");
        }
        text
    }

    /// Whether all terminals together can be cut out of a text in one way only.
    fn cut(&self) -> Cut {
        let mut nfa = Nfa::default();
        self.terminals.iter().for_each(|(_, expr)| nfa.add(expr, &self.grammar.rules));
        let mut work = WORK_MAX;
        nfa.cut(&mut work)
    }

    fn body(&mut self, expr: &Expr) -> String {
        if let Some(name) = self.terminal(expr) {
            return name;
        }
        match expr {
            Expr::Chars(_) => unreachable!("it is a terminal"),
            Expr::Sequence(items) => self.sequence(items),
            Expr::Alternatives(ways) => {
                let ways: Vec<String> = ways.iter().map(|way| self.body(way)).collect();
                format!("({})", ways.join(" | "))
            }
            Expr::Repeat(inner, least, most) => {
                let inner = self.body(inner);
                match (*least, *most) {
                    (_, Some(0)) => "\"\"".into(),
                    (0, None) => format!("({inner})*"),
                    (1, None) => format!("({inner})+"),
                    (least, None) => format!("({inner})~{least}..{least} ({inner})*"),
                    (0, Some(1)) => format!("({inner})?"),
                    (least, Some(most)) => format!("({inner})~{least}..{most}"),
                }
            }
            Expr::Rule(rule) => {
                if !std::mem::replace(&mut self.is_named[*rule], true) {
                    self.rules.push(*rule);
                }
                format!("r{rule}")
            }
        }
    }

    /// As few terminals as there can be, from the left.
    fn sequence(&mut self, items: &[Expr]) -> String {
        if items.is_empty() {
            return "\"\"".into();
        }
        let (mut parts, mut at) = (Vec::new(), 0);
        while at < items.len() {
            let fits = |item: &&Expr| Size::of(item, self.sizes).fits();
            let most = if self.work == 0 { 1 } else { RUN_ITEMS_MAX };
            let longest = items[at..].iter().take(most).take_while(fits).count();
            let run = (2..=longest).rev().find_map(|count| {
                let run = Expr::Sequence(items[at..at + count].to_vec());
                self.terminal(&run).map(|name| (name, count))
            });
            let (part, count) = run.unwrap_or_else(|| (self.body(&items[at]), 1));
            parts.push(part);
            at += count;
        }
        parts.join(" ")
    }

    /// The name of the terminal that an expression can be.
    fn terminal(&mut self, expr: &Expr) -> Option<String> {
        let size = Size::of(expr, self.sizes);
        if !size.fits() || !matches!(expr, Expr::Chars(_)) && !self.spend(size.states) {
            return None;
        }
        let regex = regex(expr, &self.grammar.rules);
        let index = match self.names.get(&regex) {
            Some(index) => *index,
            None => {
                if !matches!(expr, Expr::Chars(_)) && (self.banned.contains(&regex) || !self.is_unique(expr)) {
                    return None;
                }
                self.terminals.push((regex.clone(), expr.clone()));
                self.names.insert(regex, self.terminals.len() - 1);
                self.terminals.len() - 1
            }
        };
        Some(format!("T{index}"))
    }

    /// Whether there is so much work left, which is spent then: writing an expression down takes some, whatever comes of it.
    fn spend(&mut self, states: u64) -> bool {
        let left = usize::try_from(states).ok().and_then(|cost| self.work.checked_sub(cost));
        self.work = left.unwrap_or(0);
        left.is_some()
    }

    fn is_unique(&mut self, expr: &Expr) -> bool {
        let mut nfa = Nfa::default();
        nfa.add(expr, &self.grammar.rules);
        nfa.cut(&mut self.work) == Cut::Unique
    }
}

fn regex(expr: &Expr, rules: &[Expr]) -> String {
    let join = |items: &[Expr], by: &str| items.iter().map(|item| regex(item, rules)).collect::<Vec<_>>().join(by);
    match expr {
        Expr::Chars(ranges) => class(ranges),
        Expr::Sequence(items) => format!("(?:{})", join(items, "")),
        Expr::Alternatives(ways) => format!("(?:{})", join(ways, "|")),
        Expr::Repeat(inner, least, most) => {
            let inner = regex(inner, rules);
            match (*least, *most) {
                (least, None) => format!("(?:{inner}){{{least},}}"),
                (least, Some(most)) => format!("(?:{inner}){{{least},{most}}}"),
            }
        }
        Expr::Rule(rule) => regex(&rules[*rule], rules),
    }
}

fn class(ranges: &[(u32, u32)]) -> String {
    let mut text = String::from("[");
    for &(first, last) in ranges {
        match first == last {
            true => write!(text, "\\u{{{first:x}}}"),
            false => write!(text, "\\u{{{first:x}}}-\\u{{{last:x}}}"),
        }
        .expect("memory takes it");
    }
    text.push(']');
    text
}

/// States of a terminal's automaton, and brackets within brackets.
const TERMINAL_STATES_MAX: u64 = 4096;
const TERMINAL_DEPTH_MAX: u64 = 60;
/// Items of a sequence that are tried as one terminal.
const RUN_ITEMS_MAX: usize = 32;
/// How often terminals that don't go with others are cut smaller before all are.
const TRIES_MAX: usize = 32;
/// Looks at states and edges to find terminals, some hundred a microsecond. What is found does not depend on the machine.
const WORK_MAX: usize = 4_000_000;
