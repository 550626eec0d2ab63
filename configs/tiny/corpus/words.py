"""Plain word lists that the generators draw from, and made-up words."""

from __future__ import annotations

import random


def listed(text: str) -> list[str]:
    """The words of a text, for lists that are easier to read without quotes."""
    return text.split()


NOUNS = listed("""apple arm baby ball bear bed bell bird boat book bottle bowl box boy bread
bridge brush bus cake camel candle car carrot cat chair cheese city clock cloud coat coin cow
cup desk dog door dream duck ear egg elephant engine eye farm field fire fish flag flower forest
fork fox friend frog garden gate girl glass goat gold grape grass hammer hand hat heart hill
honey horse house ice island jacket juice kettle key king kite knife ladder lake lamp leaf lemon
letter lion map market melon milk mirror monkey moon mountain mouse mouth music nail nest night
ocean onion orange owl paint paper park pear pencil piano picture pig pillow plane plant plate
pocket pond potato queen rabbit radio rain ring river road robot rock roof rope rose sail salt
sand school sea seed sheep ship shirt shoe shop silver sky snake snow soap song soup spoon star
stone storm street sugar sun table tail tea tent tiger toe tomato tower town train tree turtle
umbrella valley violin wagon wall watch water whale wheel wind window wing winter wolf wood yard
zebra""")

NAMES = listed("""Ada Alan Alice Amir Anna Ben Boris Carla Chen Clara Dana David Elena Emma
Eric Eva Felix Fiona Frank Grace Hana Hugo Ida Igor Iris Ivan Jack Jane Jonas Julia Kai Karen
Kim Lara Leo Lena Lisa Lucas Luna Maria Mark Max Maya Mia Mira Nadia Nina Noah Nora Olga Omar
Oscar Paul Peter Priya Rita Robert Rosa Sam Sara Sofia Tara Theo Tim Tom Vera Victor Yuki Zoe""")

CITIES = listed("""Amsterdam Athens Bangkok Beijing Berlin Bern Boston Brussels Cairo Chicago
Copenhagen Delhi Dublin Geneva Hamburg Hanoi Helsinki Istanbul Kyoto Lagos Lima Lisbon London
Madrid Milan Montreal Moscow Mumbai Munich Nairobi Oslo Osaka Paris Porto Prague Quito Rome
Santiago Seattle Seoul Singapore Stockholm Sydney Tokyo Toronto Turin Venice Vienna Warsaw
Zurich""")

COLORS = listed("red green blue yellow black white orange purple pink brown gray")

ADJECTIVES = listed("""bright brave calm clever cold dark early fast fresh gentle happy heavy
kind large late light little long loud lucky new old proud quick quiet rich round sad sharp
short slow small soft strong sweet tall tiny warm wild young""")

_SYLLABLES = listed("""ba be bo da de do fa fi ga go ka ki ko la le lo ma mi mo na ne no pa pi
po ra ri ro sa se so ta te to va vi wa za zo bar con den fel gor hal jin kor lum mar nor pel
quin ros sal tor ver wex yan zul""")


def made_up(rng: random.Random) -> str:
    """A word that nobody has seen, so that it must be copied and cannot be known."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def name(rng: random.Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.7 else made_up(rng).capitalize()


def city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.7 else made_up(rng).capitalize()


def noun(rng: random.Random) -> str:
    return rng.choice(NOUNS) if rng.random() < 0.8 else made_up(rng)
