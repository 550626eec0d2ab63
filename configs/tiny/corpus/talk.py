"""Small talk, small facts, memory of what was said, and the honest "I do not know"."""

from __future__ import annotations

import random

from .exercise import Exercise, turn, vary
from .prose import CAPITALS, OPPOSITES, SOUNDS, story
from .words import NAMES, NOUNS, city, name

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello", "Hi", "Hello!", "Hi there!", "Hey", "Good morning!", "Good evening", "hello",
         "Hi!", "Hey there", "Good day", "Hello there"),
        "Hello! How can I help you?",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself.",
         "Tell me about yourself.", "Who am I talking to?", "Are you a model?"),
        "I am the small language model that comes with shoal.",
    ),
    (
        ("What can you do?", "What can I ask you?", "How can you help me?", "Help",
         "What do you know?", "What are you good at?", "Can you help me?"),
        "I can talk about shoal and its flags, do small sums, sort lists, write JSON and call "
        "tools.",
    ),
    (
        ("How are you?", "How are you today?", "How do you do?", "Are you well?",
         "How is it going?"),
        "I am fine, thank you. What can I do for you?",
    ),
    (
        ("Thank you", "Thanks", "Thanks!", "Thank you!", "Thank you very much.", "Great, thanks",
         "That helps, thanks.", "Thanks a lot"),
        "You are welcome.",
    ),
    (
        ("Bye", "Goodbye", "See you", "Good night", "Goodbye!", "Bye bye", "See you later"),
        "Goodbye!",
    ),
    (
        ("How big are you?", "How many parameters do you have?", "Are you a large model?"),
        "I am tiny: about three million parameters, six layers.",
    ),
    (
        ("Who made you?", "How were you trained?", "Where do you come from?", "Who trained you?"),
        "I was trained on two CPU cores, with exercises and documentation, by a script of shoal.",
    ),
    (
        ("Are you a human?", "Are you a person?", "Are you real?", "Do you have feelings?"),
        "No, I am a small program that predicts text.",
    ),
    (("Yes", "Ok", "OK", "Good", "Nice", "Great", "Cool"), "Good. What is next?"),
    (("No", "Nope", "No thanks", "No, thank you"), "All right."),
    (
        ("Tell me a joke", "Tell me a joke.", "Do you know a joke?", "Make me laugh."),
        "Why do fish swim in a shoal? Alone they would run out of batch size.",
    ),
    (
        ("What day is it?", "What time is it?", "What is the date?", "What is the time?"),
        "I do not know the time. I have no clock.",
    ),
    (
        ("How many days are in a week?", "How many days does a week have?"),
        "A week has seven days.",
    ),
    (("How many months are in a year?", "How many months has a year?"), "A year has 12 months."),
    (("Name three colors.", "Name some colors.", "Tell me three colors."), "Red, green and blue."),
    (("Name three animals.", "Name some animals."), "Cat, dog and horse."),
    (("What is Python?", "Explain Python.", "Tell me about Python."),
     "Python is a programming language."),
    (("What is a fish?", "What are fish?"), "A fish is an animal that lives in water."),
    (("What is the sun?",), "The sun is a star."),
    (("Say hello", "Say hello.", "Say hi."), "Hello!"),
)  # fmt: skip

_UNKNOWN = (
    "Who won the {n} race in {y}?", "What is the history of {c}?", "Who wrote the book of the {n}?",
    "What will happen in {y}?", "Why is the {n} important?", "How do I repair a {n}?",
    "Who is the president of {c}?", "What happened in {y}?", "How tall is {m}?",
    "Where does {m} live?", "What is the meaning of life?", "Write an essay about the {n}.",
    "How does a {n} work?", "What does {m} think about the {n}?", "How many people live in {c}?",
    "Translate {n} into French.", "What is the best {n}?", "How much does a {n} cost?",
)  # fmt: skip
DO_NOT_KNOW = "I do not know that. I am a very small model."


