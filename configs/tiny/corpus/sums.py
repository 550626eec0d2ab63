"""Small sums: addition, subtraction and products, alone or several in a conversation."""

from __future__ import annotations

import random

from .exercise import Exercise, Message, turn, vary

_ASK = {
    "+": (
        "What is {a} + {b}?",
        "{a} + {b}",
        "{a} + {b} = ?",
        "{a}+{b}",
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
        "How much is {a} + {b}?",
        "Calculate {a} plus {b}.",
        "What is the sum of {a} and {b}?",
        "{n} has {a} coins and gets {b} more. How many are there now?",
    ),
    "-": (
        "What is {a} - {b}?",
        "{a} - {b}",
        "{a} - {b} = ?",
        "{a}-{b}",
        "What is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Compute {a} - {b}.",
        "How much is {a} - {b}?",
        "{n} has {a} coins and gives {b} away. How many are left?",
    ),
    "*": (
        "What is {a} * {b}?",
        "What is {a} times {b}?",
        "{a} * {b}",
        "{a} x {b}",
        "Multiply {a} by {b}.",
        "Compute {a} * {b}.",
        "How much is {a} times {b}?",
    ),
}
_NAMES = ("Anna", "Ben", "Maya", "Tom", "Lena", "Omar")


def _operands(rng: random.Random, sign: str) -> tuple[int, int]:
    if sign == "*":
        return rng.randint(0, 10), rng.randint(0, 10)
    digits = rng.choices((1, 2, 3), (0.25, 0.65, 0.1))[0]
    a = rng.randint(0, 10**digits - 1)
    b = rng.randint(0, 10 ** (digits if rng.random() < 0.75 else rng.randint(1, digits)) - 1)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    elif rng.random() < 0.5:
        a, b = b, a
    return a, b


def _parts(number: int) -> list[int]:
    """A number as hundreds, tens and ones: 407 is 400 and 7."""
    digits = str(number)
    found = [int(d) * 10 ** (len(digits) - i - 1) for i, d in enumerate(digits) if d != "0"]
    return found or [0]


def _steps(a: int, sign: str, b: int) -> list[str]:
    """What stands between the question and the result, each of it a step that needs no carry of
    more than one digit: 37 + 48 is 77 + 8, and 77 + 8 is 85."""
    steps, pieces = [], _parts(b)
    if sign != "*":
        for place in range(1, len(pieces)):
            a = a + pieces[place - 1] if sign == "+" else a - pieces[place - 1]
            steps.append(" ".join([str(a), *(f"{sign} {piece}" for piece in pieces[place:])]))
    return steps


def _problem(rng: random.Random) -> tuple[str, int, int, str, tuple[str, ...]]:
    """Sign, operands, the solved line and the keys.

    Sums of two digits and products are tables to be learned whole: nothing of them is held out.
    """
    sign = rng.choices(("+", "-", "*"), (0.5, 0.35, 0.15))[0]
    a, b = _operands(rng, sign)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    first, second = (a, b) if sign == "-" else sorted((a, b))
    solved = " = ".join([f"{a} {sign} {b}", *_steps(a, sign, b), str(result)])
    table = sign == "*" or max(a, b) < 10
    return sign, a, b, solved, () if table else (f"{first}{sign}{second}",)


def sums(rng: random.Random) -> Exercise:
    """One to five sums in a row."""
    messages: list[Message] = []
    keys: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        sign, a, b, solved, new = _problem(rng)
        ask = rng.choice(_ASK[sign]).format(a=a, b=b, n=rng.choice(_NAMES))
        messages += turn(vary(rng, ask), solved)
        keys += new
    return Exercise(skill="sums", messages=messages, keys=tuple(keys))


def sheet(rng: random.Random) -> Exercise:
    """Several sums in one question, a line each."""
    problems = [_problem(rng) for _ in range(rng.randint(2, 8))]
    listed = "\n".join(f"{a} {sign} {b}" for sign, a, b, _, _ in problems)
    ask = rng.choice(("Solve:\n{x}", "Solve these sums:\n{x}", "Compute:\n{x}"))
    answer = "\n".join(solved for _, _, _, solved, _ in problems)
    keys = tuple(key for *_, found in problems for key in found)
    return Exercise(skill="list of sums", messages=turn(ask.format(x=listed), answer), keys=keys)
