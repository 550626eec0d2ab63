"""Templates that mean harm: they get no file, no network, no endless time and no endless memory."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from shoal.engine.confined import ConfinedTemplate
from shoal.engine.errors import InvalidRequest
from shoal.engine.template import ChatTemplate
from shoal.engine.text import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]
PLAIN = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{{ more }}"


@pytest.fixture
def made():
    """Makes confined templates, and ends their processes."""
    found = []

    def make(source, **limits):
        template = ChatTemplate(sources={"default": source}, special_tokens={"eos_token": "</s>"})
        found.append(ConfinedTemplate(template, memory_bytes=2**28, **limits))
        return found[-1]

    yield make
    for template in found:
        template.close()


def test_it_renders_what_the_plain_one_renders(made, tiny_model, request):
    template = made(PLAIN)
    said = [{"role": "user", "content": "héllo 🐟 \ud800 \n\"'"}]
    assert template.render(said, more={"a": [1, None, True]}) == (
        f"{said[0]['content']}</s>{{'a': [1, None, True]}}"
    )
    here = Tokenizer.load(str(tiny_model))
    aside = Tokenizer.load(str(tiny_model), confined=True)
    request.addfinalizer(aside.close)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for more in ({}, {"tools": tools}, {"continue_final_message": True}):
        more = {"add_generation_prompt": not more.get("continue_final_message"), **more}
        assert aside.render(HELLO, **more) == here.render(HELLO, **more)
    assert aside.chat_templates == here.chat_templates


def test_a_refusal_keeps_its_words_and_its_field(made):
    template = made("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        template.render(HELLO)
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match="at least one"):
        template.render([])
    with pytest.raises(InvalidRequest, match="JSON"):
        template.render(HELLO, more=object())


ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of one of ours": "{{ raise_exception.__globals__['json'] }}",
    "attr filter": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "map by attribute": "{{ ['']|map(attribute='__class__')|list }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': cycler}) }}",
    "of itself": "{{ self.__init__.__globals__ }}",
    "of a namespace": "{% set n = namespace() %}{{ n.__class__.__init__.__globals__ }}",
    "of a macro": "{% macro m() %}{% endmacro %}{{ m.__class__.__init__.__globals__ }}",
    "of a loop": "{% for m in messages %}{{ loop.__class__ }}{% endfor %}",
    "of a string joined": "{{ ''['__cla' ~ 'ss__'] }}",
    "frame": "{{ (messages|map('upper')).gi_frame.f_builtins }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "from": "{% from '/etc/passwd' import x %}",
    "open": "{{ open('/etc/passwd').read() }}",
    "builtins": "{{ __builtins__.open('/etc/passwd') }}",
    "changing the messages": "{{ messages.append(1) }}",
    "lipsum": "{{ lipsum.__globals__.os }}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES)
def test_the_sandbox_has_no_way_out(source):
    template = ChatTemplate(sources={"default": source}, special_tokens={})
    try:
        told = template.render(HELLO)
    except InvalidRequest:
        return
    # What is not there is nothing, as templates expect of a variable that nobody set.
    assert not any(word in told for word in ("root:", "uid=", "class", "module", "builtin")), told


HOLE = """
from shoal.engine import confined
confined._warm_up()
confined._confine(2 * 2**30)
import os, socket
for attempt in (lambda: open("/etc/passwd"), lambda: os.open("/tmp", 0), socket.socket):
    try:
        attempt()
    except OSError as error:
        print(error)
"""


def test_not_even_a_way_out_of_the_sandbox_leads_to_a_file_or_a_socket():
    """As if the sandbox had a hole: Python runs there, and finds nothing that it could open."""
    done = subprocess.run([sys.executable, "-c", HOLE], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("Too many open files") == 3, done


WITHOUT_END = {
    "a long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "ranges in ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "a long power": "{% set n = 10 %}{{ (n ** (n ** 9)) % 7 }}",
    "a search for each": "{% set l = range(99999)|list %}"
    "{{ l|select('in', l|reverse|list)|list|length }}",
    "equal trees": "{% set n = namespace(a=[0], b=[0]) %}{% for i in range(60) %}"
    "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
}
WITHOUT_BOUND = {
    "a long string": "{{ 'x' * 10 ** 10 }}",
    "a long list": "{{ ([0] * 10 ** 10)|length }}",
    "a wide field": "{{ '%9999999999d' % 1 }}",
    "a wide format": "{{ '{:9999999999d}'.format(1) }}",
    "a centred word": "{{ 'x'|center(10 ** 10) }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "replacing": "{% set x = 'x' * 10 ** 6 %}{{ x|replace('x', x) }}",
    "a tree as text": "{% set n = namespace(a=[0]) %}{% for i in range(60) %}"
    "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a|tojson }}",
    "folded while it is compiled": "{{ ('x' * 10 ** 9)|upper ~ ('y' * 10 ** 9) }}",
}
TOO_DEEP = {
    "a macro in itself": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a loop in itself": "{% set n = namespace() %}{% for m in messages recursive %}"
    "{{ loop(messages) }}{% endfor %}",
    "brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "blocks": "{% if true %}" * 5_000 + "{% endif %}" * 5_000,
}
HARM = {**WITHOUT_END, **WITHOUT_BOUND, **TOO_DEEP}


@pytest.mark.parametrize("source", HARM.values(), ids=HARM)
def test_what_has_no_end_is_refused_and_the_next_one_is_served(made, source):
    template = made(f"{{% if more %}}{source}{{% else %}}well{{% endif %}}", cpu_s=1)
    with pytest.raises(InvalidRequest, match="chat template"):
        template.render(HELLO, more=True)
    if source not in TOO_DEEP.values():
        assert template.render(HELLO) == "well"


def test_one_that_was_killed_is_started_again(made):
    template = made(PLAIN)
    assert template.render(HELLO) == "hello</s>"
    os.kill(template._child._process.pid, signal.SIGKILL)
    while template._child._process.poll() is None:
        pass
    assert template.render(HELLO) == "hello</s>"


def test_many_threads_share_it(made):
    template = made(PLAIN)
    got = {}

    def ask(i):
        got[i] = template.render([{"role": "user", "content": str(i) * 100}])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert got == {i: str(i) * 100 + "</s>" for i in range(8)}


def test_a_long_conversation_comes_through(made):
    text = json.dumps(["x"]) * 1_000_000
    assert made(PLAIN).render([{"role": "user", "content": text}]) == f"{text}</s>"


def test_credentials_stay_at_home(made, monkeypatch):
    for name in ("HF_TOKEN", "SHOAL_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush")
    template = made(PLAIN)
    template.render(HELLO)
    child = template._child._process.pid
    assert b"hush" not in Path(f"/proc/{child}/environ").read_bytes()
