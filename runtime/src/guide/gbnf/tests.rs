//! Translated grammars against a plain reading of GBNF: every text that one takes, the other takes.

use std::collections::BTreeSet;
use std::sync::Arc;

use net::api::Constraint;
use proptest::prelude::*;

use super::{Expr, Grammar, Translated, translate};
use crate::guide::compiler::Library;
use crate::guide::tests::{compile, default_tokenizer, walk};
use crate::text::Tokenizer;

/// Where what `expr` stands for may end, if it begins at `at`.
fn ends(grammar: &Grammar, expr: &Expr, text: &[char], at: usize) -> BTreeSet<usize> {
    match expr {
        Expr::Chars(ranges) => {
            let c = text.get(at).map(|c| u32::from(*c));
            let fits = c.is_some_and(|c| ranges.iter().any(|(first, last)| (*first..=*last).contains(&c)));
            fits.then_some(at + 1).into_iter().collect()
        }
        Expr::Sequence(items) => items.iter().fold(BTreeSet::from([at]), |from, item| {
            from.into_iter().flat_map(|at| ends(grammar, item, text, at)).collect()
        }),
        Expr::Alternatives(ways) => ways.iter().flat_map(|way| ends(grammar, way, text, at)).collect(),
        Expr::Repeat(inner, least, most) => {
            let (mut now, mut all) = (BTreeSet::from([at]), BTreeSet::new());
            for count in 0..=most.unwrap_or(least + 40) {
                if count >= *least {
                    let before = all.len();
                    all.extend(now.iter().copied());
                    if all.len() == before && count > *least {
                        break;
                    }
                }
                now = now.into_iter().flat_map(|at| ends(grammar, inner, text, at)).collect();
            }
            all
        }
        Expr::Rule(rule) => ends(grammar, &grammar.rules[*rule], text, at),
    }
}

fn takes(grammar: &Grammar, text: &str) -> bool {
    let chars: Vec<char> = text.chars().collect();
    ends(grammar, &grammar.rules[grammar.root], &chars, 0).contains(&chars.len())
}

/// Whether a guide takes all of a text and lets it end there; `None` where a set of tokens takes more work than is allowed, as
/// that of a grammar may that reads a text in very many ways.
fn guided(library: &mut Library, tokenizer: &Arc<Tokenizer>, constraint: &Constraint, text: &str) -> Option<bool> {
    let mut guide = compile(library, tokenizer, constraint).unwrap_or_else(|error| panic!("{error}"));
    let is_allowed = |words: &[u32], id: u32| words[id as usize / 32] >> (id % 32) & 1 == 1;
    for byte in text.bytes() {
        let id = (0..tokenizer.vocab_len() as u32).find(|id| tokenizer.piece(*id) == [byte]).unwrap();
        if guide.is_complete() {
            return Some(false);
        }
        if !is_allowed(guide.allowed()?, id) {
            return Some(false);
        }
        guide.push(id);
    }
    let end = tokenizer.end_of_generation()[0];
    Some(guide.is_complete() || is_allowed(guide.allowed()?, end))
}

#[track_caller]
fn assert_same(source: &str, texts: &[&str]) {
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    let grammar = super::parse::parse(source).unwrap();
    let constraint = Constraint::Grammar(source.into());
    for text in texts {
        let expected = takes(&grammar, text);
        assert_eq!(guided(&mut library, &tokenizer, &constraint, text), Some(expected), "{source}\n`{text}`");
    }
    assert!(texts.iter().any(|text| takes(&grammar, text)), "none of the texts is one of {source}");
}

const JSON: &str = r#"# as llama.cpp makes it
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn json_of_llama_cpp_is_json_and_its_strings_are_terminals() {
    let texts = [
        "{}",
        "{ }\n\t ",
        r#"{"a": -1.5e+3, "b":[true, null,{"é\u00e9\\":""}]} "#,
        r#"{"a"}"#,
        r#"{"a": 01}"#,
        "{",
        "[]",
        r#"{"a": "\q"}"#,
        r#"{"a":1,}"#,
        "{}  ",
        "",
    ];
    assert_same(JSON, &texts);
    let Translated::Lark(lark) = translate(JSON).unwrap() else { panic!("JSON is no regular language") };
    assert!(
        lark.lines().any(|line| line.starts_with('T') && line.contains("\\u{22}") && line.contains("{0,}")),
        "{lark}"
    );
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    let mut ended = 0;
    for seed in 0..20 {
        let mut guide = compile(&mut library, &tokenizer, &Constraint::Grammar(JSON.into())).unwrap();
        let walk = walk(&mut guide, &tokenizer, seed, 300);
        assert!(!walk.failed, "{}", walk.text);
        if walk.ended {
            assert!(serde_json::from_str::<serde_json::Value>(&walk.text).unwrap().is_object(), "{}", walk.text);
            ended += 1;
        }
    }
    assert!(ended > 0);
}

