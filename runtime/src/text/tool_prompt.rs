//! A conversation as a prompt. Tools are told by the model's own template if that writes calls as we read them, else by a
//! system text of ours in the manner of the Hermes models.

use net::api::{self, PromptEnd, Rendering, Role, ToolChoice, Tools};
use serde_json::{Value, json};

use super::calls::{ARGUMENTS_OPEN, CALL_CLOSE, CALL_OPEN, NAME_OPEN};
use super::chat_template::{ChatTemplate, Message, TemplateError, python_json};

/// The prompt for `messages`, with variables and an end as `rendering` says.
///
/// # Errors
/// As [`ChatTemplate::render`]; [`TemplateError::LeftOut`] where there is no message to be continued.
pub fn chat_prompt(
    template: &ChatTemplate,
    messages: &[api::Message],
    tools: Option<&Tools>,
    rendering: &Rendering,
) -> Result<String, TemplateError> {
    let has_calls = |message: &api::Message| message.role == Role::Tool || !message.tool_calls.is_empty();
    let definitions: Vec<Value> =
        tools.iter().flat_map(|tools| &tools.list).map(|tool| parsed(&tool.definition)).collect();
    let variables = rendering.variables.iter().map(|(name, value)| (name.clone(), parsed(value))).collect();
    let tells = template.writes_calls() || tools.is_none() && !messages.iter().any(has_calls);
    let (mut messages, definitions) = match tells {
        true => (messages.iter().map(message).collect(), definitions),
        false => (told(messages, &definitions)?, Vec::new()),
    };
    let continues = rendering.end == PromptEnd::Continued;
    if let Some(last) = messages.last_mut().filter(|_| continues) {
        last.content += CONTINUED;
    }
    let opens = rendering.end == PromptEnd::Opened;
    let mut prompt = template.render_with(&messages, &definitions, &variables, opens)?;
    if continues {
        prompt.truncate(prompt.rfind(CONTINUED).ok_or(TemplateError::LeftOut)?);
    }
    if let Some(tools) = tools {
        prompt += &forced(tools);
    }
    Ok(prompt)
}

/// What every answer begins with where a call must be made. It is given to the model with the prompt.
pub fn forced(tools: &Tools) -> String {
    let named = |index: usize| format!("{CALL_OPEN}\n{NAME_OPEN}{}{ARGUMENTS_OPEN}", tools.list[index].name);
    match tools.choice {
        ToolChoice::Auto => String::new(),
        ToolChoice::Named(index) => named(index),
        ToolChoice::Required if tools.list.len() == 1 => named(0),
        ToolChoice::Required => format!("{CALL_OPEN}\n{NAME_OPEN}"),
    }
}

/// As templates that know tools want it.
fn message(message: &api::Message) -> Message {
    let call = |call: &api::ToolCall| {
        let function = json!({"name": call.name, "arguments": parsed(&call.arguments)});
        json!({"id": call.id, "type": "function", "function": function})
    };
    Message {
        name: message.name.clone(),
        tool_calls: message.tool_calls.iter().map(call).collect(),
        tool_call_id: message.tool_call_id.clone(),
        ..Message::new(message.role.as_str(), &message.content)
    }
}

/// As templates that know no tools take it: turns of system, user and assistant with nothing but text.
fn told(messages: &[api::Message], definitions: &[Value]) -> Result<Vec<Message>, TemplateError> {
    let mut told: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    let mut rest = messages;
    if !definitions.is_empty() {
        let mut system = system_text(definitions)?;
        if let Some((first, others)) = messages.split_first().filter(|(first, _)| first.role == Role::System) {
            system = format!("{}\n\n{system}", first.content);
            rest = others;
        }
        told.push(Message::new("system", &system));
    }
    let mut before = None;
    for message in rest {
        let follows_response = before.replace(message.role) == Some(Role::Tool);
        match (message.role, told.last_mut()) {
            (Role::Tool, Some(user)) if follows_response => {
                user.content.push('\n');
                user.content += &response(&message.content);
            }
            (Role::Tool, _) => told.push(Message::new("user", &response(&message.content))),
            (Role::Assistant, _) => told.push(Message::new("assistant", &with_calls(message))),
            (role, _) => {
                told.push(Message { name: message.name.clone(), ..Message::new(role.as_str(), &message.content) });
            }
        }
    }
    Ok(told)
}

