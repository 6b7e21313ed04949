"""Checks a running server with the official OpenAI SDK: openai_sdk.py URL. Ends with 1 if a check fails."""

import sys
import typing

import openai
import pydantic

client = openai.OpenAI(base_url=sys.argv[1].rstrip("/") + "/v1", api_key="none", max_retries=0, timeout=60)
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
PROMPT = "Once upon a time"
failures = []


def check(function):
    try:
        function()
        print(f"ok      {function.__name__}")
    except Exception as error:  # a check may fail in any way, the others go on
        failures.append(function.__name__)
        print(f"FAILED  {function.__name__}: {type(error).__name__}: {error}")


def refused(kind, status, call):
    try:
        call()
    except kind as error:
        assert error.status_code == status, error.status_code
        assert error.body["message"], error.body
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def chat(**fields):
    defaults = {"model": model, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    return client.chat.completions.create(**{**defaults, **fields})


def complete(**fields):
    defaults = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    return client.completions.create(**{**defaults, **fields})


def text_of(chunks, index=0):
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(delta.content or "" for delta in deltas)


model = client.models.list().data[0].id


@check
def models_are_listed_and_retrieved():
    listed = client.models.list().data
    assert listed and all(entry.object == "model" for entry in listed), listed
    assert client.models.retrieve(model).id == model


@check
def chat_answers():
    answer = chat()
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == model
    assert choice.message.role == "assistant" and choice.message.content.strip()
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 16
    assert usage.prompt_tokens_details.cached_tokens == 0


@check
def max_completion_tokens_is_the_limit():
    answer = chat(max_tokens=None, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length", answer


@check
def chat_streams_the_same_text():
    chunks = list(chat(stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1
    assert text_of(chunks) == chat().choices[0].message.content


@check
def stream_ends_with_usage_on_demand():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0, chunks[-1]
    assert chunks[-1].usage.total_tokens == chat().usage.total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


@check
def stream_helper_accumulates():
    # The helper raises for an answer that its length limit ended.
    fields = {"model": model, "messages": MESSAGES, "max_tokens": 200, "temperature": 0, "stop": ["."]}
    with client.chat.completions.stream(**fields) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == chat(**fields).choices[0].message.content


@check
def n_choices_come_whole_and_streamed():
    whole = chat(n=3, temperature=1, seed=7)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    chunks = list(chat(n=3, temperature=1, seed=7, stream=True))
    assert [text_of(chunks, i) for i in range(3)] == [choice.message.content for choice in whole.choices]


@check
def a_seed_repeats_its_answer():
    answers = {chat(temperature=1, seed=11, max_tokens=24).choices[0].message.content for _ in range(3)}
    assert len(answers) == 1, answers


@check
def stop_cuts_before_the_stop_string():
    text = chat(max_tokens=32).choices[0].message.content
    stop = text[6:10]
    for stream in (False, True):
        answer = chat(max_tokens=32, stop=[stop], stream=stream)
        got = text_of(list(answer)) if stream else answer.choices[0].message.content
        assert got == text[: text.index(stop)], (text, stop, got)


@check
def chat_logprobs_have_tokens_and_alternatives():
    content = chat(logprobs=True, top_logprobs=3, max_tokens=5).choices[0].logprobs.content
    assert len(content) == 5 and all(len(entry.top_logprobs) == 3 for entry in content)
    for entry in content:
        assert entry.logprob <= 0 and entry.token == entry.top_logprobs[0].token
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    chunks = list(chat(logprobs=True, top_logprobs=3, max_tokens=5, stream=True))
    streamed = [e for chunk in chunks for c in chunk.choices if c.logprobs for e in c.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]


@check
def completion_answers_and_streams():
    whole = complete()
    assert whole.object == "text_completion" and whole.choices[0].text
    chunks = list(complete(stream=True))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@check
def completion_echoes_and_has_logprobs():
    choice = complete(echo=True, max_tokens=4).choices[0]
    assert choice.text.strip().startswith(PROMPT), choice.text
    logprobs = complete(max_tokens=4, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    scored = complete(echo=True, max_tokens=0, logprobs=2).choices[0].logprobs
    assert scored.token_logprobs[0] is None and all(logprob < 0 for logprob in scored.token_logprobs[1:])
    assert len(scored.tokens) == len(scored.token_logprobs) == len(scored.text_offset) > 1


@check
def completion_takes_several_prompts_and_token_ids():
    answer = complete(prompt=[PROMPT, "The sun"], n=2, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert complete(prompt=[5, 6, 7], max_tokens=4).usage.prompt_tokens == 3


@check
def penalties_and_bias_are_taken():
    chat(presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"5": -100}, top_p=0.9, user="someone")
    chat(extra_body={"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "ignore_eos": True})


@check
def text_parts_are_taken():
    parts = [{"type": "text", "text": MESSAGES[0]["content"]}]
    answer = chat(messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == chat().choices[0].message.content


class Fox(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    colour: typing.Literal["red", "grey"]
    age: typing.Literal[1, 2, 3]
    tame: bool


@check
def json_of_a_schema_is_parsed():
    schema = {"name": "fox", "strict": True, "schema": Fox.model_json_schema()}
    fields = {"temperature": 1, "seed": 3, "max_tokens": 200}
    answer = chat(response_format={"type": "json_schema", "json_schema": schema}, **fields)
    assert answer.choices[0].finish_reason == "stop"
    fox = Fox.model_validate_json(answer.choices[0].message.content)
    parsed = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Fox, **fields)
    assert parsed.choices[0].message.parsed == fox, (parsed, fox)


@check
def choices_and_patterns_are_kept_to():
    assert chat(extra_body={"choice": ["yes", "no"]}).choices[0].message.content in ("yes", "no")
    text = chat(extra_body={"regex": "[0-9]{3}"}, temperature=1).choices[0].message.content
    assert len(text) == 3 and text.isdigit(), text
    refused(openai.BadRequestError, 400, lambda: chat(extra_body={"regex": "("}))


def call_of(chunks):
    """Name and arguments of the one call of a stream."""
    deltas = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert deltas[0].id and deltas[0].type == "function" and all(delta.index == 0 for delta in deltas), deltas
    return deltas[0].function.name, "".join(delta.function.arguments for delta in deltas)


@check
def tools_are_called_whole_and_streamed():
    tools = [openai.pydantic_function_tool(Fox), openai.pydantic_function_tool(Fox, name="Hen")]
    fields = {"tools": tools, "temperature": 1, "seed": 3, "max_tokens": 200}
    for choice in ({"type": "function", "function": {"name": "Hen"}}, "required"):
        answer = chat(tool_choice=choice, parallel_tool_calls=False, **fields).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer
        (call,) = answer.message.tool_calls
        assert call.id and call.function.name in ("Fox", "Hen") and Fox.model_validate_json(call.function.arguments)
        chunks = list(chat(tool_choice=choice, parallel_tool_calls=False, stream=True, **fields))
        assert call_of(chunks) == (call.function.name, call.function.arguments), (chunks, call)
        assert text_of(chunks) == "" and chunks[-1].choices[0].finish_reason == "tool_calls"
        history = [*MESSAGES, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "It runs."}]
        assert chat(messages=history, tools=tools, tool_choice="none").choices[0].message.content
    parsed = client.chat.completions.parse(
        model=model, messages=MESSAGES, tool_choice="required", parallel_tool_calls=False, **fields
    )
    assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Fox), parsed
    refused(openai.BadRequestError, 400, lambda: chat(tools=[*tools, tools[0]]))


@check
def a_format_beside_tools_is_kept_where_nothing_is_called():
    schema = {"type": "json_schema", "json_schema": {"name": "fox", "schema": Fox.model_json_schema()}}
    tools = [openai.pydantic_function_tool(Fox, name="Hen")]
    fields = {"tools": tools, "parallel_tool_calls": False, "temperature": 1, "max_tokens": 200}
    for seed in range(6):
        choice = chat(response_format=schema, seed=seed, **fields).choices[0]
        chunks = list(chat(response_format=schema, seed=seed, stream=True, **fields))
        if choice.finish_reason == "tool_calls":
            (call,) = choice.message.tool_calls
            assert choice.message.content is None and Fox.model_validate_json(call.function.arguments)
            assert call_of(chunks) == (call.function.name, call.function.arguments), (chunks, call)
        else:
            assert choice.finish_reason == "stop" and Fox.model_validate_json(choice.message.content), choice
            assert text_of(chunks) == choice.message.content and not choice.message.tool_calls
    parsed = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Fox, seed=1, **fields)
    message = parsed.choices[0].message
    assert isinstance(message.parsed, Fox) or isinstance(message.tool_calls[0].function.parsed_arguments, Fox), parsed
    answer = chat(response_format=schema, tool_choice="required", seed=1, **fields).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None, answer


@check
def templates_take_variables_and_continue_a_message():
    usual = chat().choices[0].message.content
    fields = {"chat_template_kwargs": {"enable_thinking": False, "unknown": [1]}, "priority": -3}
    answer = chat(extra_body=fields, reasoning_effort="low", prompt_cache_key="a", safety_identifier="b")
    assert answer.choices[0].message.content == usual
    begun = [*MESSAGES, {"role": "assistant", "content": usual[: len(usual) // 2]}]
    more = {"continue_final_message": True, "add_generation_prompt": False}
    assert chat(messages=begun, extra_body=more).usage.prompt_tokens < chat(messages=begun).usage.prompt_tokens
    error = refused(openai.BadRequestError, 400, lambda: chat(extra_body={"chat_template_kwargs": []}))
    assert error.param == "chat_template_kwargs", error.param
    error = refused(openai.BadRequestError, 400, lambda: chat(extra_body={"priority": 0.5}))
    assert error.param == "priority", error.param


@check
def words_of_other_servers_are_taken():
    assert chat(extra_body={"guided_choice": ["yes", "no"]}).choices[0].message.content in ("yes", "no")
    answer = chat(extra_body={"structured_outputs": {"regex": "[0-9]{3}"}}, temperature=1)
    assert answer.choices[0].message.content.isdigit(), answer
    tokens = complete(max_tokens=8, logprobs=0).choices[0].logprobs.tokens
    shown = complete(max_tokens=8, stop=[tokens[2]], extra_body={"include_stop_str_in_output": True}).choices[0]
    assert shown.finish_reason == "stop" and shown.text.endswith(tokens[2]), shown
    for ask, of_prompt in ((chat, lambda answer: answer), (complete, lambda answer: answer.choices[0])):
        answer = ask(max_tokens=8, extra_body={"return_token_ids": True})
        counts = len(of_prompt(answer).prompt_token_ids), len(answer.choices[0].token_ids)
        assert counts == (answer.usage.prompt_tokens, answer.usage.completion_tokens), answer
    assert complete(max_tokens=24, extra_body={"min_tokens": 24}).usage.completion_tokens == 24


def respond(**fields):
    defaults = {"model": model, "input": MESSAGES[0]["content"], "max_output_tokens": 16, "temperature": 0}
    return client.responses.create(**{**defaults, **fields})


@check
def a_response_says_what_a_chat_says():
    answer = respond(store=True, metadata={"a": "b"})
    assert answer.output_text == chat().choices[0].message.content and answer.output_text
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens", answer
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and usage.output_tokens == 16, usage
    assert usage.input_tokens_details.cached_tokens + usage.output_tokens_details.reasoning_tokens >= 0
    assert answer.metadata == {"a": "b"} and answer.store is False and answer.tools == [], answer
    openai.types.responses.Response.model_validate(answer.model_dump(), strict=False)
    items = [{"role": "user", "content": [{"type": "input_text", "text": MESSAGES[0]["content"]}]}]
    assert respond(input=items).output_text == answer.output_text
    logged = respond(include=["message.output_text.logprobs"], top_logprobs=2).output[0].content[0].logprobs
    assert len(logged) == 16 and all(len(entry.top_logprobs) == 2 for entry in logged), logged


@check
def a_response_streams_its_events():
    kinds = typing.get_args(typing.get_args(openai.types.responses.ResponseStreamEvent)[0])
    kinds = {kind.model_fields["type"].annotation.__args__[0]: kind for kind in kinds}
    events = list(respond(stream=True))
    for index, event in enumerate(events):
        kinds[event.type].model_validate(event.model_dump(), strict=False)
        assert event.sequence_number == index, event
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == respond().output_text
    fields = {"model": model, "input": MESSAGES[0]["content"], "temperature": 0}
    with client.responses.stream(**fields, extra_body={"stop": ["."]}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.status == "completed" and final.output_text == text, final
    assert text == chat(max_tokens=None, stop=["."]).choices[0].message.content, text


@check
def a_response_is_parsed_and_calls_and_goes_on():
    fields = {"model": model, "input": MESSAGES[0]["content"], "max_output_tokens": 200, "temperature": 1}
    seed = {"seed": 3}
    parsed = client.responses.parse(text_format=Fox, extra_body=seed, **fields)
    assert isinstance(parsed.output_parsed, Fox) and parsed.status == "completed", parsed
    tools = [openai.pydantic_function_tool(Fox)["function"] | {"type": "function"}]
    called = {"tools": tools, "tool_choice": {"type": "function", "name": "Fox"}, "parallel_tool_calls": False}
    answer = client.responses.create(**called, extra_body=seed, **fields)
    (call,) = answer.output
    assert call.type == "function_call" and call.call_id and Fox.model_validate_json(call.arguments), answer
    assert answer.tools[0].name == "Fox" and answer.tool_choice.name == "Fox", answer
    with client.responses.stream(**called, extra_body=seed, **fields) as stream:
        events = list(stream)
        (streamed,) = stream.get_final_response().output
    assert streamed.arguments == call.arguments and streamed.parsed_arguments, streamed
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments, events
    given = {"type": "function_call_output", "call_id": call.call_id, "output": "It runs."}
    history = [{"role": "user", "content": fields["input"]}, *answer.output, given]
    assert respond(input=history, tools=tools, tool_choice="none").output_text


@check
def responses_are_not_kept():
    error = refused(openai.BadRequestError, 400, lambda: respond(previous_response_id="resp_1"))
    assert error.param == "previous_response_id", error
    refused(openai.NotFoundError, 404, lambda: client.responses.retrieve("resp_1"))
    refused(openai.NotFoundError, 404, lambda: client.responses.delete("resp_1"))
    refused(openai.BadRequestError, 400, lambda: respond(tools=[{"type": "web_search"}]))


@check
def errors_are_the_sdk_s_own_kinds():
    error = refused(openai.NotFoundError, 404, lambda: chat(model="no-such-model"))
    assert error.param == "model", error.param
    refused(openai.NotFoundError, 404, lambda: client.models.retrieve("no-such-model"))
    error = refused(openai.BadRequestError, 400, lambda: chat(temperature=3))
    assert error.param == "temperature" and error.type, (error.param, error.type)
    refused(openai.BadRequestError, 400, lambda: chat(messages=[]))
    refused(openai.BadRequestError, 400, lambda: chat(n=1000))
    refused(openai.BadRequestError, 400, lambda: chat(messages=[{"role": "user", "content": "fox " * 20000}]))
    refused(openai.BadRequestError, 400, lambda: chat(stream=True, temperature=-1))


@check
def request_ids_are_seen():
    answer = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, max_tokens=1)
    assert answer.headers["x-request-id"] and answer.parse()._request_id


@check
def a_stream_that_is_closed_early_harms_nobody():
    stream = chat(stream=True, max_tokens=200, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert chat().choices[0].message.content


print(f"{len(failures)} checks failed" if failures else "all checks passed", f"(openai {openai.__version__})")
sys.exit(bool(failures))
