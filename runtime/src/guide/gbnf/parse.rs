//! The text of a grammar to its rules. Line ends end a rule outside of parentheses, but not behind `::=` and `|`.

use std::collections::HashMap;

use super::{CODE_POINT_MAX, DEPTH_MAX, Expr, Fault, GbnfError, Grammar, NAME_CHARS_MAX, REPETITIONS_MAX, SURROGATES};

struct Parser<'t> {
    text: &'t str,
    at: usize,
    names: HashMap<&'t str, usize>,
    /// What is known of each name.
    rules: Vec<Named<'t>>,
}

struct Named<'t> {
    name: &'t str,
    /// Where it stands first.
    at: usize,
    body: Option<Expr>,
}

pub(super) fn parse(text: &str) -> Result<Grammar, GbnfError> {
    let mut parser = Parser { text, at: 0, names: HashMap::new(), rules: Vec::new() };
    parser.skip(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.skip(true);
    }
    let root = *parser.names.get("root").ok_or(GbnfError { line: 1, fault: Fault::NoRoot })?;
    let mut rules = Vec::with_capacity(parser.rules.len());
    for Named { name, at, body } in std::mem::take(&mut parser.rules) {
        rules.push(body.ok_or_else(|| parser.error_at(at, Fault::Undefined(shown(name))))?);
    }
    Ok(Grammar { rules, root })
}

impl<'t> Parser<'t> {
    fn rule(&mut self) -> Result<(), GbnfError> {
        let at = self.at;
        let name = self.name().ok_or_else(|| self.error(Fault::Name))?;
        self.skip(false);
        if !self.text[self.at..].starts_with("::=") {
            return Err(self.error(Fault::Is));
        }
        self.at += 3;
        self.skip(true);
        let body = self.alternatives(0)?;
        if let Some(other) = self.peek().filter(|c| !"\r\n".contains(*c)) {
            return Err(self.error(Fault::Unexpected(other)));
        }
        let index = self.index_of(name, at);
        match self.rules[index].body.replace(body) {
            Some(_) => Err(self.error_at(at, Fault::Again(shown(name)))),
            None => Ok(()),
        }
    }

    fn alternatives(&mut self, depth: usize) -> Result<Expr, GbnfError> {
        if depth > DEPTH_MAX {
            return Err(self.error(Fault::Depth));
        }
        let mut all = vec![self.sequence(depth)?];
        while self.take('|') {
            self.skip(true);
            all.push(self.sequence(depth)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::Alternatives(all) })
    }

    fn sequence(&mut self, depth: usize) -> Result<Expr, GbnfError> {
        let mut items: Vec<Expr> = Vec::new();
        // Repetitions of the last item.
        let mut repetitions = 0;
        while let Some(next) = self.peek() {
            if let Some((least, most)) = self.repetition(next, depth)? {
                let item = items.pop().ok_or_else(|| self.error(Fault::RepeatsNothing(next)))?;
                repetitions += 1;
                if repetitions > DEPTH_MAX {
                    return Err(self.error(Fault::Depth));
                }
                items.push(Expr::Repeat(Box::new(item), least, most));
            } else {
                let Some(item) = self.item(next, depth)? else { break };
                items.push(item);
                repetitions = 0;
            }
            self.skip(depth > 0);
        }
        Ok(if items.len() == 1 { items.remove(0) } else { Expr::Sequence(items) })
    }

    fn item(&mut self, next: char, depth: usize) -> Result<Option<Expr>, GbnfError> {
        Ok(Some(match next {
            '"' => self.literal()?,
            '[' => self.class()?,
            '.' => {
                self.at += 1;
                Expr::Chars(ranges_without(&[]))
            }
            '(' => {
                let at = self.at;
                self.at += 1;
                self.skip(true);
                let group = self.alternatives(depth + 1)?;
                match self.peek() {
                    Some(')') => self.at += 1,
                    Some(other) => return Err(self.error(Fault::Unexpected(other))),
                    None => return Err(self.error_at(at, Fault::Open('('))),
                }
                group
            }
            '<' | '!' => return Err(self.error(Fault::Tokens)),
            _ => {
                let at = self.at;
                let Some(name) = self.name() else { return Ok(None) };
                Expr::Rule(self.index_of(name, at))
            }
        }))
    }

    /// How often the item before is repeated, if `next` begins that.
    fn repetition(&mut self, next: char, depth: usize) -> Result<Option<(u32, Option<u32>)>, GbnfError> {
        let times = match next {
            '*' => (0, None),
            '+' => (1, None),
            '?' => (0, Some(1)),
            '{' => return self.braces(depth).map(Some),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(times))
    }

