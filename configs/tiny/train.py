"""Train the bundled model: `python -m shoal.configs.tiny.train WORK --minutes 65`.

The whole run needs two CPU cores and no network. WORK takes checkpoints, each a folder that loads
like the bundled one; the last is WORK/model.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch._inductor.config
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from . import vocabulary
from .corpus.mixture import HELD_OUT, held_out, stream
from .evaluate import report
from .rows import Packer, Renderer

HERE = Path(__file__).parent
SEED = 5
# A stopped process resumes its schedule where it was: no step counts for more than this.
_LONGEST_STEP = 10.0
_CHECKPOINT_SECONDS = 300.0


def build(tokenizer: PreTrainedTokenizerFast, start: Path | None) -> Qwen3ForCausalLM:
    """The model in float32, untrained or with the weights of the folder `start`."""
    if start:
        return Qwen3ForCausalLM.from_pretrained(
            start, dtype=torch.float32, attn_implementation="eager"
        )
    torch.manual_seed(SEED)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary.SIZE,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
            initializer_range=0.05,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class MasterWeights:
    """float32 weights and their optimizers behind a bfloat16 model that runs the steps."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self._live = [p for p in model.parameters() if p.requires_grad]
        self._master = [p.detach().clone().float() for p in self._live]
        named = zip(model.named_parameters(), self._master, strict=True)
        matrices, others = [], []
        for (name, _), weight in named:
            (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="original"), 0.02),
            (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0), 0.006),
        ]
        model.bfloat16()

    def gather(self) -> None:
        """Add the model's gradients to the float32 ones and clear them."""
        for live, master in zip(self._live, self._master, strict=True):
            gradient = live.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            live.grad = None

    def step(self, share: float) -> float:
        """One clipped step at `share` of the greatest rates; returns the gradient's norm."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._master, 1.0))
        for optimizer, rate in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            for live, master in zip(self._live, self._master, strict=True):
                live.copy_(master)
        return norm


def rate(progress: float) -> float:
    """Share of the greatest learning rate at `progress` in 0..1: a short rise, then a cosine."""
    if progress < 0.015:
        return 0.05 + 0.95 * progress / 0.015
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(chosen: argparse.Namespace) -> None:
    """Train for `chosen.minutes` of running time and save checkpoints in `chosen.work`."""
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = build(tokenizer, chosen.start)
    weights = MasterWeights(model)
    excluded = frozenset(key for made in held_out() for key in made.keys)
    packer = Packer(stream(chosen.seed, excluded), Renderer(tokenizer), chosen.seed)
    batches = packer.batches(chosen.tokens)
    torch._inductor.config.cpp.dynamic_threads = True
    loss_of = torch.compile(_loss, dynamic=False)
    spent, step, tokens, saved, budget = 0.0, 0, 0, 0.0, chosen.minutes * 60
    while spent < budget:
        began = time.monotonic()
        loss = _accumulate(model, loss_of, batches, weights, chosen.accumulate)
        norm = weights.step(rate(spent / budget))
        step += 1
        tokens += chosen.tokens * chosen.accumulate
        spent += min(time.monotonic() - began, _LONGEST_STEP)
        if step % 25 == 0:
            torch.set_num_threads(_threads(chosen.threads))
            print(
                f"step {step}  loss {loss:.3f}  norm {norm:.2f}  {tokens / 1e6:.2f} M tokens"
                f"  {spent / 60:.1f} min  {tokens / spent:.0f} tokens/s",
                flush=True,
            )
        if spent - saved > _CHECKPOINT_SECONDS or spent >= budget:
            save(model, tokenizer, chosen.work / "model")
            saved = spent
    report(chosen.work / "model", HELD_OUT)


def _threads(most: int) -> int:
    """As many threads as there are idle cores: on a busy machine threads wait for each other."""
    return max(1, min(most, round((os.cpu_count() or 1) + 1 - os.getloadavg()[0])))


def _loss(
    model: Qwen3ForCausalLM, ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def _accumulate(
    model: Qwen3ForCausalLM,
    loss_of: Callable[..., torch.Tensor],
    batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    weights: MasterWeights,
    count: int,
) -> float:
    total = 0.0
    for _ in range(count):
        loss = loss_of(model, *next(batches)) / count
        loss.backward()
        weights.gather()
        total += float(loss.detach())
    return total


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a whole model folder: weights as they are, bfloat16; tokenizer, template, defaults."""
    model.save_pretrained(folder)
    GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(HERE / name, folder / name)


def main() -> None:
    """Train as the command line says; --new-vocabulary overwrites the bundled tokenizer first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--tokens", type=int, default=3072, help="tokens of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    parser.add_argument("--threads", type=int, default=2, help="most threads to compute with")
    parser.add_argument("--start", type=Path, help="folder of a model to go on from")
    parser.add_argument("--seed", type=int, default=SEED, help="of the training text")
    parser.add_argument("--new-vocabulary", action="store_true", help="learn the tokenizer again")
    chosen = parser.parse_args()
    torch.set_num_threads(_threads(chosen.threads))
    if chosen.new_vocabulary:
        vocabulary.learn(HERE)
    train(chosen)


if __name__ == "__main__":
    main()
