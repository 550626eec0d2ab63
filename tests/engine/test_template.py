"""Chat templates, held against transformers' own rendering."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from shoal.engine.errors import InvalidRequest
from shoal.engine.text import Tokenizer as Text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "system" and not loop.first %}
        {{- raise_exception("System message must come first") }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- if message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' ~ (call.function.arguments | tojson) ~ '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA2 = """\
{% for message in messages %}
  {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}
  {% elif message['role'] == 'system' %}
    {% set ns = namespace(system=message['content']) %}
    {% set ns.system = ns.system | upper %}
{{ '<<SYS>>' + ns.system + '<</SYS>>' }}
    {% continue %}
  {% else %}
    {% generation %}
{{ ' ' + message['content'] | trim + ' ' + eos_token }}
    {% endgeneration %}
  {% endif %}
{% endfor %}
"""
PARTS = """\
{% for message in messages %}{{ message.role }}:{% if message.content is string %}
{{- message.content }}
{%- else %}{% for part in message.content %}[{{ part.type }}]{{ part.text }}{% endfor %}{% endif %};
{% endfor %}"""
DOCUMENTS = """\
{% for d in documents %}{{ d | tojson(indent=2) }}|{{ d.title }}{% endfor %}
{{- dict(a=1).a }}{{ messages | length }}{{ date | default('no date') }}{{ tools is none }}"""
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & kind"},
    {"role": "user", "content": "  Größe? 🙂 "},
    {"role": "assistant", "content": " 1,80 m ", "name": None},
    {"role": "user", "content": "ok"},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "é", "description": "<a> & 'b'", "parameters": {"type": "object"}},
    }
]


def save(folder: Path, template: Any) -> Path:
    made = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(str(folder))
    if template is not None:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"chat_template": template}))
    return folder


@pytest.mark.parametrize("template", [CHATML, LLAMA2, PARTS, DOCUMENTS])
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": TOOLS},
        {"add_generation_prompt": False, "documents": [{"title": "t", "text": "é<"}], "date": "d"},
        {"add_generation_prompt": True, "enable_thinking": False},
    ],
)
def test_renders_as_transformers_does(
    template: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = str(save(tmp_path, template))
    theirs = AutoTokenizer.from_pretrained(folder)
    options = {"documents": [], **options}
    wanted = theirs.apply_chat_template(CHAT, tokenize=False, **options)
    assert Text.load(folder).render(CHAT, **options) == wanted


@pytest.mark.parametrize("template", [CHATML, LLAMA2, PARTS])
@pytest.mark.parametrize("content", ["The answer is", "The answer is ", "a b a b", "x\n\n"])
def test_continues_the_final_message(template: str, content: str, tmp_path: Path) -> None:
    folder = str(save(tmp_path, template))
    chat = [*CHAT, {"role": "assistant", "content": content}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tokenize=False, **options
    )
    ours = Text.load(folder).render(chat, **options)
    assert ours == wanted and ours.rstrip().endswith(content.rstrip())
    assert chat[-1]["content"] == content


def test_what_cannot_be_continued(tmp_path: Path) -> None:
    tokenizer = Text.load(str(save(tmp_path, CHATML)))
    chat = [{"role": "user", "content": "x"}]
    with pytest.raises(InvalidRequest, match="cannot both"):
        tokenizer.render(chat, continue_final_message=True)
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    with pytest.raises(InvalidRequest, match="text to go on"):
        tokenizer.render([{"role": "user"}], **options)
    with pytest.raises(InvalidRequest, match="leaves out"):
        tokenizer.render(chat, chat_template="{{ messages[0].role }}", **options)


def test_where_templates_are_found(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "x"}]
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    folder = str(save(tmp_path / "named", named))
    for options, wanted in (({}, "plain"), ({"tools": TOOLS}, "tools")):
        assert Text.load(folder).render(chat, **options) == wanted
    assert Text.load(folder).render(chat, chat_template="tool_use") == "tools"
    (tmp_path / "named" / "chat_template.jinja").write_text("a file")
    assert Text.load(folder).render(chat) == "a file"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.apply_chat_template(chat, tokenize=False) == "a file"
    (tmp_path / "mine.jinja").write_text("mine")
    mine = Text.load(folder, chat_template=str(tmp_path / "mine.jinja"))
    assert mine.render(chat) == "mine"
    only = [{"name": "rag", "template": "r"}]
    with pytest.raises(InvalidRequest, match="rag"):
        Text.load(str(save(tmp_path / "only", only))).render(chat)


def test_a_model_without_a_template(tmp_path: Path) -> None:
    tokenizer = Text.load(str(save(tmp_path, None)))
    assert not tokenizer.chat_templates
    with pytest.raises(InvalidRequest, match="--chat-template FILE"):
        tokenizer.render([{"role": "user", "content": "x"}])
    assert tokenizer.render([{"role": "user", "content": "x"}], chat_template="t") == "t"


def test_text_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = [{"role": "user", "content": parts}]
    joined = [{"role": "user", "content": "one\ntwo"}]
    tokenizer = Text.load(str(save(tmp_path, CHATML)))
    assert tokenizer.render(chat) == tokenizer.render(joined)
    assert tokenizer.render(chat, chat_template=PARTS) == "user:[text]one[text]two;\n"
    only_parts = "{% for p in messages[0]['content'] %}<{{ p.text }}>{% endfor %}"
    assert tokenizer.render(chat, chat_template=only_parts) == "<one><two>"
    assert tokenizer.render(joined, chat_template=only_parts) == "<one\ntwo>"
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(InvalidRequest, match="'image_url' is not built yet"):
        tokenizer.render(image)


def test_arguments_of_past_tool_calls_become_objects(tmp_path: Path) -> None:
    tokenizer = Text.load(str(save(tmp_path, CHATML)))

    def chat(arguments: Any) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]

    assert tokenizer.render(chat('{"a": "é"}')) == tokenizer.render(chat({"a": "é"}))
    assert '"not json"' in tokenizer.render(chat("not json"))
    given = chat('{"a": 1}')
    tokenizer.render(given)
    assert given == chat('{"a": 1}')


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].content + 1 }}", "cannot render"),
        ("{{ nothing.here.at_all }}", "undefined"),
        ("{% if %}", "does not parse"),
        ("{{ messages[0].none | tojson }}", "cannot render"),
    ],
)
def test_a_failing_template_is_the_requests_fault(
    template: str, message: str, tmp_path: Path
) -> None:
    tokenizer = Text.load(str(save(tmp_path, template)))
    with pytest.raises(InvalidRequest, match=message):
        tokenizer.render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends '/etc/passwd' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__init__.__globals__ }}",
        "{{ messages.append({}) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ open('/etc/passwd') }}",
    ],
)
def test_a_template_reaches_nothing(template: str, tmp_path: Path) -> None:
    tokenizer = Text.load(str(save(tmp_path, template)))
    with pytest.raises(InvalidRequest):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_the_date(tmp_path: Path) -> None:
    tokenizer = Text.load(str(save(tmp_path, "{{ strftime_now('%Y-%m-%d') }}")))
    before = datetime.now().strftime("%Y-%m-%d")
    text = tokenizer.render([{"role": "user", "content": "x"}])
    assert before <= text <= datetime.now().strftime("%Y-%m-%d")


def test_only_json_data(tmp_path: Path) -> None:
    tokenizer = Text.load(str(save(tmp_path, CHATML)))
    with pytest.raises(InvalidRequest, match="it holds a PosixPath"):
        tokenizer.render([{"role": "user", "content": tmp_path}])
    with pytest.raises(InvalidRequest, match="parts must be text; 5 is"):
        tokenizer.render([{"role": "user", "content": [5]}])
    with pytest.raises(InvalidRequest, match="must be an object"):
        tokenizer.render(["hi"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequest, match="at least one"):
        tokenizer.render([])