    fn braces(&mut self, depth: usize) -> Result<(u32, Option<u32>), GbnfError> {
        self.at += 1;
        self.skip(depth > 0);
        let least = self.number()?.ok_or_else(|| self.error(Fault::Repetition))?;
        self.skip(depth > 0);
        let mut most = Some(least);
        if self.take(',') {
            self.skip(depth > 0);
            most = self.number()?;
            self.skip(depth > 0);
        }
        if !self.take('}') {
            return Err(self.error(Fault::Repetition));
        }
        if most.is_some_and(|most| most < least) {
            return Err(self.error(Fault::Order));
        }
        Ok((least, most))
    }

    fn number(&mut self) -> Result<Option<u32>, GbnfError> {
        let rest = &self.text[self.at..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return Ok(None);
        }
        let number = rest[..digits].parse().ok().filter(|number| *number <= REPETITIONS_MAX);
        self.at += digits;
        number.map(Some).ok_or_else(|| self.error(Fault::Repetitions))
    }

    fn literal(&mut self) -> Result<Expr, GbnfError> {
        let at = self.at;
        self.at += 1;
        let mut chars = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error_at(at, Fault::Open('"'))),
                Some('"') => break,
                Some(_) => {
                    let c = self.char()?;
                    chars.push(Expr::Chars(vec![(c, c)]));
                }
            }
        }
        self.at += 1;
        Ok(if chars.len() == 1 { chars.remove(0) } else { Expr::Sequence(chars) })
    }

    fn class(&mut self) -> Result<Expr, GbnfError> {
        let at = self.at;
        self.at += 1;
        let is_negated = self.take('^');
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.error_at(at, Fault::Open('['))),
                Some(']') => break,
                Some(_) => {}
            }
            let first = self.char()?;
            let rest = &self.text[self.at..];
            let mut last = first;
            if rest.starts_with('-') && !rest.starts_with("-]") && rest.len() > 1 {
                self.at += 1;
                last = self.char()?;
            }
            if last < first {
                return Err(self.error(Fault::Range));
            }
            ranges.push((first, last));
        }
        self.at += 1;
        let ranges = if is_negated { ranges_without(&merged(ranges)) } else { merged(ranges) };
        if ranges.is_empty() {
            return Err(self.error_at(at, Fault::NoChars));
        }
        Ok(Expr::Chars(ranges))
    }

    /// The next code point of a literal or a class, which is not its end.
    fn char(&mut self) -> Result<u32, GbnfError> {
        let mut rest = self.text[self.at..].chars();
        let c = rest.next().ok_or_else(|| self.error(Fault::Digits))?;
        self.at += c.len_utf8();
        if c != '\\' {
            return Ok(u32::from(c));
        }
        let escape = rest.next().ok_or_else(|| self.error(Fault::Digits))?;
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            't' | 'r' | 'n' | '\\' | '"' | '[' | ']' => 0,
            other => return Err(self.error(Fault::Escape(other))),
        };
        self.at += 1;
        if digits == 0 {
            return Ok(match escape {
                't' => 0x09,
                'r' => 0x0d,
                'n' => 0x0a,
                plain => u32::from(plain),
            });
        }
        let hex = self.text.get(self.at..self.at + digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).ok_or_else(|| self.error(Fault::Digits))?;
        char::from_u32(code).ok_or_else(|| self.error(Fault::CodePoint))?;
        self.at += digits;
        Ok(code)
    }

    fn name(&mut self) -> Option<&'t str> {
        let rest = &self.text[self.at..];
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
        let length = rest.bytes().take_while(|byte| is_word(byte)).count();
        self.at += length;
        (length > 0).then(|| &rest[..length])
    }

    fn index_of(&mut self, name: &'t str, at: usize) -> usize {
        *self.names.entry(name).or_insert_with(|| {
            self.rules.push(Named { name, at, body: None });
            self.rules.len() - 1
        })
    }

    /// Passes over spaces, comments and, where they mean nothing, line ends.
    fn skip(&mut self, line_ends: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if line_ends => self.at += 1,
                '#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find(['\r', '\n']).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, c: char) -> bool {
        let is_next = self.peek() == Some(c);
        self.at += if is_next { c.len_utf8() } else { 0 };
        is_next
    }

    fn error(&self, fault: Fault) -> GbnfError {
        self.error_at(self.at, fault)
    }

    fn error_at(&self, at: usize, fault: Fault) -> GbnfError {
        GbnfError { line: 1 + self.text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count(), fault }
    }
}

fn merged(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// All characters but those of `ranges`, which are sorted and apart.
fn ranges_without(ranges: &[(u32, u32)]) -> Vec<(u32, u32)> {
    let (mut left, mut next) = (Vec::new(), 0);
    let with_surrogates = merged(ranges.iter().copied().chain([SURROGATES]).collect());
    for (first, last) in with_surrogates {
        if next < first {
            left.push((next, first - 1));
        }
        next = last + 1;
    }
    if next <= CODE_POINT_MAX {
        left.push((next, CODE_POINT_MAX));
    }
    left
}

fn shown(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}
