//! Chat templates: a model's Jinja template, compiled once, rendered per request as Hugging Face renders it.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::Serialize;

use super::calls::CALL_OPEN;
use super::python;
use super::tokenizer::Tokenizer;

/// One message of a chat, as templates see it. Fields that are absent are undefined in the template.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// OpenAI's `tool_calls` objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message of text.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into(), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// Names of variables and their values.
pub type Variables = serde_json::Map<String, serde_json::Value>;

/// Why a template gives no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template itself is at fault.
    #[error("the chat template does not compile: {0}")]
    Compile(#[source] Error),
    /// The template refuses these messages (`raise_exception`).
    #[error("the chat template refuses the messages: {message}")]
    Refused { message: String },
    /// More work or output than a prompt can need.
    #[error("the chat template takes more than {FUEL} units of work")]
    TooMuchWork,
    /// The template leaves out the message that is to be continued.
    #[error("the chat template leaves out the last message")]
    LeftOut,
    /// The template fails on these messages.
    #[error("the chat template fails: {0}")]
    Render(#[source] Error),
}

/// A compiled template: immutable, shared by reference.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    writes_calls: bool,
}

impl ChatTemplate {
    /// Compiles `template`; `bos` and `eos` are the texts of those tokens, empty where there is none.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn from_source(template: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(TemplateError::Compile)?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_unknown_method_callback(python::call_method);
        environment.set_formatter(python::print);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(message)))
        });
        environment.add_function("strftime_now", |format: &str| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            strftime(format, now.as_secs())
        });
        environment.add_template_owned(NAME, template.to_owned()).map_err(TemplateError::Compile)?;
        let writes_calls = ["tools", "tool_calls", CALL_OPEN].iter().all(|word| template.contains(word));
        Ok(Self { environment, bos: bos.into(), eos: eos.into(), writes_calls })
    }

    /// Whether it tells of tools, and writes calls of them as this server reads them.
    pub fn writes_calls(&self) -> bool {
        self.writes_calls
    }

    /// The template of a file, or where it has none: Llama 3's if the vocabulary has its header tokens, else BitNet's.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn for_tokenizer(source: Option<&str>, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let text =
            |id: Option<u32>| id.map_or(String::new(), |id| String::from_utf8_lossy(tokenizer.token_text(id)).into());
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let llama3 = tokenizer.token_id("<|start_header_id|>").is_some() && tokenizer.token_id("<|eot_id|>").is_some();
        let turn_end = text(tokenizer.eot().or(tokenizer.eos()));
        let bitnet = BITNET.replace("TURN_END", &serde_json::Value::from(turn_end).to_string());
        Self::from_source(source.unwrap_or(if llama3 { LLAMA3 } else { &bitnet }), &bos, &eos)
    }

    /// The prompt for `messages`; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// The template's refusal or failure; it is bounded in work, memory and depth.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        self.render_with(messages, &[], &Variables::new(), add_generation_prompt)
    }

    /// As [`render`](Self::render), with the `tools` of the request (OpenAI's objects; none are undefined in the template),
    /// and with further variables, which go behind those that are set here.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_with(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        variables: &Variables,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools)) };
        let template = self.environment.get_template(NAME).map_err(TemplateError::Render)?;
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools,
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            ..context! { ..Value::from(Serde(variables)), ..context! { documents => () } }
        };
        template.render(context).map_err(classify)
    }
}

fn classify(error: Error) -> TemplateError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooMuchWork;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Refusal(message)) = inner.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        cause = inner.source();
    }
    TemplateError::Render(error)
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: not escaped for HTML, unlike minijinja's own.
#[expect(clippy::needless_pass_by_value, reason = "the template engine hands over keyword arguments by value")]
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let mut out = String::new();
    write_json(value, indent.map(|width| width.min(16)), 0, &mut out)?;
    Ok(Value::from(out))
}

/// As `tojson` gives it to templates.
pub(super) fn python_json(value: &serde_json::Value) -> Result<String, TemplateError> {
    let mut out = String::new();
    write_json(&Value::from(Serde(value)), None, 0, &mut out).map_err(TemplateError::Render)?;
    Ok(out)
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > RECURSION_MAX || out.len() > python::TEXT_BYTES_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "value is too large for JSON"));
    }
    let break_line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let kind = value.kind();
    match kind {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            let map = kind == ValueKind::Map;
            out.push(if map { '{' } else { '[' });
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                break_line(depth + 1, out);
                if map {
                    out.push_str(&serde_json::Value::from(item.to_string()).to_string());
                    out.push_str(": ");
                    write_json(&value.get_item(&item)?, indent, depth + 1, out)?;
                } else {
                    write_json(&item, indent, depth + 1, out)?;
                }
            }
            if any {
                break_line(depth, out);
            }
            out.push(if map { '}' } else { ']' });
        }
        ValueKind::Undefined => return Err(ErrorKind::UndefinedError.into()),
        _ => {
            let json = serde_json::to_string(value);
            out.push_str(&json.map_err(|e| Error::new(ErrorKind::BadSerialization, "no JSON").with_source(e))?);
        }
    }
    Ok(())
}

/// The usual directives of `strftime`, in UTC; others stay as they are.
fn strftime(format: &str, unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let month_name = MONTHS[month - 1];
    let weekday = WEEKDAYS[usize::try_from((days + 4) % 7).unwrap_or(0)];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month (1 to 12) and day of a day since 1970-01-01, after Howard Hinnant's `civil_from_days`.
fn civil_date(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), usize::try_from(month).unwrap_or(1), day)
}

const NAME: &str = "chat";
/// Units of work and memory (64 bytes) for one rendering; a chat of a thousand messages takes some 30,000.
const FUEL: u64 = 2_000_000;
/// Deepest nesting of calls and values.
const RECURSION_MAX: usize = 64;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
/// The format of bitnet.cpp and of the BitNet 2B-4T model card.
const BITNET: &str = "{{- bos_token }}{%- for message in messages %}{{- message['role'] | capitalize + ': ' + message['content'] | trim + TURN_END }}{%- endfor %}{%- if add_generation_prompt %}{{- 'Assistant: ' }}{%- endif %}";
/// The format of Llama 3, without tools.
const LLAMA3: &str = "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_utc() {
        assert_eq!(strftime("%d %b %Y %H:%M:%S %A %I %p %%", 951_868_799), "29 Feb 2000 23:59:59 Tuesday 11 PM %");
        assert_eq!(strftime("%F %T %e %q %", 0), "1970-01-01 00:00:00  1 %q %");
        assert_eq!(civil_date(20_780), (2026, 11, 23));
    }

    #[test]
    fn built_in_formats_are_those_of_the_model_cards() {
        let chat = [Message::new("system", " Be kind."), Message::new("user", "Hi ")];
        let bitnet = ChatTemplate::from_source(&BITNET.replace("TURN_END", "'<|eot_id|>'"), "<b>", "").unwrap();
        let prompt = "<b>System: Be kind.<|eot_id|>User: Hi<|eot_id|>Assistant: ";
        assert_eq!(bitnet.render(&chat, true).unwrap(), prompt);
    }
}