#[test]
fn texts_that_a_longest_match_would_lose_are_taken() {
    // Rules that refer to themselves keep these from being one regular expression.
    assert_same("root ::= \"(\" root \")\" | [a-z]* \"z\"", &["z", "zz", "(abcz)", "((z))", "(a)", "abz", ""]);
    assert_same("root ::= \"ab\" \"c\" | [a] \"bd\" | \"<\" root \">\"", &["abc", "abd", "<<abd>>", "ab", "<abc"]);
    assert_same("root ::= x x\nx ::= \"a\" | \"aa\" | \"(\" x \")\"", &["aa", "aaa", "aaaa", "a", "(a)(aa)", "aaaaa"]);
    assert_same(
        "root ::= \"\\\"\" | \"\\\"\" [^\"]* \"\\\"\" root | \"\\\"x\"",
        &["\"", "\"a\"\"", "\"x", "\"x\"\"x", "\"x\""],
    );
    // The plain reading does not come to an end with rules that begin with themselves.
    let (tokenizer, mut library) = (default_tokenizer(), Library::default());
    for (source, text, expected) in [
        ("root ::= root \"+\" n | n\nn ::= [0-9]+", "1+20+3", true),
        ("root ::= root \"+\" n | n\nn ::= [0-9]+", "1+", false),
        ("root ::= (\"a\" | root)? \"b\" | ", "abb", true),
        ("root ::= (\"a\" | root)? \"b\" | ", "", true),
        ("root ::= (\"a\" | root)? \"b\" | ", "a", false),
    ] {
        let constraint = Constraint::Grammar(source.into());
        assert_eq!(guided(&mut library, &tokenizer, &constraint, text), Some(expected), "{source} `{text}`");
    }
}

#[test]
fn characters_escapes_repetitions_and_comments_are_read_as_llama_cpp_reads_them() {
    assert_same(r#"root ::= "\x41\u00e9\U0001F600\t\r\n\\\"\[\]""#, &["A\u{e9}\u{1f600}\t\r\n\\\"[]", "A"]);
    assert_same(r"root ::= [a-z\]]+", &["abc", "]", "-", "az]"]);
    assert_same("root ::= [-a] [a-] [^-] [^\\]] .", &["-a]-\n", "a--]é", "-abbé"]);
    assert_same("root ::= [ぁ-ゟ]{2}", &["あい", "ab", "あ"]);
    assert_same(
        "root ::= \"ab\"{2,3} \"c\"{0,1} \"d\"{2} \"e\"{1,}",
        &["ababdde", "abababcddee", "abdde", "ababd", "ababccdde"],
    );
    assert_same("root ::= \"a\"?* \"b\"{0} (\"c\" | )", &["", "aaa", "c", "aac", "b"]);
    assert_same(
        "# first\nroot ::= # after\n  a |\n  b-2 # last\n\na ::= \"#\" (\n \"x\" # in\n | \"y\"\n)\r\nb-2 ::= \"b_\"",
        &["#x", "#y", "b_", "#"],
    );
    assert_same("root_1 ::= \"a\"\nroot ::= root_1 \"b\"", &["ab", "a"]);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(200), ")".repeat(200));
    let stars = format!("root ::= \"a\"{}", "*".repeat(200));
    for (source, line, word) in [
        ("", 1, "root"),
        ("a ::= \"b\"", 1, "root"),
        ("root ::= a\n", 1, "`a` is not defined"),
        ("root ::= \"a\"\n\nroot ::= \"b\"", 3, "again"),
        ("root ::= \"a\"\n= \"b\"", 2, "name"),
        ("root ::= \"a\"\nb : \"b\"", 2, "::="),
        ("root ::= \"a\" )", 1, "`)`"),
        ("root ::= (\"a\"", 1, "`(` is not closed"),
        ("root ::=\n \"a", 2, "`\"` is not closed"),
        ("root ::= [a", 1, "`[` is not closed"),
        ("root ::= []", 1, "empty"),
        ("root ::= [^\\x00-\\U0010FFFF]", 1, "empty"),
        ("root ::= [z-a]", 1, "range"),
        ("root ::= \"\\q\"", 1, "\\q"),
        ("root ::= \"\\x4\"", 1, "digits"),
        ("root ::= \"\\xé4\"", 1, "digits"),
        ("root ::= \"\\uD800\"", 1, "no character"),
        ("root ::= * \"a\"", 1, "`*` repeats nothing"),
        ("root ::= \"a\"{,2}", 1, "form"),
        ("root ::= \"a\"{1;2}", 1, "form"),
        ("root ::= \"a\"{3,2}", 1, "most"),
        ("root ::= \"a\"{2001}", 1, "2000"),
        ("root ::= \"a\"{99999999999999999999}", 1, "2000"),
        ("root ::= <think>", 1, "tokens"),
        ("root ::= \"a\"\n  \"b\"", 2, "name"),
        (&deep, 1, "deeper"),
        (&stars, 1, "deeper"),
    ] {
        let error = translate(source).err().unwrap_or_else(|| panic!("{source:.100} is taken")).to_string();
        assert!(error.starts_with(&format!("in line {line}, ")) && error.contains(word), "{source:.100}: {error}");
    }
}