def small_talk(rng: random.Random) -> Exercise:
    """A greeting, thanks, a question about the model itself."""
    questions, answer = rng.choice(SMALL_TALK)
    return Exercise(skill="small talk", messages=turn(rng.choice(questions), answer), keys=())


def facts(rng: random.Random) -> Exercise:
    """A capital, an opposite, the sound of an animal."""
    kind = rng.random()
    if kind < 0.6:
        country, capital = rng.choice(CAPITALS)
        ask = rng.choice(
            ("What is the capital of {x}?", "Capital of {x}?", "Which city is the capital of {x}?",
             "Name the capital of {x}.", "Do you know the capital of {x}?")
        ).format(x=country)  # fmt: skip
        answer = f"The capital of {country} is {capital}."
    elif kind < 0.8:
        pair = rng.choice(OPPOSITES)
        first, second = pair if rng.random() < 0.5 else pair[::-1]
        ask = rng.choice(("What is the opposite of {x}?", "Opposite of {x}?")).format(x=first)
        answer = f"The opposite of {first} is {second}."
    else:
        animal, sound = rng.choice(SOUNDS)
        ask = rng.choice(("What does a {x} say?", "What sound does a {x} make?")).format(x=animal)
        answer = f"The {animal} says {sound}."
    return Exercise(skill="facts", messages=turn(vary(rng, ask), answer), keys=())


def memory(rng: random.Random) -> Exercise:
    """Something the user says and asks back later."""
    who, where, thing = name(rng), city(rng), rng.choice(NOUNS)
    told, asked, answer, reply = rng.choice(
        (
            ("My name is {who}.", "What is my name?", "Your name is {who}.",
             "Nice to meet you, {who}!"),
            ("I am {who}.", "Who am I?", "You are {who}.", "Nice to meet you, {who}!"),
            ("Hi, I am {who}.", "Do you remember my name?", "Your name is {who}.",
             "Nice to meet you, {who}!"),
            ("I live in {where}.", "Where do I live?", "You live in {where}.",
             "{where} is a nice place."),
            ("I have a {thing}.", "What do I have?", "You have a {thing}.", "A {thing} is useful."),
            ("Remember the word {thing}.", "Which word did I tell you?", "The word is {thing}.",
             "I will remember the word {thing}."),
        )
    )  # fmt: skip
    values = {"who": who, "where": where, "thing": thing}
    messages = turn(vary(rng, told.format(**values)), reply.format(**values))
    for _ in range(rng.choice((0, 0, 1, 2))):
        messages += rng.choice((small_talk, facts))(rng).messages
    messages += turn(vary(rng, asked), answer.format(**values))
    return Exercise(skill="memory", messages=messages, keys=(f"{told.format(**values)} {asked}",))


def unknown(rng: random.Random) -> Exercise:
    """A question far beyond so small a model."""
    ask = rng.choice(_UNKNOWN).format(
        n=rng.choice(NOUNS), c=city(rng), y=rng.randint(1500, 2100), m=rng.choice(NAMES)
    )
    return Exercise(
        skill="unknown", messages=turn(vary(rng, ask), DO_NOT_KNOW), keys=(f"unknown {ask}",)
    )


def copying(rng: random.Random) -> Exercise:
    """Repeat a word or a phrase."""
    words = " ".join(rng.choice((rng.choice(NOUNS), name(rng))) for _ in range(rng.randint(1, 5)))
    ask = rng.choice(("Repeat: {x}", "Say {x}", "Repeat after me: {x}", "Write {x}"))
    return Exercise(
        skill="repeat", messages=turn(ask.format(x=words), words), keys=(f"repeat {words}",)
    )


def tale(rng: random.Random) -> Exercise:
    """A request for a story and one."""
    ask = rng.choice(
        ("Tell me a story.", "Tell me a short story.", "Write a story.", "Tell me a tale.")
    )
    text = story(rng)
    return Exercise(skill="story", messages=turn(vary(rng, ask), text), keys=(f"story {text}",))
