"""A seeded generator of sentences in two languages: a general domain, and one of the court.

The source is a small English, the target an invented language. What a translator has to learn:

    order       subject, place, object, verb; adjectives and numbers stand behind their noun, the
                time is always first, and of "x because y" y comes first
    agreement   a noun has one of three genders; its article and adjectives follow gender and
                number, the verb follows the number of its subject, its ending the tense
    the court   nouns of its own; 8 nouns that have another translation there ("case", "party");
                the passive is frequent; and every verb has the formal ending

So who moves from the general domain to that of the court has to learn new words, other meanings of
known ones, and a new form, and can lose the old ones on the way. The language is always the same;
the seed draws the sentences. Only ``random.Random`` decides, so the output is the same on every
Python.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError
from fairseq_peft.text.demo import words

SOURCE, TARGET = "en", "xx"
DOMAINS = ("general", "court")
SPLITS = ("train", "valid", "test")

PEOPLE = words("""
    farmer sailor painter teacher doctor king queen child baker soldier neighbour singer miller
    hunter cook guest sister brother uncle merchant
""")
THINGS = words("""
    boat house bridge garden letter lamp table chair window door horse dog bird apple river tree
    basket hammer violin map clock wagon mirror coat kettle ladder rope shell stone drum
    coin paper trumpet kite saddle candle shovel pearl barrel cradle feather helmet
""")
PLACES = words("forest village market harbour valley kitchen tower field island tavern mill cellar")

#: Nouns of both domains, with a meaning, so a translation, in each.
AMBIGUOUS = words("case party bar bench seal bill note record")
COURT_PEOPLE = words("judge clerk lawyer prosecutor")
COURT_THINGS = words("verdict contract testament penalty")
COURT_PLACES = words("courtroom chamber")
VERBS = words("""
    paint clean open lift pull visit need want like praise follow help carry repair load sell find
    watch show keep inspect present close accept
""")
ADJECTIVES = words("""
    old young small large red green heavy broken quiet bright strange simple famous wooden empty
    narrow
""")
NUMBERS = ("two", "three", "four", "seven")
#: Phrase of time -> tense.
TIMES = {"yesterday": "past", "last week": "past", "today": "present", "tomorrow": "future"}
TENSES = ("present", "past", "future")

GENDERS = "aoe"
TENSE_ENDINGS = {"present": "t", "past": "v", "future": "s"}
FORMAL = "esh"
IRREGULAR = {"sell": "sold", "find": "found", "keep": "kept", "show": "showed"}
PLURALS = {"child": "children", "party": "parties", "penalty": "penalties"}


def plural(noun: str) -> str:
    if noun in PLURALS:
        return PLURALS[noun]
    return noun + ("es" if noun.endswith(("s", "ch", "x")) else "s")


def third_person(verb: str) -> str:
    if verb == "carry":
        return "carries"
    return verb + ("es" if verb.endswith("ch") else "s")


def past(verb: str) -> str:
    if verb in IRREGULAR:
        return IRREGULAR[verb]
    if verb == "carry":
        return "carried"
    return verb + ("d" if verb.endswith("e") else "ed")


class Language:
    """The target's words: ``stems[word]``, ``court_stems`` of what differs there, ``genders``."""

    def __init__(self):
        rng = random.Random(2020)
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        known = [*PEOPLE, *THINGS, *PLACES, *AMBIGUOUS, *VERBS, *ADJECTIVES, *NUMBERS, *TIMES]
        court = [*COURT_PEOPLE, *COURT_THINGS, *COURT_PLACES, *AMBIGUOUS]
        taken = set()

        def stem() -> str:
            while True:
                number = 2 + int(rng.random() * 2)
                made = "".join(syllables[int(rng.random() * 70)] for _ in range(number))
                made += "lmnrk"[int(rng.random() * 5)]
                if made not in taken:
                    taken.add(made)
                    return made

        self.stems = {word: stem() for word in known}
        self.court_stems = {word: stem() for word in court}
        self.genders = {
            word: GENDERS[int(rng.random() * 3)] for word in dict.fromkeys([*known, *court])
        }

    def stem(self, word: str, domain: str) -> str:
        if domain == "court" and word in self.court_stems:
            return self.court_stems[word]
        return self.stems[word]


LANGUAGE = Language()


@dataclass
class Phrase:
    """A noun phrase: both sides, and its number."""

    source: str
    target: str
    is_plural: bool


