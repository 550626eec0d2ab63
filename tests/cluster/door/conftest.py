"""A door over a scripted engine: tokenizer, uvicorn and clients are real, tokens are made up."""

import asyncio
import contextlib
import json
import shutil
import socket
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
from openai import OpenAI
from shoal.cluster import failover
from shoal.cluster.card import model_card
from shoal.cluster.gateway import Gateway, build_gateway
from shoal.cluster.link import Load, ModelCard, anywhere
from shoal.cluster.local import LocalRouter, MemoryLink
from shoal.cluster.settings import serve_config
from shoal.cluster.web import web_config
from shoal.engine.engine import AsyncEngine
from shoal.engine.errors import EngineLost, UnknownModel
from shoal.engine.request import FinishReason, TokenLogprobs, Update
from shoal.engine.text import Tokenizer
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parent))

from scene import Scene

CONTEXT = 256
NAMES = ("scripted", "alias/of it")
EOS = 1
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A byte-level BPE of 400 tokens, in Hugging Face layout, with a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the quick brown fox jumps over the lazy dog and says hello to the world again"
    raw.train_from_iterator([text] * 8, trainer)
    raw.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    return Tokenizer.load(tokenizer_folder)


@dataclass(eq=False)
class ScriptedLink:
    """A replica whose answers are written beforehand; a step gives each live sibling one token.

    `reply(request, sibling)` is the text it answers with, before the end-of-sequence token.
    `paused` holds every step back. `refusal` is raised at every request.
    """

    tokenizer: Tokenizer
    card: ModelCard
    replica: str = "scripted-0"
    index: int = 0
    load: Load = field(
        default_factory=lambda: Load(
            running=2,
            waiting=1,
            kv_usage=0.25,
            counters={"prefix_queries": 40.0, "prefix_hits": 30.0, "preemptions": 5.0},
        )
    )
    reply: object = None
    refusal: object = None
    paused: bool = False
    leaving: bool = False
    fail_after: int | None = None
    num_cached: int = 3
    seen: list = field(default_factory=list)
    aborted: list = field(default_factory=list)
    live: dict = field(default_factory=dict)
    _due: bool = False

    def submit(self, request, on_update):
        self.seen.append(request)
        if self.refusal is not None:
            asyncio.get_running_loop().call_soon(on_update, self.refusal)
            return
        reply = self.reply or (lambda request, sibling: "hello world")
        for sibling in range(request.params.n):
            text = reply(request, sibling)
            ids = list(text) if isinstance(text, tuple) else self.tokenizer.encode(text, False)
            if not request.params.ignore_eos:
                ids.append(EOS)
            else:
                ids *= request.params.max_tokens
            self.live[request.id, sibling] = (request, on_update, ids, [0])
        self._wake()

    def cached(self, request):
        return 2

    def abort(self, request_id, sibling=None, reason=FinishReason.ABORT):
        self.aborted.append((request_id, sibling))
        for key in list(self.live):
            if key[0] == request_id and sibling in (None, key[1]):
                del self.live[key]

    def resume(self):
        self.paused = False
        self._wake()

    def _wake(self):
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(0.0005, self._step)

    def _step(self):
        self._due = False
        if self.paused:
            return
        for key, (request, on_update, ids, done) in list(self.live.items()):
            update = self._update(key, request, ids, done)
            if update.finish is not None:
                self.live.pop(key, None)
            on_update(update)
        if self.live:
            self._wake()

    def _update(self, key, request, ids, done):
        at, params = done[0], request.params
        if self.fail_after == at:
            return Update(*key, finish=FinishReason.ERROR, error="row went bad")
        token = ids[at]
        done[0] += 1
        finish = None
        if token == EOS and not params.ignore_eos:
            finish = FinishReason.STOP
        elif done[0] >= params.max_tokens:
            finish = FinishReason.LENGTH
        return Update(
            *key,
            tokens=(token,),
            logprobs=None if params.logprobs is None else (chances(token, params.logprobs),),
            prompt_logprobs=self._of_prompt(request) if at == 0 else None,
            num_cached=self.num_cached if at == 0 else None,
            finish=finish,
        )

    def _of_prompt(self, request):
        count = request.params.prompt_logprobs
        if count is None:
            return None
        return (None, *(chances(token, count) for token in request.prompt[1:]))


def chances(token, count):
    """Made-up log probabilities: the chosen token is the second most probable."""
    top = tuple(
        ((token + i) % 400, value)
        for i, value in zip((1, 0, 2, 3, 4), (-0.1, -0.3, -0.7, float("-inf"), -9.0), strict=True)
    )
    return TokenLogprobs(-0.3, 2, top[:count])


@dataclass
class ScriptedRouter:
    links_: list
    state: str = "ready"

    def choose(self, model, request, fit=anywhere):
        if not self.links_:
            raise EngineLost("no replica is alive")
        for link in self.links_:
            if (model is None or model in link.card.names) and fit(link):
                return link
        if model in NAMES:
            raise EngineLost("no replica can take it")
        raise UnknownModel(model)

    async def awake(self, name: str) -> None:
        pass

    def check_room(self, model):
        pass

    def statuses(self):
        return {NAMES[0]: self.state}

    def cards(self):
        return [link.card for link in self.links_]

    def links(self):
        return self.links_

    def status(self):
        return self.state


