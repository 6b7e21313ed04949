//! The facts as a table for people.

use std::fmt::{Display, Write as _};

use super::facts::{Architecture, Facts, Severity, Tokenizer};

pub(super) fn render(facts: &Facts, colour: bool) -> String {
    let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{} {value}", paint(BOLD, &format!("{name:<13}")));
    };
    line("file", printable(&facts.path));
    line("size", format!("{} ({} bytes)", size(facts.file_bytes), facts.file_bytes));
    line(
        "format",
        format!(
            "GGUF {}, {} metadata entries, {} tensors, data from byte {}",
            facts.version, facts.metadata_count, facts.tensor_count, facts.data_offset
        ),
    );
    if let Some(sha256) = &facts.sha256 {
        line("sha256", sha256.clone());
    }
    let alignment = &facts.alignment;
    line(
        "alignment",
        format!(
            "{} bytes required, tensors start at multiples of {}, {} is optimal; {} of {} tensors are off it, which costs \
             nothing here (weights are packed into aligned memory) and two cache lines a load where a file is mapped",
            alignment.required, alignment.actual, alignment.optimal, alignment.off_optimal_count, facts.tensor_count
        ),
    );
    line("model", model(&facts.architecture, facts.parameter_count));
    if let Some(pooling) = facts.architecture.pooling {
        let length = or_none(facts.architecture.embedding_length);
        line("gives", format!("embeddings of {length} values, {pooling} pooling, length 1"));
    }
    line("shape", shape(&facts.architecture));
    line("positions", positions(&facts.architecture));
    line("tokenizer", tokenizer(&facts.tokenizer));
    line("specials", specials(&facts.tokenizer));
    if let Some(ternary) = &facts.ternary {
        let scales = match (ternary.scale_min, ternary.scale_max) {
            (Some(min), Some(max)) => format!("scales {min} to {max}"),
            _ => "no finite scale".to_owned(),
        };
        line(
            "ternary",
            format!(
                "{} weights in {} tensors, {scales}, {} with code 3",
                count(ternary.elements),
                ternary.tensor_count,
                ternary.code3_count
            ),
        );
    }
    out.push('\n');
    types(facts, &paint, &mut out);
    if !facts.tensors.is_empty() {
        out.push('\n');
        tensors(facts, &mut out);
    }
    out.push('\n');
    findings(facts, &paint, &mut out);
    out
}

fn model(architecture: &Architecture, parameters: u64) -> String {
    let name = architecture.model_name.as_deref().map_or_else(|| "without a name".to_owned(), printable);
    let arch = architecture.name.as_deref().map_or_else(|| "none given".to_owned(), printable);
    format!("{name}, architecture {arch}, {} parameters", count(parameters))
}

fn shape(architecture: &Architecture) -> String {
    format!(
        "{} layers, hidden {}, feed-forward {}, heads {} of {}, key-value heads {}, norm epsilon {}",
        or_none(architecture.block_count),
        or_none(architecture.embedding_length),
        or_none(architecture.feed_forward_length),
        or_none(architecture.head_count),
        or_none(architecture.head_dim),
        or_none(architecture.head_count_kv),
        or_none(architecture.norm_rms_epsilon),
    )
}

fn positions(architecture: &Architecture) -> String {
    format!("context {}, RoPE base {}", or_none(architecture.context_length), or_none(architecture.rope_freq_base))
}

fn tokenizer(tokenizer: &Tokenizer) -> String {
    let text = |value: &Option<String>| value.as_deref().map_or_else(|| "not given".to_owned(), printable);
    format!(
        "{}, splitting {}, {} tokens, {} merges",
        text(&tokenizer.model),
        text(&tokenizer.pre),
        or_none(tokenizer.tokens_count),
        or_none(tokenizer.merges_count),
    )
}

fn specials(tokenizer: &Tokenizer) -> String {
    format!(
        "begin {}, end {}, begin added {}, chat template {}",
        or_none(tokenizer.bos_token_id),
        or_none(tokenizer.eos_token_id),
        or_none(tokenizer.add_bos_token),
        tokenizer.chat_template_bytes.map_or_else(|| "not given".to_owned(), |bytes| format!("of {bytes} bytes")),
    )
}

fn types(facts: &Facts, paint: &dyn Fn(&str, &str) -> String, out: &mut String) {
    let head = format!("{:<10} {:>8} {:>10} {:>12} {:>7}", "type", "tensors", "elements", "size", "share");
    let _ = writeln!(out, "{}", paint(BOLD, &head));
    let total: u64 = facts.types.iter().map(|entry| entry.bytes).sum();
    for entry in &facts.types {
        let share = entry.bytes as f64 / total as f64 * 100.0;
        let _ = writeln!(
            out,
            "{:<10} {:>8} {:>10} {:>12} {share:>6.1}%",
            entry.name,
            entry.tensor_count,
            count(entry.elements),
            size(entry.bytes)
        );
    }
}

fn tensors(facts: &Facts, out: &mut String) {
    let names = facts.tensors.iter().map(|tensor| printable(&tensor.name));
    let names: Vec<String> = names.collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max("tensor".len());
    let _ = writeln!(out, "{:<width$}  {:<8} {:>12} {:>12}  dimensions", "tensor", "type", "offset", "bytes");
    for (tensor, name) in facts.tensors.iter().zip(&names) {
        let dims = tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        let (kind, offset, bytes) = (tensor.kind, tensor.offset, tensor.bytes);
        let _ = writeln!(out, "{name:<width$}  {kind:<8} {offset:>12} {bytes:>12}  {dims}");
    }
}

fn findings(facts: &Facts, paint: &dyn Fn(&str, &str) -> String, out: &mut String) {
    if facts.findings.is_empty() {
        let _ = writeln!(out, "{}", paint(GREEN, "no findings"));
    }
    for finding in &facts.findings {
        let severity = match finding.severity {
            Severity::Warning => paint(YELLOW, "warning"),
            Severity::Unsupported => paint(RED, "unsupported"),
            Severity::Malformed => paint(RED, "malformed"),
        };
        let _ = writeln!(out, "{severity}: {} [{}]", printable(&finding.message), finding.code);
    }
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// Text from the file without control characters, which could write over the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or_else(|| "not given".to_owned(), |value| value.to_string())
}

/// 2.41 B.
fn count(number: u64) -> String {
    scaled(number, &[(1_000_000_000, " B"), (1_000_000, " M"), (1_000, " K")], "")
}

/// 1.19 GB, in powers of ten.
fn size(bytes: u64) -> String {
    scaled(bytes, &[(1_000_000_000, " GB"), (1_000_000, " MB"), (1_000, " kB")], " B")
}

fn scaled(number: u64, units: &[(u64, &str)], one: &str) -> String {
    match units.iter().find(|(unit, _)| number >= *unit) {
        Some((unit, suffix)) => format!("{:.2}{suffix}", number as f64 / *unit as f64),
        None => format!("{number}{one}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_scaled_for_people() {
        assert_eq!(size(1_187_801_280), "1.19 GB");
        assert_eq!(size(999), "999 B");
        assert_eq!(count(2_412_820_480), "2.41 B");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn control_characters_of_the_file_are_not_printed() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
