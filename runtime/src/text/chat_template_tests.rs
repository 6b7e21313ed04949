//! Chat templates in use, with what Python's Jinja gives for them (trim_blocks, lstrip_blocks, loop controls).

use super::{ChatTemplate, Message, TemplateError, Variables};

fn render(
    template: &str,
    messages: &[Message],
    tools: &[serde_json::Value],
    open: bool,
) -> Result<String, TemplateError> {
    ChatTemplate::from_source(template, "<s>", "</s>").unwrap().render_with(messages, tools, &Variables::new(), open)
}

fn chat() -> Vec<Message> {
    vec![
        Message::new("system", "Be <brief> & kind. "),
        Message::new("user", " Hi there, what is \"é\"?"),
        Message::new("assistant", "A letter!"),
        Message::new("user", "Hire me?"),
    ]
}

fn tool() -> serde_json::Value {
    serde_json::json!({"type": "function", "function": {"name": "where", "description": "It's <here>"}})
}

#[test]
fn chatml_agrees() {
    assert_eq!(
        render(CHATML, &chat(), &[], true).unwrap(),
        "    <|im_start|>system\nBe <brief> & kind. <|im_end|>\n\n    <|im_start|>user\n Hi there, what is \"é\"?<|im_end|>\n\n    <|im_start|>assistant\nA letter!<|im_end|>\n\n    <|im_start|>user\nHire me?<|im_end|>\n\n    <|im_start|>assistant\n\n"
    );
    assert_eq!(
        render(CHATML, &chat()[1..2], &[], false).unwrap(),
        "        <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\n    <|im_start|>user\n Hi there, what is \"é\"?<|im_end|>\n\n"
    );
}

#[test]
fn mistral_agrees_and_refuses_two_users_in_a_row() {
    assert_eq!(
        render(MISTRAL, &chat(), &[], true).unwrap(),
        "<s>[INST]  Hi there, what is \"é\"?[/INST] A letter!</s>[INST] Be <brief> & kind. \n\nHire me?[/INST]"
    );
    let twice = [Message::new("user", "a"), Message::new("user", "b")];
    let refused = render(MISTRAL, &twice, &[], true).unwrap_err();
    assert!(matches!(refused, TemplateError::Refused { message } if message.starts_with("Conversation roles must")));
}

#[test]
fn falcon3_agrees() {
    assert_eq!(
        render(FALCON3, &chat(), &[], true).unwrap(),
        "<|system|>\nBe <brief> & kind. \n<|user|>\n Hi there, what is \"é\"?\n<|assistant|>\nA letter!</s>\n<|user|>\nHire me?\n<|assistant|>\n"
    );
    assert_eq!(
        render(FALCON3, &chat()[1..], &[tool()], true).unwrap(),
        "<|system|>\nYou have these tools:\n{\n  \"type\": \"function\",\n  \"function\": {\n    \"name\": \"where\",\n    \"description\": \"It's <here>\"\n  }\n}\n<|user|>\n Hi there, what is \"é\"?\n<|assistant|>\nA letter!</s>\n<|user|>\nHire me?\n<|assistant|>\n"
    );
}

#[test]
fn llama31_agrees() {
    assert_eq!(
        render(LLAMA31, &chat(), &[], true).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe <brief> & kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi there, what is \"é\"?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA letter!<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHire me?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let mut messages = chat();
    messages.truncate(2);
    let arguments = serde_json::json!({"city": "Zürich", "list": [1, 2], "n": 1.5, "ok": true, "x": null});
    let call = serde_json::json!({"function": {"name": "where", "arguments": arguments}});
    messages.push(Message { tool_calls: vec![call], ..Message::new("assistant", "") });
    messages.push(Message::new("tool", "here"));
    assert_eq!(
        render(LLAMA31, &messages, &[tool()], true).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe <brief> & kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"where\",\n        \"description\": \"It's <here>\"\n    }\n}\n\nHi there, what is \"é\"?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"where\", \"parameters\": {\"city\": \"Zürich\", \"list\": [1, 2], \"n\": 1.5, \"ok\": true, \"x\": null}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n\"here\"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn methods_of_python_agree() {
    assert_eq!(
        render(PYTHONIC, &chat(), &[], false).unwrap(),
        "role=SYSTEM;content=BE;<nobody>None False Be <broef> & kind. \nkind.|Be <Brief> & Kind. |1|B,  <bri, f> & kind. |Be | .dnik & >feirb< eB\nrole=USER;content=HI;<nobody>None False  Ho there, what is \"é\"\n\"é\"?| Hi There, What Is \"É\"?|6| Hi th, r, , what is \"é\"?| Hi|?\"é\" si tahw ,ereht iH \nrole=ASSISTANT;content=A;<nobody>None False A letter\nletter!|A Letter!|3|A l, tt, r!|A l|!rettel A\n"
    );
}

#[test]
fn endless_work_and_memory_are_refused() {
    for template in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}{{ ns.s }}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    ] {
        let error = render(template, &[], &[], false).unwrap_err();
        assert!(matches!(error, TemplateError::TooMuchWork | TemplateError::Render(_)), "{template}: {error}");
    }
}

#[test]
fn a_broken_template_says_so() {
    assert!(matches!(ChatTemplate::from_source("{% if %}", "", ""), Err(TemplateError::Compile(_))));
    assert!(matches!(render("{{ messages.x.y }}", &chat(), &[], true), Err(TemplateError::Render(_))));
}

#[test]
fn a_thousand_messages_fit_the_budget() {
    let messages = vec![Message::new("user", &"word ".repeat(200)); 1000];
    assert!(render(LLAMA31, &messages, &[], true).unwrap().len() > 900_000);
}

const CHATML: &str = r##"{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {% endif %}
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
    {{ '<|im_start|>assistant\n' }}
{% endif %}
"##;

const MISTRAL: &str = r##"{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"##;

const FALCON3: &str = r##"{%- if tools %}
{{- '<|system|>\nYou have these tools:\n' }}
{%- for tool in tools %}{{- tool | tojson(indent=2) }}{{- '\n' }}{%- endfor %}
{%- endif %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- '<|system|>\n' + message['content'] + '\n' }}
{%- elif message['role'] == 'user' %}
{{- '<|user|>\n' + message['content'] + '\n' }}
{%- elif message['role'] == 'assistant' %}
{%- if not loop.last %}{{- '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{%- else %}{{- '<|assistant|>\n' + message['content'] + eos_token }}{%- endif %}
{%- endif %}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
{%- endfor %}
"##;

const LLAMA31: &str = r##"{{- bos_token }}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "You have access to the following functions." }}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"##;

const PYTHONIC: &str = r##"{% macro show(x) %}<{{ x }}>{% endmacro %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{% continue %}{% endif %}
{%- for k, v in m.items() %}{{ k }}={{ v.strip().split(' ')[0].upper() if v is string else v }};{% endfor %}
{{- show(m.get('name', 'nobody')) }}{{ m.get('name') }} {{ m.content.startswith('Hi') }} {{ m['content'].replace('i', 'o', 1).rstrip('!?') }}
{{ m.content.split()[-1] }}|{{ m.content.title() }}|{{ m.content.find('e') }}|{{ ', '.join(m.content.split('e')) }}|{{ m.content[:3] }}|{{ m.content[::-1] }}
{% if loop.index0 > 1 %}{% break %}{% endif %}
{%- endfor %}"##;
