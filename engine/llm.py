"""The offline interface: prompts in, answers out."""

from __future__ import annotations

import contextlib
import itertools
import time
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeAlias

from . import admission, beam_search
from .bar import Bar
from .beam_search import BeamSearchOutput, BeamSearchParams
from .checkpoint import checkpoint_facts
from .config import from_keys
from .engine import AsyncEngine
from .errors import InvalidRequest, Overloaded
from .executor import Executor
from .model.hub import find_model
from .outputs import Answer
from .outputs import CompletionOutput as CompletionOutput
from .outputs import Logprob as Logprob
from .outputs import RequestOutput as RequestOutput
from .request import FinishReason, Request, SamplingParams, Update, candidates_of
from .text import Tokenizer, with_bad_words

Prompt: TypeAlias = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, {"prompt": text} or {"prompt_token_ids": ids}; the last two may bring a
"cache_salt"."""

Message: TypeAlias = Mapping[str, Any]


class _Input(NamedTuple):
    ids: tuple[int, ...]
    text: str | None
    cache_salt: str = ""


class LLM:
    """A model to generate with, in this process.

    `keys` are the fields of `EngineConfig` under vLLM's names. `executor` computes instead of this
    process. Raises ConfigError and LoadError. Usable from several threads; close it, or use it in a
    `with`, to free the model's memory early.
    """

    def __init__(self, model: str, *, executor: Executor | None = None, **keys: Any) -> None:
        config = from_keys({"model": model, **keys})
        self.config = config
        path, revision = config.tokenizer_place
        self.tokenizer = Tokenizer.load(
            path,
            revision=revision,
            download_dir=config.download_dir,
            chat_template=config.chat_template,
        )
        self._seeds = admission.Seeds(config.seed)
        self._ids = itertools.count()
        self._defaults: SamplingParams | None = None
        self._transformers: Any = None
        self._engine = AsyncEngine(config, executor, streams=False)
        self.capacity = self._engine.start()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        priority: Sequence[int] | None = None,
        lora_request: None = None,
    ) -> list[RequestOutput]:
        """Answers in the prompts' order; `sampling_params` is one for all, or one a prompt.

        Without any, generation_config.json's are used. Raises InvalidRequest and ContextTooLong
        before anything runs, EngineLost when the engine dies. An interrupt drops what is running
        and leaves the LLM usable.
        """
        _refuse_lora(lora_request)
        inputs = [self._input(prompt) for prompt in _as_list(prompts)]
        return self._answer(inputs, sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        lora_request: None = None,
    ) -> list[RequestOutput]:
        """The next message of a conversation, or of each of several.

        `chat_template` is a template's source, instead of the model's. Raises what `generate`
        raises.
        """
        _refuse_lora(lora_request)
        inputs = []
        for conversation in _conversations(messages):
            text = self.tokenizer.render(
                conversation,
                tools,
                add_generation_prompt,
                continue_final_message,
                chat_template=chat_template,
                **(chat_template_kwargs or {}),
            )
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            inputs.append(_Input(tuple(ids), text))
        return self._answer(inputs, sampling_params, use_tqdm, None)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The beams of each prompt, best first, as transformers finds them.

        All prompts are searched at once; `concurrency_limit` bounds how many. Raises what
        `generate` raises.
        """
        _refuse_lora(lora_request)
        chosen = beam_search.sampling_params(params, self.config.max_logprobs)
        given = _as_list(prompts)
        step = concurrency_limit or max(1, len(given))
        outputs: list[BeamSearchOutput] = []
        for first in range(0, len(given), step):
            found = self.generate(given[first : first + step], chosen, use_tqdm)
            outputs += [beam_search.beams_of(made, params, self.tokenizer) for made in found]
        return outputs

    def get_default_sampling_params(self) -> SamplingParams:
        """What generation_config.json says, or SamplingParams' own defaults."""
        if self._defaults is None:
            self._defaults = SamplingParams(**checkpoint_facts(self.config).sampling)
        return self._defaults

    def get_tokenizer(self) -> Any:
        """The tokenizer as transformers has it; shoal's own is `tokenizer`."""
        if self._transformers is None:
            from transformers import AutoTokenizer

            config = self.config
            path, revision = config.tokenizer_place
            folder = find_model(
                path, revision=revision, download_dir=config.download_dir, weights=False
            )
            self._transformers = AutoTokenizer.from_pretrained(str(folder))
            if config.chat_template is not None:
                self._transformers.chat_template = self.tokenizer.chat_templates["default"]
        return self._transformers

    def close(self) -> None:
        """Free the model. Harmless when repeated."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            with contextlib.suppress(Exception):
                self.close()

    def _input(self, prompt: Prompt) -> _Input:
        if isinstance(prompt, str):
            return _Input(tuple(self.tokenizer.encode(prompt)), prompt)
        if isinstance(prompt, Mapping):
            return self._read_mapping(prompt)
        ids: tuple[Any, ...] = tuple(prompt) if isinstance(prompt, Sequence) else (None,)
        if all(isinstance(id, int) for id in ids):
            return _Input(ids, None)
        raise InvalidRequest(f"a prompt must be text or token ids, got {prompt!r}", "prompt")

    def _read_mapping(self, prompt: Mapping[str, Any]) -> _Input:
        known = {"prompt", "prompt_token_ids", "cache_salt"}
        for key in prompt.keys() - known:
            if prompt[key] is not None:
                raise InvalidRequest(
                    f"a prompt cannot hold {key!r}; it takes prompt, prompt_token_ids, cache_salt",
                    "prompt",
                )
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if ids is None and not isinstance(text, str):
            raise InvalidRequest(
                f"a prompt must hold prompt or prompt_token_ids, got {dict(prompt)!r}", "prompt"
            )
        read = self._input(ids if ids is not None else str(text))
        return read._replace(text=text, cache_salt=prompt.get("cache_salt") or "")

    def _answer(
        self,
        inputs: Sequence[_Input],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | Callable[..., Any],
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        params = self._params(sampling_params, len(inputs))
        if priority is not None and len(priority) != len(inputs):
            raise InvalidRequest(
                f"{len(inputs)} prompts with {len(priority)} priorities: give one a prompt",
                "priority",
            )
        answers = {}
        for i, (given, chosen) in enumerate(zip(inputs, params, strict=True)):
            request = Request(
                id=str(next(self._ids)),
                prompt=self._truncated(given.ids, chosen),
                params=candidates_of(chosen),
                cache_salt=given.cache_salt,
                priority=priority[i] if priority is not None else 0,
            )
            admission.check(request, self.config, self.capacity)
            answers[request.id] = Answer(
                self._seeds.give(request), given.text, self.tokenizer, chosen
            )
        _run(self._engine, answers, use_tqdm)
        return [answer.output for answer in answers.values()]

    def _truncated(self, ids: tuple[int, ...], params: SamplingParams) -> tuple[int, ...]:
        keep = params.truncate_prompt_tokens
        if keep is None:
            return ids
        return ids[-(self.capacity.max_model_len - 1 if keep == -1 else keep) :]

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        if isinstance(given, SamplingParams):
            return [with_bad_words(self.tokenizer, given)] * num_prompts
        if not isinstance(given, Sequence) or not all(isinstance(p, SamplingParams) for p in given):
            raise InvalidRequest(
                f"sampling_params must be a SamplingParams or a list of them, got {given!r}",
                "sampling_params",
            )
        if len(given) != num_prompts:
            raise InvalidRequest(
                f"{num_prompts} prompts with {len(given)} sampling_params: give one for all, or "
                f"one a prompt",
                "sampling_params",
            )
        return [with_bad_words(self.tokenizer, params) for params in given]


def _refuse_lora(lora_request: object) -> None:
    if lora_request is not None:
        raise InvalidRequest("lora_request: LoRA adapters are not built yet", "lora_request")


def _run(
    engine: AsyncEngine, answers: Mapping[str, Answer], use_tqdm: bool | Callable[..., Any]
) -> None:
    """Have all answers made, as many at once as the engine takes.

    The work is done on a thread of its own. An interrupt strikes the caller's thread anywhere, and
    one that struck between a lock and its release would stop the engine for good; here it finds
    that thread waiting in a queue, which needs no lock of Python's. The wait is cut into pieces
    because an interrupt that comes just before it is noticed only after it.
    """
    updates: SimpleQueue[list[Update] | None] = SimpleQueue()
    done: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            _drive(engine, answers, updates, use_tqdm)
            done.put(None)
        except BaseException as error:
            done.put(error)

    def wait() -> BaseException | None:
        while True:
            with contextlib.suppress(Empty):
                return done.get(timeout=0.1)

    try:
        start_new_thread(work, ())
        error = wait()
    except BaseException:
        updates.put(None)
        wait()
        raise
    if error is not None:
        raise error


def _drive(
    engine: AsyncEngine,
    answers: Mapping[str, Answer],
    updates: SimpleQueue[list[Update] | None],
    use_tqdm: bool | Callable[..., Any],
) -> None:
    """Submit and collect until all answers are finished, or None comes among the updates."""
    ahead = deque(answers.values())
    live: set[str] = set()
    with Bar(use_tqdm, len(answers)) as bar:
        try:
            while ahead or live:
                _feed(engine, ahead, live, updates.put)
                if (batch := updates.get()) is None:
                    return
                for update in batch:
                    answer = answers[update.id]
                    if answer.take(update):
                        engine.abort(update.id, update.sibling, FinishReason.STOP)
                    if answer.output.finished and update.id in live:
                        live.discard(update.id)
                        bar.add(answer.output)
        finally:
            for id in live:
                engine.abort(id)
    if any(made.error for answer in answers.values() for made in answer.output.outputs):
        engine.load()  # raises where it is the engine that failed, and not one row


def _feed(
    engine: AsyncEngine,
    ahead: deque[Answer],
    live: set[str],
    sink: Callable[[list[Update]], None],
) -> None:
    """Submit until all are or the engine's queue is full."""
    while ahead:
        try:
            engine.submit(ahead[0].request, sink)
        except Overloaded:
            if live:
                return
            time.sleep(0.01)  # other callers fill the queue
            continue
        live.add(ahead.popleft().request.id)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as many."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise InvalidRequest(f"prompts must be text, token ids or a list, got {prompts!r}")
    if prompts and all(isinstance(id, int) for id in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """One conversation or many, as many."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of messages, got {messages!r}", "messages")
    if messages and not isinstance(messages[0], Mapping):
        return list(messages)  # type: ignore[arg-type]
    return [messages]  # type: ignore[list-item]
