"""langchain-openai against a running shoal: `python use_langchain.py URL`."""

import asyncio
import sys

import openai
import pydantic
from langchain_openai import ChatOpenAI, OpenAI

URL = f"{sys.argv[1]}/v1"
ASK = {"model": "shoal-tiny", "base_url": URL, "api_key": "none", "temperature": 0}


class Answer(pydantic.BaseModel):
    """The result of a sum."""

    result: int


chat = ChatOpenAI(**ASK, max_tokens=16, max_retries=0)
whole = chat.invoke("12 + 7 =")
assert "19" in whole.content, whole
assert whole.usage_metadata["output_tokens"] > 0
assert whole.response_metadata["finish_reason"] == "stop"
assert "".join(piece.content for piece in chat.stream("12 + 7 =")) == whole.content
told = list(ChatOpenAI(**ASK, max_tokens=16, stream_usage=True).stream("12 + 7 ="))
assert any(piece.usage_metadata for piece in told)
for method in ("json_schema", "function_calling", "json_mode"):
    try:
        said = chat.with_structured_output(Answer, method=method).invoke("12 + 7 =")
    except openai.BadRequestError as error:
        asks = ("tool", "response_format")
        assert error.param.startswith(asks) and error.body["message"], error.body
    else:
        assert isinstance(said, Answer), said
answers = asyncio.run(chat.abatch(["12 + 7 ="] * 4))
assert {answer.content for answer in answers} == {whole.content}
try:
    chat.invoke("word " * 9000)
except openai.BadRequestError as error:
    assert error.code == "context_length_exceeded", error.body
else:
    raise AssertionError("a prompt of 9,000 words was taken")
text = OpenAI(**ASK, max_tokens=6)
assert "".join(text.stream("2 + 2 =")) == text.invoke("2 + 2 =")
print("langchain-openai: all is well")
