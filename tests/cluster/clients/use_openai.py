"""openai-python, version 2 or 3, against a running shoal: `python use_openai.py URL`."""

import asyncio
import sys
import time
import urllib.request

import openai
import pydantic

URL = sys.argv[1]
MODEL = "shoal-tiny"
SUM = [{"role": "user", "content": "12 + 7 ="}]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)


def running():
    """Sequences under way, as /metrics tells."""
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    names = ("shoal_num_requests_running{", "shoal_num_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def wait_until_idle():
    deadline = time.monotonic() + 30
    while running():
        assert time.monotonic() < deadline, "a slot was not freed"
        time.sleep(0.02)


def chat(**fields):
    return client.chat.completions.create(
        **{"model": MODEL, "messages": SUM, "temperature": 0, "max_tokens": 16, **fields}
    )


def check_models():
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    try:
        client.models.retrieve("nobody")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error
    else:
        raise AssertionError("a model that is not there was found")


def check_chat():
    whole = chat()
    assert "19" in whole.choices[0].message.content, whole
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole._request_id and whole.id.endswith(whole._request_id)
    many = chat(n=3, temperature=1, logprobs=True, top_logprobs=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert all(choice.logprobs.content for choice in many.choices)


def check_stream_helper():
    with client.chat.completions.stream(model=MODEL, messages=SUM) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds


def check_completions():
    whole = client.completions.create(
        model=MODEL,
        prompt=["2 + 2 =", "3 + 3 ="],
        max_tokens=4,
        temperature=0,
        logprobs=2,
        echo=True,
    )
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].text.startswith("2 + 2 =")
    assert whole.choices[0].logprobs.token_logprobs[0] is None
    parts = client.completions.create(model=MODEL, prompt="2 + 2 =", max_tokens=4, stream=True)
    assert "".join(part.choices[0].text for part in parts) is not None


def check_errors():
    class Answer(pydantic.BaseModel):
        result: int

    for kind, fields in (
        (openai.NotFoundError, {"model": "gpt-9"}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "word " * 9000}]}),
    ):
        for stream in (False, True):
            try:
                chat(stream=stream, **fields)
            except kind as error:
                assert error.body["message"] and error.code, error.body
            else:
                raise AssertionError(fields)
    try:
        client.chat.completions.parse(model=MODEL, messages=SUM, response_format=Answer)
    except openai.BadRequestError as error:
        assert error.param == "response_format", error.body


def check_that_leaving_frees_the_slot():
    stream = chat(stream=True, max_tokens=3000, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert running() == 1
    stream.close()
    wait_until_idle()


async def check_async():
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as asked:
        answers = await asyncio.gather(
            *(
                asked.chat.completions.create(model=MODEL, messages=SUM, temperature=0)
                for _ in range(8)
            )
        )
    assert len({answer.choices[0].message.content for answer in answers}) == 1


check_models()
check_chat()
check_stream_helper()
check_completions()
check_errors()
check_that_leaving_frees_the_slot()
asyncio.run(check_async())
wait_until_idle()
print(f"openai {openai.__version__}: all is well")
