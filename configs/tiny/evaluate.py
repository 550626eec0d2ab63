"""Accuracy on held-out exercises: `python -m shoal.configs.tiny.evaluate [FOLDER]`."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .corpus.exercise import Exercise
from .corpus.mixture import held_out

_BATCH = 32
_LONGEST_ANSWER = 160
# A story has no single right answer; greetings and facts are known by heart.
_UNJUDGED = ("story",)


def answers(folder: Path, exercises: list[Exercise]) -> list[str]:
    """Greedy answers in float32 to the last question of each exercise."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            made.messages[:-1],
            tools=list(made.tools) or None,
            tokenize=False,
            add_generation_prompt=True,
        )
        for made in exercises
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    said = [""] * len(prompts)
    for first in range(0, len(order), _BATCH):
        places = order[first : first + _BATCH]
        inputs = tokenizer([prompts[i] for i in places], return_tensors="pt", padding=True)
        inputs.pop("token_type_ids", None)
        made = model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            max_new_tokens=_LONGEST_ANSWER,
        )
        texts = tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for place, text in zip(places, texts, strict=True):
            said[place] = text
    return said


def right(exercise: Exercise, answer: str) -> bool:
    """Whether the answer says what the exercise wants: calls and JSON by value, text by letter."""
    wanted = exercise.messages[-1]
    if calls := wanted.get("tool_calls"):
        return _calls(answer) == [call["function"] for call in calls]
    if exercise.skill == "json":
        return _parsed(answer) == json.loads(wanted["content"])
    return answer.strip() == wanted["content"]


def _calls(answer: str) -> list[Any]:
    return [
        _parsed(body)
        for body in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", answer, flags=re.DOTALL)
    ]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def report(folder: Path, count: int, wrong: int = 0) -> None:
    """Print a line of accuracy for every skill, and some of the wrong answers."""
    exercises = [made for made in held_out(count) if made.skill not in _UNJUDGED]
    good: Counter[str] = Counter()
    total: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    for made, answer in zip(exercises, answers(folder, exercises), strict=True):
        total[made.skill] += 1
        good[made.skill] += right(made, answer)
        if not right(made, answer) and misses[made.skill] < wrong:
            misses[made.skill] += 1
            print(f"[{made.skill}] {made.messages[-2]['content']!r}\n    said {answer!r}")
            print(
                f"    want {made.messages[-1].get('tool_calls') or made.messages[-1]['content']!r}"
            )
    for skill in sorted(total):
        print(f"{skill:16} {good[skill]:4} of {total[skill]:4}  {good[skill] / total[skill]:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--count", type=int, default=100, help="exercises of each skill")
    parser.add_argument("--wrong", type=int, default=0, help="wrong answers to show of each skill")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    report(chosen.folder, chosen.count, chosen.wrong)


if __name__ == "__main__":
    main()