#[test]
fn hostile_grammars_are_translated_in_bounded_size() {
    let doubling: String = (0..40).map(|i| format!("r{i} ::= r{} r{}\n", i + 1, i + 1)).collect();
    let chain: String = (0..4000).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    let words: Vec<String> = (0..2000).map(|i| format!("\"w{i}\"")).collect();
    for source in [
        format!("root ::= r0\n{doubling}r40 ::= \"a\""),
        format!("root ::= r0 | \"x\" root\n{chain}r4000 ::= \"a\""),
        format!("root ::= ({}) root?", words.join(" | ")),
        "root ::= (\"a\"{2000}){2000} | \"b\" root".into(),
        "root ::= root root | [^a] [^b]{0,500} [^c]{0,500} \"d\" | [a-z]{0,900} \"e\"".into(),
        format!("root ::= \"{}\" root | \"b\"", "a".repeat(60_000)),
    ] {
        let started = std::time::Instant::now();
        match translate(&source).unwrap() {
            Translated::Lark(text) | Translated::Regex(text) => {
                assert!(text.len() < 2_000_000, "{source:.60}: {}", text.len());
            }
        }
        assert!(started.elapsed().as_secs() < 60, "{source:.60} took {:?}", started.elapsed());
    }
}

/// An expression over few letters; rules that were not begun yet may be referred to anywhere, others behind a letter, so
/// that the plain reading comes to an end.
fn expr(rule: usize, rules: usize) -> impl Strategy<Value = String> {
    let letters = prop_oneof![
        Just("\"a\""),
        Just("\"b\""),
        Just("\"ab\""),
        Just("[ab]"),
        Just("[^a]"),
        Just("\"\""),
        Just("\"c\"")
    ];
    let leaf = prop_oneof![
        4 => letters.prop_map(str::to_owned),
        1 => (0..rules).prop_map(move |other| if other > rule { format!("r{other}") } else { format!("\"c\" r{other}") }),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(|items| format!("({})", items.join(" "))),
            prop::collection::vec(inner.clone(), 1..4).prop_map(|ways| format!("({})", ways.join(" | "))),
            (
                inner,
                prop_oneof![Just("*"), Just("+"), Just("?"), Just("{2}"), Just("{1,2}"), Just("{2,}"), Just("{0}")]
            )
                .prop_map(|(inner, times)| format!("({inner}){times}")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_grammar_takes_what_the_plain_reading_takes(
        bodies in (expr(0, 3), expr(1, 3), expr(2, 3)),
        texts in prop::collection::vec("[abc]{0,6}", 12),
    ) {
        // One that refers to itself, so that it is not always a regular expression.
        let source = format!("root ::= r0 | \"[\" root \"]\"\nr0 ::= {}\nr1 ::= {}\nr2 ::= {}\n", bodies.0, bodies.1, bodies.2);
        let grammar = super::parse::parse(&source).unwrap();
        let (tokenizer, mut library) = (default_tokenizer(), Library::default());
        let constraint = Constraint::Grammar(source.clone());
        // One without any text, as r0 may be if it has no end.
        prop_assume!(compile(&mut library, &tokenizer, &constraint).is_ok());
        for text in texts.iter().flat_map(|text| [text.clone(), format!("[{text}]")]) {
            let expected = takes(&grammar, &text);
            let guided = guided(&mut library, &tokenizer, &constraint, &text);
            prop_assert!(guided.is_none_or(|takes| takes == expected), "{}`{}`", source, text);
        }
    }
}
