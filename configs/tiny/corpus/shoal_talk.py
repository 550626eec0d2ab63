"""Talk about shoal: its flags from the table, its parts, and how to use it."""

from __future__ import annotations

import random

from .exercise import Exercise, Message, turn, vary
from .flags import FLAGS, Flag

_WHAT = (
    "What does {f} do?", "What is {f}?", "What is {f} for?", "Explain {f}.", "Tell me about {f}.",
    "What does the flag {f} mean?", "{f}?", "How does {f} work?", "When do I need {f}?",
    "Describe {f}.", "What is the meaning of {f}?", "Can you explain {f}?",
)  # fmt: skip
_DEFAULT = (
    "What is the default of {f}?", "What is the default value of {f}?", "Default of {f}?",
    "Which value does {f} have by default?", "What is {f} if I do not set it?",
)  # fmt: skip
_WHICH = (
    "How do I set {t}?", "How do I change {t}?", "How can I set {t}?", "Which flag sets {t}?",
    "Which flag is for {t}?", "Is there a flag for {t}?", "How can I change {t}?",
    "What flag do I need for {t}?", "I want to change {t}.",
)  # fmt: skip
_SET = (
    "Set {f} to {v}.", "How do I set {f} to {v}?", "Start shoal with {f} {v}.",
    "Give me the command with {f} {v}.", "I want {f} {v}. What is the command?",
    "How do I start shoal with {f} {v}?",
)  # fmt: skip

FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("What is shoal?", "Tell me about shoal.", "What does shoal do?", "Explain shoal.",
         "Do you know shoal?", "What is shoal for?", "Describe shoal in one sentence."),
        "shoal serves language models on a cluster. It runs on Ray and speaks the OpenAI API.",
    ),
    (
        ("How do I start shoal?", "How do I start the server?", "How can I run shoal?",
         "How do I start?", "How do I use shoal?", "How do I run the server?", "Start the server."),
        "Run `make serve` for the bundled model, or `shoal serve MODEL` for your own.",
    ),
    (
        ("How do I stop shoal?", "How do I stop the server?", "How can I stop it?",
         "How do I stop it?", "How do I end the server?", "How do I shut it down?"),
        "Press Ctrl-C. Running streams are finished first.",
    ),
    (
        ("Where does the server listen?", "What is the address of the server?",
         "Which URL do I use?", "What is the base URL?", "Where can I reach the server?"),
        "The server listens on http://127.0.0.1:8000/v1 unless you change the port.",
    ),
    (
        ("Which models can shoal serve?", "What models are supported?", "Which models work?",
         "Can shoal serve Llama?", "Can shoal serve Qwen?"),
        "shoal serves Llama, Qwen2, Qwen2.5 and Qwen3 models from a folder or from the hub.",
    ),
    (
        ("How do I use it from Python?", "How do I use shoal in Python?",
         "Is there a Python API?", "Can I use shoal without a server?", "What is the offline API?"),
        "Use `from shoal import LLM, SamplingParams`, then `LLM(model).generate(prompts)`.",
    ),
    (
        ("What is the KV cache?", "What is a KV cache?", "Explain the KV cache.",
         "What is a paged KV cache?", "What is paged attention?"),
        "The KV cache holds the keys and values of past tokens. shoal keeps it in small blocks.",
    ),
    (
        ("What is continuous batching?", "Explain continuous batching.",
         "How does batching work?"),
        "With continuous batching, requests join and leave the batch at every step.",
    ),
    (
        ("What is prefix caching?", "Explain prefix caching.", "How does prefix caching work?"),
        "Prefix caching keeps the blocks of a prompt, so that the same beginning is not computed "
        "twice.",
    ),
    (
        ("What is chunked prefill?", "Explain chunked prefill."),
        "Chunked prefill computes a long prompt in pieces, so that other streams do not wait.",
    ),
    (
        ("What is preemption?", "Explain preemption.", "What if the cache is full?",
         "What happens when the KV cache is full?"),
        "When the cache is full, the last request gives its blocks back and is computed again "
        "later.",
    ),
    (
        ("What is tensor parallelism?", "Explain tensor parallelism."),
        "Tensor parallelism cuts every layer into pieces, one for each rank.",
    ),
    (
        ("What is pipeline parallelism?", "Explain pipeline parallelism."),
        "Pipeline parallelism gives each stage some of the layers.",
    ),
    (
        ("What is a replica?", "What are replicas?", "Explain replicas."),
        "A replica is one copy of the model with its own engine. The gateway chooses between them.",
    ),
    (
        ("What is the gateway?", "What does the gateway do?", "Explain the gateway."),
        "The gateway takes HTTP requests, makes tokens of them and sends them to a replica.",
    ),
    (
        ("What is Ray?", "Why Ray?", "What does shoal use Ray for?"),
        "Ray runs Python processes on many machines. shoal uses it to start and watch its parts.",
    ),
    (
        ("What is a token?", "What are tokens?"),
        "A token is a small piece of text. Models read and write tokens.",
    ),
    (
        ("What is the temperature?", "What does temperature do?", "Explain temperature."),
        "A higher temperature makes the text more random. With 0 the likeliest token is taken.",
    ),
    (
        ("What is top_p?", "What does top_p do?", "Explain top_p."),
        "top_p keeps the likeliest tokens whose probabilities add up to p.",
    ),
    (
        ("What is top_k?", "What does top_k do?", "Explain top_k."),
        "top_k keeps the k likeliest tokens.",
    ),
    (
        ("What does max_tokens do?", "What is max_tokens?", "How do I limit the answer?",
         "How do I get a shorter answer?"),
        "max_tokens limits how many tokens the answer may have.",
    ),
    (
        ("How do I stream?", "How do I stream tokens?", "Can I stream the answer?",
         "Does shoal stream?"),
        'Send `"stream": true` in the request. The answer then comes in chunks.',
    ),
    (
        ("Which routes are there?", "What routes does the server have?", "Which endpoints exist?",
         "What endpoints are there?"),
        "/v1/chat/completions, /v1/completions, /v1/models, /tokenize, /health and /metrics.",
    ),
    (
        ("How do I check the health?", "Is the server healthy?", "Where is the health check?",
         "How do I know that the server is ready?"),
        "Ask /health. It answers 200 when the server is ready and 503 when it is not.",
    ),
    (
        ("Where are the metrics?", "How do I see metrics?", "Does shoal have metrics?"),
        "The metrics are at /metrics, in the form that Prometheus reads.",
    ),
    (
        ("Is there swap space?", "What is swap space?", "What does --swap-space do?"),
        "shoal has no swap space: a request that gave its blocks back is computed again.",
    ),
    (
        ("Does shoal run remote code?", "What does --trust-remote-code do?"),
        "shoal never runs code that comes with a model.",
    ),
    (
        ("What does error 429 mean?", "Why do I get 429?", "What is 429?"),
        "429 means that the queue is full. Try again later.",
    ),
    (
        ("What does error 401 mean?", "Why do I get 401?", "What is 401?"),
        "401 means that the API key is missing or wrong.",
    ),
    (
        ("What does error 404 mean?", "Why do I get 404?", "What is 404?"),
        "404 means that the model or the route is unknown. Look at /v1/models.",
    ),
    (
        ("How do I use a YAML file?", "Can I use YAML?", "How do I write a config file?"),
        "Write the flags as keys, such as `port: 9000`, and run `shoal serve --config file.yaml`.",
    ),
    (
        ("How do I see all flags?", "Which flags are there?", "Where are the flags listed?",
         "List the flags."),
        "Run `shoal serve --help` for the common flags and `--help-all` for the rest.",
    ),
    (
        ("How do I chat in the terminal?", "Is there a chat command?", "What is shoal chat?"),
        "Run `shoal chat`. It talks to the running server.",
    ),
    (
        ("How do I run the tests?", "How do I test shoal?", "What runs the tests?"),
        "Run `make test`.",
    ),
    (
        ("How do I measure the speed?", "Is there a benchmark?", "How fast is it?"),
        "Run `shoal bench serve` against a running server.",
    ),
    (
        ("Does shoal need a GPU?", "Does it run on a CPU?", "Can I run it without a GPU?"),
        "No GPU is needed. shoal runs on CPUs and on CUDA GPUs.",
    ),
    (
        ("Is shoal like vLLM?", "Do vLLM flags work?", "I know vLLM. Is this the same?"),
        "shoal takes the same flags and YAML keys as vLLM.",
    ),
    (
        ("What is the licence of shoal?", "Which licence does shoal have?", "Is shoal free?"),
        "shoal has the Apache 2.0 licence.",
    ),
)  # fmt: skip