@dataclass
class Door:
    """A running server: its address, its scripted engine, and a client."""

    url: str
    port: int
    link: ScriptedLink
    router: ScriptedRouter
    loop: asyncio.AbstractEventLoop

    def client(self, **settings):
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": "k", "max_retries": 0, **settings})

    def call(self, work):
        """Run `work` on the server's loop and wait for it."""

        async def run():
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)


@contextlib.contextmanager
def opened(app, **settings):
    """`app` under a real uvicorn on a loopback port; its port and event loop."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = web_config(
        serve_config({"uvicorn_log_level": "warning", **settings}, environ={}), app, lifespan="off"
    )
    server = uvicorn.Server(config)
    begun = threading.Event()
    loops = []

    async def serve():
        loops.append(asyncio.get_running_loop())
        begun.set()
        await server.serve(sockets=[listener])

    listener.listen(128)
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    begun.wait(60)
    try:
        yield listener.getsockname()[1], loops[0]
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(60)
        listener.close()
        if isinstance(app, Gateway):
            app.close()


@pytest.fixture(scope="session")
def card(tokenizer_folder):
    return ModelCard(
        names=NAMES,
        model=tokenizer_folder,
        tokenizer=tokenizer_folder,
        max_model_len=CONTEXT,
        vocab_size=400,
        max_logprobs=5,
        eos_token_ids=(EOS,),
        sampling_defaults={"temperature": 0.6, "top_k": 20.0},
        digest="0123456789abcdef0123",
        created=1_700_000_000,
    )


@pytest.fixture(scope="session")
def open_door(tokenizer, card):
    """Opens a door with the given settings; it stays open till the end."""
    with contextlib.ExitStack() as stack:

        def open_(state="ready", with_link=True, **settings):
            config = serve_config(
                {"model": card.model, "served_model_name": NAMES, **settings}, environ={}
            )
            link = ScriptedLink(tokenizer, card)
            router = ScriptedRouter([link] if with_link else [], state)
            gateway = build_gateway(config, router)
            port, loop = stack.enter_context(opened(gateway, root_path=config.root_path))
            return Door(f"http://127.0.0.1:{port}", port, link, router, loop)

        yield open_


@pytest.fixture(scope="session")
def plain_door(open_door):
    return open_door()


@pytest.fixture
def door(plain_door, tokenizer, card):
    """A door without settings, with a fresh engine behind it."""
    plain_door.link = ScriptedLink(tokenizer, card)
    plain_door.router.links_ = [plain_door.link]
    plain_door.router.state = "ready"
    return plain_door


@pytest.fixture(scope="session")
def serve_app():
    """The context manager that puts an ASGI application behind a real uvicorn."""
    return opened


@pytest.fixture(scope="session")
def model_folder(tokenizer_folder, tmp_path_factory):
    """A random Llama of two layers with the tokenizer beside it."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=400,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                max_position_embeddings=CONTEXT,
                bos_token_id=EOS,
                eos_token_id=EOS,
            )
        )
    model.to(torch.float32).save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return str(folder)


class Served:
    """A server with a real engine in this process."""

    def __init__(self, engine, router, port):
        self.engine, self.router = engine, router
        self.url = f"http://127.0.0.1:{port}"
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="k", max_retries=0)

    def complete(self, **fields):
        return self.client.completions.create(
            **{"model": "m", "prompt": "the quick", "max_tokens": 24, "seed": 3, **fields}
        )

    def idle(self):
        load = self.engine.load()
        return not load.running and not load.waiting


@pytest.fixture(scope="session")
def serve_model(serve_app):
    """The context manager that puts a real engine of these settings behind a door."""

    @contextlib.contextmanager
    def serving(**settings):
        config = serve_config(
            {
                "local": True,
                "served_model_name": ("m",),
                "max_num_seqs": 48,
                "dtype": "float32",
                "threads": 1,
                "num_gpu_blocks_override": 1024,
                "max_num_batched_tokens": 64,
                **settings,
            },
            environ={},
        )
        (model,) = config.models
        engine = AsyncEngine(model.engine)
        router = LocalRouter(config.models)
        with serve_app(build_gateway(config, router)) as (port, loop):
            assert httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "loading"
            capacity = engine.start()

            async def open_():
                router.add(MemoryLink(0, engine, model_card(model, capacity)))

            asyncio.run_coroutine_threadsafe(open_(), loop).result(60)
            yield Served(engine, router, port)
        engine.close()

    return serving


@pytest.fixture(scope="module")
def served(model_folder, serve_model):
    with serve_model(model=model_folder, max_waiting=4) as served:
        yield served


@pytest.fixture
def scene(monkeypatch, tokenizer, card):
    """Plays a test on a `Scene`, and gives it back."""
    monkeypatch.setattr(failover, "TICK_S", 0.005)

    def play(test, num=2, **settings):
        async def main():
            scene = Scene(tokenizer, card, num, **settings)
            await test(scene)
            return scene

        return asyncio.run(main())

    return play
