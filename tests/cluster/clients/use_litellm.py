"""litellm by each of its ways to an OpenAI-like server: `python use_litellm.py URL`."""

import asyncio
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its price list lies elsewhere

import litellm

URL = f"{sys.argv[1]}/v1"
SUM = [{"role": "user", "content": "12 + 7 ="}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}


def ask(provider, **fields):
    return litellm.completion(
        **{
            "model": f"{provider}/shoal-tiny",
            "api_base": URL,
            "api_key": "none",
            "messages": SUM,
            "temperature": 0,
            "max_tokens": 16,
            "num_retries": 0,
            **fields,
        }
    )


def check_chat(provider):
    whole = ask(provider)
    text = whole.choices[0].message.content
    assert "19" in text, whole
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(ask(provider, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    used = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert used[-1].completion_tokens == whole.usage.completion_tokens, used
    built = litellm.stream_chunk_builder(chunks, messages=SUM)
    assert built.choices[0].message.content == text
    top = ask(provider, logprobs=True, top_logprobs=2, n=2, temperature=1)
    assert len(top.choices) == 2
    assert top.choices[0].logprobs is not None


def check_errors(provider):
    long = [{"role": "user", "content": "word " * 9000}]
    for kind, fields in (
        (litellm.ContextWindowExceededError, {"messages": long}),
        (litellm.ContextWindowExceededError, {"max_tokens": 100_000}),
        (litellm.NotFoundError, {"model": f"{provider}/gpt-9"}),
        (litellm.BadRequestError, {"temperature": -1}),
    ):
        for stream in (False, True):
            try:
                list(ask(provider, stream=stream, **fields))
            except kind:
                continue
            raise AssertionError((provider, kind, fields))


def check_tools(provider):
    """Tools are served, or refused by a status that nobody retries."""
    try:
        ask(provider, tools=[TOOL])
    except litellm.BadRequestError as error:
        assert "tools" in str(error), error
        return
    ask(provider, tools=[TOOL], tool_choice="auto")


def check_text():
    text = {"model": "text-completion-openai/shoal-tiny", "api_base": URL, "api_key": "none"}
    text |= {"prompt": "2 + 2 =", "max_tokens": 6, "temperature": 0}
    whole = litellm.text_completion(**text)
    pieces = litellm.text_completion(**text, stream=True)
    assert "".join(p.choices[0].text or "" for p in pieces) == whole.choices[0].text
    lists = litellm.text_completion(**{**text, "prompt": ["2 + 2 =", "3 + 3 ="]}, logprobs=1)
    assert len(lists.choices) == 2
    chat = ask("text-completion-openai")
    assert chat.choices[0].message.content is not None


async def check_async():
    asked = {"model": "hosted_vllm/shoal-tiny", "api_base": URL, "messages": SUM, "temperature": 0}
    answers = await asyncio.gather(*(litellm.acompletion(**asked) for _ in range(4)))
    assert len({answer.choices[0].message.content for answer in answers}) == 1


for provider in ("hosted_vllm", "openai"):
    check_chat(provider)
    check_errors(provider)
    check_tools(provider)
check_text()
asyncio.run(check_async())
print("litellm: all is well")