fn system_text(definitions: &[Value]) -> Result<String, TemplateError> {
    let mut text = String::from(
        "You can call functions to help the user. Each line within <tools></tools> describes one:\n<tools>\n",
    );
    for definition in definitions {
        text += &python_json(definition)?;
        text.push('\n');
    }
    text += "</tools>\nTo call one, answer with its name and its arguments as a JSON object within \
        <tool_call></tool_call>:\n";
    text += &call("<name>", "<arguments>").replace("\"<name>\"", "<name>");
    Ok(text)
}

/// The text of a message, and of what it called.
fn with_calls(message: &api::Message) -> String {
    let calls = message.tool_calls.iter().map(|made| call(&made.name, &made.arguments));
    let text = Some(message.content.clone()).filter(|text| !text.is_empty());
    text.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}

/// A call as the grammar of answers has it.
fn call(name: &str, arguments: &str) -> String {
    format!("{CALL_OPEN}\n{NAME_OPEN}{name}{ARGUMENTS_OPEN} {arguments}}}\n{CALL_CLOSE}")
}

fn response(content: &str) -> String {
    format!("<tool_response>\n{content}\n</tool_response>")
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).expect("the request's parser has read it")
}

/// Stands where a message is to be continued, for as long as the template works.
const CONTINUED: &str = "<|the answer goes on here|>";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::calls::CallReader;
    use super::*;

    fn said(role: Role, content: &str) -> api::Message {
        api::Message { role, content: content.into(), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }

    fn called(content: &str, calls: &[(&str, &str)]) -> api::Message {
        let tool_calls = calls.iter().map(|(name, arguments)| {
            let (name, arguments) = ((*name).into(), (*arguments).into());
            api::ToolCall { id: "c".into(), name, arguments }
        });
        api::Message { tool_calls: tool_calls.collect(), ..said(Role::Assistant, content) }
    }

    fn tools(choice: ToolChoice, names: &[&str]) -> Arc<Tools> {
        let tool = |name: &&str| api::Tool {
            name: (*name).into(),
            definition: format!(
                r#"{{"type":"function","function":{{"name":"{name}","parameters":{{"type":"object"}}}}}}"#
            ),
            parameters: Some(r#"{"type":"object"}"#.into()),
        };
        Arc::new(Tools { list: names.iter().map(tool).collect(), choice, parallel: true, content: None })
    }

    fn prompt_of(template: &ChatTemplate, messages: &[api::Message], tools: Option<&Tools>) -> String {
        chat_prompt(template, messages, tools, &Rendering::default()).unwrap()
    }

    const PLAIN: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";
    const HERMES: &str = "{% if tools %}{% for t in tools %}{{ t | tojson }}{{ '\n' }}{% endfor %}{% endif %}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>{% endfor %}{{ '\n' }}{% endfor %}";

    #[test]
    fn a_template_without_tools_is_given_text() {
        let template = ChatTemplate::from_source(PLAIN, "", "").unwrap();
        let chat = [
            said(Role::System, "Be kind."),
            said(Role::User, "Weather?"),
            called("", &[("f", r#"{"x": 1}"#), ("g", "{}")]),
            said(Role::Tool, "sun"),
            said(Role::Tool, "rain"),
            called("Both.", &[("f", "{}")]),
            said(Role::Tool, "snow"),
        ];
        let prompt = prompt_of(&template, &chat, Some(&tools(ToolChoice::Auto, &["f", "g"])));
        let definition = |name: &str| {
            format!(r#"{{"type": "function", "function": {{"name": "{name}", "parameters": {{"type": "object"}}}}}}"#)
        };
        let (start, rest) = prompt.split_once("<tools>\n").unwrap();
        assert!(start.starts_with("[system] Be kind.\n\nYou can call functions"), "{start}");
        let told = format!("{}\n{}\n</tools>\n", definition("f"), definition("g"));
        let (_, rest) = rest.strip_prefix(&*told).unwrap().split_once(":\n").unwrap();
        let expected = concat!(
            "<tool_call>\n{\"name\": <name>, \"arguments\": <arguments>}\n</tool_call>\n[user] Weather?\n",
            "[assistant] <tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>\n",
            "<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>\n",
            "[user] <tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>\n",
            "[assistant] Both.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n",
            "[user] <tool_response>\nsnow\n</tool_response>\n[assistant] ",
        );
        assert_eq!(rest, expected);
        // Without a system message of its own, and without tools.
        let prompt = prompt_of(&template, &chat[1..], Some(&tools(ToolChoice::Auto, &["f"])));
        assert!(prompt.starts_with("[system] You can call"), "{prompt}");
        let prompt = prompt_of(&template, &chat, None);
        assert!(prompt.starts_with("[system] Be kind.\n[user] Weather?\n[assistant] <tool_call>\n"), "{prompt}");
        let plain = prompt_of(&template, &chat[..2], None);
        assert_eq!(plain, "[system] Be kind.\n[user] Weather?\n[assistant] ");
    }

    #[test]
    fn a_template_that_writes_calls_is_given_tools() {
        let template = ChatTemplate::from_source(HERMES, "", "").unwrap();
        let chat = [said(Role::User, "a"), called("", &[("f", r#"{"x":[1]}"#)]), said(Role::Tool, "sun")];
        let expected = "[user] a\n[assistant] <tool_call>f {\"x\": [1]}</tool_call>\n[tool] sun\n";
        assert_eq!(prompt_of(&template, &chat, None), expected);
        let prompt = prompt_of(&template, &chat, Some(&tools(ToolChoice::Auto, &["f"])));
        assert!(prompt.starts_with("{\"type\": \"function\"") && prompt.ends_with(expected), "{prompt}");
    }

    #[test]
    fn a_call_that_must_be_made_is_begun_in_the_prompt() {
        let template = ChatTemplate::from_source(PLAIN, "", "").unwrap();
        let chat = [said(Role::User, "a")];
        for (choice, names, end) in [
            (ToolChoice::Auto, &["f", "g"][..], "[assistant] "),
            (ToolChoice::Required, &["f", "g"], "[assistant] <tool_call>\n{\"name\": \""),
            (ToolChoice::Required, &["f"], "[assistant] <tool_call>\n{\"name\": \"f\", \"arguments\":"),
            (ToolChoice::Named(1), &["f", "g"], "[assistant] <tool_call>\n{\"name\": \"g\", \"arguments\":"),
        ] {
            let tools = tools(choice, names);
            let prompt = prompt_of(&template, &chat, Some(&tools));
            assert!(prompt.ends_with(end), "{prompt}");
            let reader = CallReader::new(Arc::clone(&tools), &forced(&tools));
            assert_eq!(reader.calls().len(), usize::from(end.ends_with(':')));
        }
    }

    #[test]
    fn a_prompt_ends_as_the_request_says() {
        let template = ChatTemplate::from_source(PLAIN, "", "").unwrap();
        let chat = [said(Role::User, "a"), said(Role::Assistant, "Once [assistant] \n")];
        let of = |end, tools: Option<&Tools>| {
            chat_prompt(&template, &chat, tools, &Rendering { end, ..Rendering::default() }).unwrap()
        };
        let closed = "[user] a\n[assistant] Once [assistant] \n\n";
        assert_eq!(of(PromptEnd::Opened, None), format!("{closed}[assistant] "));
        assert_eq!(of(PromptEnd::Closed, None), closed);
        let continued = "[user] a\n[assistant] Once [assistant] \n";
        assert_eq!(of(PromptEnd::Continued, None), continued);
        let told = of(PromptEnd::Continued, Some(&tools(ToolChoice::Auto, &["f"])));
        assert!(told.starts_with("[system]") && told.ends_with(continued), "{told}");
        let forgetful = ChatTemplate::from_source("{{ messages[0].content }}", "", "").unwrap();
        let rendering = Rendering { end: PromptEnd::Continued, ..Rendering::default() };
        assert!(matches!(chat_prompt(&forgetful, &chat, None, &rendering), Err(TemplateError::LeftOut)));
    }

    #[test]
    fn a_template_gets_the_variables_of_the_request_and_keeps_its_own() {
        let source = "{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %}short{% endif %}|\
            {{ documents }}|{% if deep is defined %}{{ deep.list[1] }}{% endif %}|{{ tools }}|{{ messages | length }}";
        let template = ChatTemplate::from_source(source, "<s>", "").unwrap();
        let of = |variables: &[(&str, &str)]| {
            let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
            chat_prompt(&template, &[said(Role::User, "a")], None, &Rendering { variables, ..Rendering::default() })
        };
        assert_eq!(of(&[]).unwrap(), "<s>|None||None|1");
        let given = [("enable_thinking", "false"), ("deep", r#"{"list":[1,"<b>"]}"#), ("documents", "7")];
        assert_eq!(of(&given).unwrap(), "<s>short|7|<b>|None|1");
        // Those that the server sets go first, whoever lets others through.
        assert_eq!(of(&[("bos_token", "\"x\""), ("messages", "[]"), ("tools", "[1]")]).unwrap(), "<s>|None||None|1");
        // What can't be used as the template uses it is the request's fault.
        assert!(matches!(of(&[("deep", "3")]), Err(TemplateError::Render(_))));
    }
}