def _spelling(rng: random.Random, flag: Flag) -> str:
    return rng.choice(
        (
            f"--{flag.name}",
            f"--{flag.name}",
            flag.name,
            flag.name.replace("-", "_"),
            flag.name.replace("-", " "),
        )
    )


def _meaning(flag: Flag) -> str:
    return f"`--{flag.name}` {flag.meaning}. The default is {flag.default}."


def _usage(flag: Flag) -> str:
    if not flag.values:
        return f"Use `--{flag.name}`: `shoal serve MODEL --{flag.name}`"
    return f"Use `--{flag.name}`: `shoal serve MODEL --{flag.name} {flag.values[0]}`"


def _value(rng: random.Random, flag: Flag) -> str:
    if flag.values and flag.values[0].isdigit() and rng.random() < 0.5:
        return str(rng.randint(1, 9999))
    return rng.choice(flag.values)


def _follow_up(rng: random.Random, flag: Flag, key: str) -> tuple[list[Message], str]:
    """A second question that names the flag no more."""
    kind = rng.choice(("default", "what", "set", "yaml", "python"))
    if kind == "default":
        ask = rng.choice(("What is the default?", "And the default?", "What is its default?"))
        return turn(ask, f"The default of `--{flag.name}` is {flag.default}."), f"{key} default"
    if kind == "what":
        ask = rng.choice(("What does it do?", "What does it mean?", "Explain it."))
        return turn(ask, _meaning(flag)), f"{key} what"
    if kind == "set" or not flag.values:
        ask = rng.choice(("How do I use it?", "Show me an example.", "Give an example."))
        return turn(ask, _usage(flag)), f"{key} set"
    value = _value(rng, flag)
    if kind == "yaml":
        ask = rng.choice(("How do I write {v} in YAML?", "And {v} in the YAML file?"))
        return turn(ask.format(v=value), f"`{flag.name}: {value}`"), f"{key} yaml {value}"
    ask = rng.choice(("How do I write {v} in Python?", "And {v} in Python?"))
    argument = value if value.replace(".", "", 1).isdigit() else f'"{value}"'
    answer = f"`LLM(MODEL, {flag.name.replace('-', '_')}={argument})`"
    return turn(ask.format(v=value), answer), f"{key} python {value}"


def flags(rng: random.Random) -> Exercise:
    """A question on a flag, and often a second one that leans on the first."""
    flag = rng.choice(FLAGS)
    spelled = _spelling(rng, flag)
    kind = rng.choice(("what", "default", "which", "set"))
    if kind == "what":
        question, answer = rng.choice(_WHAT).format(f=spelled), _meaning(flag)
    elif kind == "default":
        question = rng.choice(_DEFAULT).format(f=spelled)
        answer = f"The default of `--{flag.name}` is {flag.default}."
    elif kind == "which" or not flag.values:
        question, answer = rng.choice(_WHICH).format(t=rng.choice(flag.topics)), _usage(flag)
    else:
        value = _value(rng, flag)
        question = rng.choice(_SET).format(f=spelled, v=value)
        answer = f"`shoal serve MODEL --{flag.name} {value}`"
    messages, keys = turn(vary(rng, question), answer), [question]
    if rng.random() < 0.45:
        more, key = _follow_up(rng, flag, question)
        messages, keys = messages + more, [*keys, key]
    return Exercise(skill="shoal flags", messages=messages, keys=tuple(keys))


def question_and_answer(rng: random.Random) -> Exercise:
    """One fact about shoal."""
    questions, answer = rng.choice(FACTS)
    question = vary(rng, rng.choice(questions))
    return Exercise(skill="shoal facts", messages=turn(question, answer), keys=())