class Translator:
    """Writes one pair of sentences after the other."""

    def __init__(self, rng: random.Random, domain: str):
        self.rng, self.domain = rng, domain
        court = domain == "court"
        self.people = [*COURT_PEOPLE, *COURT_PEOPLE, *PEOPLE[:8]] if court else PEOPLE
        self.things = (
            [*COURT_THINGS, *COURT_THINGS, *AMBIGUOUS, *AMBIGUOUS, *THINGS[:10]]
            if court
            else [*THINGS, *AMBIGUOUS]
        )
        self.places = [*COURT_PLACES, *COURT_PLACES, *PLACES[:4]] if court else PLACES
        self.passive = 0.4 if court else 0.1

    def pick(self, items):
        return items[int(self.rng.random() * len(items))]

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def phrase(self, nouns) -> Phrase:
        """ "the two old boats" and article, noun, adjective, number, all of one gender and number.
        A number takes the place of the article."""
        noun = self.pick(nouns)
        number = self.pick(NUMBERS) if self.chance(0.12) else ""
        many = bool(number) or self.chance(0.3)
        adjective = self.pick(ADJECTIVES) if self.chance(0.4) else ""
        ending = LANGUAGE.genders[noun] + ("n" if many else "")
        english = ["the" if not number else "", number, adjective, plural(noun) if many else noun]
        other = ["" if number else "t" + ending, LANGUAGE.stem(noun, self.domain) + "i" * many]
        if adjective:
            other.append(LANGUAGE.stem(adjective, self.domain) + ending)
        if number:
            other.append(LANGUAGE.stem(number, self.domain))
        return Phrase(*(" ".join(filter(None, side)) for side in (english, other)), many)

    def verb(self, tense: str, subject: Phrase, passive: bool) -> tuple[str, str]:
        """The verb of both languages, perhaps denied."""
        verb, negated, many = self.pick(VERBS), self.chance(0.15), subject.is_plural
        no = " not" if negated else ""
        if passive:
            be = {"present": "are" if many else "is", "past": "were" if many else "was"}
            english = (
                f"{be.get(tense, 'will')}{no} {'be ' if tense == 'future' else ''}{past(verb)}"
            )
        elif tense == "future":
            english = f"will{no} {verb}"
        elif negated:
            do = "did" if tense == "past" else "do" if many else "does"
            english = f"{do} not {verb}"
        elif tense == "past":
            english = past(verb)
        else:
            english = verb if many else third_person(verb)
        other = LANGUAGE.stem(verb, self.domain) + "a" + TENSE_ENDINGS[tense]
        other += ("um" if passive else "") + ("in" if many else "")
        if self.domain == "court":
            other += FORMAL
        return english, ("na " if negated else "") + other

    def clause(self) -> tuple[str, str]:
        time = self.pick(list(TIMES)) if self.chance(0.35) else ""
        tense = TIMES[time] if time else self.pick(TENSES)
        passive = self.chance(self.passive)
        actor, thing = self.phrase(self.people), self.phrase(self.things)
        place = self.phrase(self.places) if self.chance(0.3) else None
        verb, other_verb = self.verb(tense, thing if passive else actor, passive)
        if passive:
            english = [thing.source, verb, "by", actor.source]
            other = [thing.target, actor.target + " po", other_verb]
        else:
            english = [actor.source, verb, thing.source]
            other = [actor.target, thing.target, other_verb]
        if place is not None:
            english.append(f"in {place.source}")
            other.insert(1, place.target + " su")
        if time:
            english.insert(len(english) if self.chance(0.5) else 0, time)
            other.insert(0, LANGUAGE.stem(time, self.domain))
        return " ".join(english), " ".join(other)

    def sentence(self) -> tuple[str, str]:
        english, other = self.clause()
        if self.chance(0.1):
            reason, other_reason = self.clause()
            english, other = f"{english} because {reason}", f"{other_reason} ko {other}"
        return f"{english} .", f"{other} ."


@dataclass
class DemoTranslation:
    """``pairs[domain][split]`` is a list of (source, target); no source occurs twice."""

    pairs: dict[str, dict[str, list[tuple[str, str]]]] = field(default_factory=dict)


def make_demo_translation(
    seed: int = 1, general: int = 12000, train: int = 600, valid: int = 100, test: int = 300
) -> DemoTranslation:
    """Both domains.

    Args:
        general: sentences of the general domain to train with.
        train: sentences of the court to train with.
        valid, test: sentences of each domain.

    Raises:
        InputError: the seed is negative, or a size below 1.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more.")
    sizes = {"general": general, "train": train, "valid": valid, "test": test}
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"--{name} {size}: expected at least 1.")
    data, taken = DemoTranslation(), set()
    for number, domain in enumerate(DOMAINS):
        found = data.pairs[domain] = {}
        for place, split in enumerate(reversed(SPLITS)):
            size = general if (domain, split) == ("general", "train") else sizes[split]
            translator = Translator(random.Random(seed * 10 + 3 * number + place), domain)
            rows = found[split] = []
            while len(rows) < size:
                pair = translator.sentence()
                if pair[0] not in taken:
                    taken.add(pair[0])
                    rows.append(pair)
    return data


def write_demo_translation(data: DemoTranslation, directory: Path) -> None:
    """``<domain>/<split>.en`` and ``.xx``, line by line, LF line ends everywhere."""
    for domain, splits in data.pairs.items():
        (directory / domain).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            for side, language in enumerate((SOURCE, TARGET)):
                lines = "".join(f"{pair[side]}\n" for pair in rows)
                (directory / domain / f"{split}.{language}").write_bytes(lines.encode())
