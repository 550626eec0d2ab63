"""Running text: Python's own documentation, small stories and small facts."""

from __future__ import annotations

import importlib
import inspect
import random
import re

from .words import ADJECTIVES, CITIES, COLORS, NAMES, NOUNS, listed

CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"),
    ("Portugal", "Lisbon"), ("England", "London"), ("Ireland", "Dublin"), ("Norway", "Oslo"),
    ("Sweden", "Stockholm"), ("Finland", "Helsinki"), ("Denmark", "Copenhagen"),
    ("Austria", "Vienna"), ("Switzerland", "Bern"), ("Poland", "Warsaw"), ("Greece", "Athens"),
    ("Hungary", "Budapest"), ("Russia", "Moscow"), ("Turkey", "Ankara"), ("Egypt", "Cairo"),
    ("Kenya", "Nairobi"), ("Japan", "Tokyo"), ("China", "Beijing"), ("India", "New Delhi"),
    ("South Korea", "Seoul"), ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"), ("Peru", "Lima"),
    ("Chile", "Santiago"), ("Canada", "Ottawa"), ("Mexico", "Mexico City"), ("Cuba", "Havana"),
    ("Australia", "Canberra"), ("Argentina", "Buenos Aires"), ("Belgium", "Brussels"),
    ("the Netherlands", "Amsterdam"), ("the United States", "Washington"),
)  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("day", "night"), ("up", "down"),
    ("left", "right"), ("good", "bad"), ("old", "new"), ("open", "closed"), ("light", "dark"),
    ("happy", "sad"), ("rich", "poor"), ("early", "late"), ("hard", "soft"), ("long", "short"),
    ("full", "empty"), ("loud", "quiet"), ("first", "last"), ("high", "low"), ("yes", "no"),
)  # fmt: skip
SOUNDS = (
    ("dog", "woof"), ("cat", "meow"), ("cow", "moo"), ("duck", "quack"), ("sheep", "baa"),
    ("pig", "oink"), ("owl", "hoot"), ("lion", "roar"), ("bee", "buzz"), ("mouse", "squeak"),
)  # fmt: skip
_DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_MODULES = listed("""abc argparse array ast asyncio base64 bisect calendar cmath cmd code codecs
collections colorsys concurrent.futures configparser contextlib copy csv ctypes dataclasses
datetime decimal difflib dis doctest email enum fileinput fnmatch fractions ftplib functools
gettext glob graphlib gzip hashlib heapq hmac html http imaplib inspect io ipaddress itertools
json keyword linecache locale logging lzma mailbox math mimetypes multiprocessing operator optparse
os pathlib pickle pkgutil platform plistlib poplib pprint profile pstats queue random re reprlib
sched secrets selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl stat
statistics string struct subprocess symtable sys tarfile tempfile textwrap threading time timeit
tokenize trace traceback tracemalloc types unicodedata unittest urllib.parse
urllib.request uuid warnings wave weakref xml.dom.minidom xml.etree.ElementTree zipfile
zoneinfo""")
_BITE = 900


def python_documentation() -> list[str]:
    """Pieces of at most about 900 characters of pydoc's topics and the library's docstrings."""
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = [text for _, text in sorted(topics.items())]
    for module_name in _MODULES:
        module = importlib.import_module(module_name)
        texts += _docstrings(module)
    pieces = [piece for text in dict.fromkeys(texts) for piece in _bites(text)]
    return list(dict.fromkeys(piece for piece in pieces if len(piece) > 60))


def _docstrings(module: object) -> list[str]:
    found = [inspect.getdoc(module) or ""]
    for _, member in sorted(vars(module).items()):
        if getattr(member, "__module__", "") != getattr(module, "__name__", None):
            continue
        found.append(inspect.getdoc(member) or "")
        if inspect.isclass(member):
            found += [
                inspect.getdoc(part) or ""
                for _, part in sorted(vars(member).items())
                if inspect.isroutine(part)
            ]
    return found


def _bites(text: str) -> list[str]:
    """Whole paragraphs joined up to the length of a bite."""
    pieces, piece = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        if piece and len(piece) + len(paragraph) > _BITE:
            pieces.append(piece)
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph[: 2 * _BITE]
    return [*pieces, piece]


_OPENINGS = (
    "Once upon a time there was a {a} {n} who lived near a {p}.",
    "Once upon a time, a {a} {n} lived in a {c} house by the {p}.",
    "Once there was a {n} called {m}. It was very {a}.",
    "Long ago, in the city of {t}, there lived a {a} girl called {m}.",
    "One day a {a} {n} went to the {p}.",
)
_MIDDLES = (
    "Every day the {n} walked to the {p} and looked for a {o}.",
    "One morning it found a {c} {o} under a {u}.",
    "The {n} wanted a {o}, but there was none.",
    "Then it met a {b} {f}. They became friends.",
    '"What are you looking for?" asked the {f}. "I am looking for a {o}," said the {n}.',
    "It was a {b} day and the sun was shining.",
    "In the evening it began to rain, and the {n} was cold.",
    "The {f} had a {o} and gave it away with a smile.",
    "They walked together over the {p} and sang a {b} song.",
)
_ENDINGS = (
    "From that day on they were friends, and they lived happily.",
    "At night the {n} went home and slept well.",
    "And so the {n} was happy at last. The end.",
    "They shared the {o} and were never sad again.",
)
_PLACES = listed("river lake forest garden mountain sea field bridge farm pond")
_ANIMALS = listed("bear bird cat dog duck fox frog goat horse lion monkey mouse owl pig rabbit")


def story(rng: random.Random) -> str:
    """Four to six sentences about one animal, in which the same things keep their names."""
    hero, friend = rng.sample(_ANIMALS, 2)
    values = {
        "n": hero, "f": friend, "a": rng.choice(ADJECTIVES), "b": rng.choice(ADJECTIVES),
        "c": rng.choice(COLORS), "o": rng.choice(NOUNS), "u": rng.choice(NOUNS),
        "p": rng.choice(_PLACES), "m": rng.choice(NAMES), "t": rng.choice(CITIES),
    }  # fmt: skip
    middles = sorted(rng.sample(range(len(_MIDDLES)), rng.randint(2, 4)))
    parts = [rng.choice(_OPENINGS), *(_MIDDLES[i] for i in middles), rng.choice(_ENDINGS)]
    text = " ".join(parts).format(**values)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def statements(rng: random.Random) -> str:
    """A few plain sentences about the world, or lines of sums."""
    lines = [_statement(rng) for _ in range(rng.randint(3, 8))]
    return rng.choice((" ", "\n")).join(lines)


def _statement(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind < 2:
        country, capital = rng.choice(CAPITALS)
        if rng.random() < 0.7:
            return f"The capital of {country} is {capital}."
        return f"{capital} is the capital of {country}."
    if kind == 2:
        first, second = rng.choice(OPPOSITES)
        return f"The opposite of {first} is {second}."
    if kind == 3:
        animal, sound = rng.choice(SOUNDS)
        return f"The {animal} says {sound}."
    if kind == 4:
        day = rng.randrange(7)
        return f"The day after {_DAYS[day]} is {_DAYS[(day + 1) % 7]}."
    start = rng.randint(0, 90)
    return ", ".join(str(n) for n in range(start, start + rng.randint(4, 9)))
