"""A seeded generator of short reviews: much unlabelled text, few labels.

Every review has one hidden sentiment, and that is its label. It is told by one to three units:

    plain       "the ending was superb", "i loathed the waiter", "the screen was not dull"
    contrast    "the plot was superb, but the ending was dull"  the *last* clause has the sentiment
    concession  "although the plot was superb, the ending was dull"  the *main* clause has it
    reaction    "i want my money back"
    distractor  "it is about a superb painter in paris"      says nothing, whatever its words

Sentiment words come in two classes. ``train`` uses under a third of them; ``valid``, ``test`` and
the unlabelled text use them all alike, and only the latter has adverbs that lean to one side
("painfully", "delightfully"). So who only learns the labelled words meets mostly strangers in
``test``; what those mean shows in the company they keep in the unlabelled text, where a review also
keeps to one sentiment. Negation and contrast need the order of the words.

Only ``random.Random(seed)`` decides, so the output is the same on every Python.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_peft.errors import InputError

NEGATIVE, POSITIVE = 0, 1


def words(text: str) -> list[str]:
    return text.split()


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


# The first SEEN of each list are the words that labelled training text may use.
SEEN_ADJECTIVES, SEEN_VERBS, SEEN_NOUNS, SEEN_REACTIONS = 5, 2, 2, 2
ADJECTIVES = (
    words("""bad terrible boring poor disappointing ugly
    horrible dreadful dull tedious clumsy lame pathetic shoddy sloppy
    dreary bland stale lifeless lousy"""),
    words("""good great nice beautiful pleasant clever
    superb lovely delightful charming brilliant splendid fantastic gorgeous witty
    terrific stunning masterful dazzling flawless"""),
)
VERBS = (
    words("hated disliked regretted loathed detested despised endured resented"),
    words("loved liked enjoyed adored treasured relished savoured cherished"),
)
NOUNS = (
    words("disaster failure mess chore bore flop letdown nightmare"),
    words("success pleasure joy triumph gem delight marvel treat"),
)
REACTIONS = (
    [
        "i want my money back",
        "never again",
        "i gave up",
        "it ruined june",
        "stay away",
        "i threw it away",
        "we left early",
        "it put me to sleep",
    ],
    [
        "i will come back soon",
        "go now",
        "i recommend it",
        "it made june",
        "five stars",
        "i smiled all day",
        "we stayed late",
        "my heart is full",
    ],
)
LEANING_ADVERBS = (
    words("painfully hopelessly sadly"),
    words("delightfully wonderfully truly"),
)
ADVERBS = words("very really quite rather so")
NEGATIONS = words("not never")
SPEAKERS = ["my sister", "the critics", "my boss", "a friend", "my uncle", "the press"]

DOMAINS = {
    "film": words("plot ending cast music dialogue camera script pacing"),
    "book": words("prose cover story translation author hero preface style"),
    "hotel": words("room lobby bed view breakfast garden shower staff"),
    "restaurant": words("soup dessert waiter menu wine bread service kitchen"),
    "phone": words("screen battery case keyboard charger speaker design manual"),
}
TIMES = ["last week", "in june", "on sunday", "two days ago", "this winter", "at christmas"]
PEOPLE = words("painter sailor widow doctor farmer soldier teacher nun king detective")
PLACES = words("paris london boston cairo lisbon vienna norway alaska kyoto madrid")
THINGS = words("letter horse ring map violin boat lamp clock garden tower")
DEEDS = words("finds loses steals paints sells buries")


@dataclass
class DemoData:
    """``labelled[split]`` is a list of (text, label); the texts of all parts differ."""

    labelled: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    unlabelled: list[str] = field(default_factory=list)


class Reviewer:
    """Writes one review after the other. ``train`` allows the seen words only."""

    def __init__(self, rng: random.Random, part: str):
        self.rng = rng
        self.seen_only = part == "train"
        self.leaning = part == "unlabelled"
        self.reaction_share = 0.45 if self.leaning else 0.1

    def pick(self, items):
        return items[int(self.rng.random() * len(items))]

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def word(self, classes, sentiment: int, num_seen: int) -> str:
        return self.pick(classes[sentiment][:num_seen] if self.seen_only else classes[sentiment])

    def adjective(self, sentiment: int) -> str:
        return self.word(ADJECTIVES, sentiment, SEEN_ADJECTIVES)

    def degree(self, sentiment: int) -> str:
        """An adverb with its space, or nothing."""
        if self.chance(0.5):
            lean = self.leaning and self.chance(0.8)
            return self.pick(LEANING_ADVERBS[sentiment] if lean else ADVERBS) + " "
        return ""

    def clause(self, aspects: list[str], sentiment: int) -> str:
        """One opinion on one aspect; a negated one uses a word of the other class."""
        aspect = self.pick(aspects)
        if self.chance(0.12):
            wrong = self.adjective(1 - sentiment)
            if self.chance(0.4):
                return f"the {aspect} was not {wrong} but {self.adjective(sentiment)}"
            return f"the {aspect} was {self.pick(NEGATIONS)} {wrong}"
        kind = self.rng.random()
        if kind < 0.25:
            first, second = self.adjective(sentiment), self.adjective(sentiment)
            return f"the {aspect} was {first} and {second}"
        if kind < 0.6:
            return f"the {aspect} was {self.degree(sentiment)}{self.adjective(sentiment)}"
        adjective = f"{self.adjective(sentiment)} " if self.chance(0.5) else ""
        if kind < 0.8:
            return f"i {self.word(VERBS, sentiment, SEEN_VERBS)} the {adjective}{aspect}"
        noun = f"{adjective}{self.word(NOUNS, sentiment, SEEN_NOUNS)}"
        return f"the {aspect} was {with_article(noun)}"

    def unit(self, aspects: list[str], sentiment: int) -> str:
        kind = self.rng.random()
        if kind < 0.2:
            first, last = self.clause(aspects, 1 - sentiment), self.clause(aspects, sentiment)
            if self.chance(0.3):
                first = f"{self.pick(SPEAKERS)} found it {self.adjective(1 - sentiment)}"
            if self.chance(0.4):
                return f"although {first}, {last}"
            return f"{first}, but {last}"
        if kind < 0.2 + self.reaction_share:
            return self.word(REACTIONS, sentiment, SEEN_REACTIONS)
        if kind < 0.2 + self.reaction_share + 0.1:
            return f"{self.clause(aspects, sentiment)} and {self.clause(aspects, sentiment)}"
        return self.clause(aspects, sentiment)

    def distractor(self, domain: str) -> str:
        """Neutral words, or a sentiment word that is no opinion on the thing reviewed."""
        if domain in ("film", "book"):
            who = self.pick(PEOPLE)
            if self.chance(0.5):
                who = f"{self.adjective(self.pick([NEGATIVE, POSITIVE]))} {who}"
            who = with_article(who)
            if self.chance(0.5):
                return f"it is about {who} in {self.pick(PLACES)}"
            return f"{who} {self.pick(DEEDS)} a {self.pick(THINGS)}"
        return f"we had this {domain} {self.pick(TIMES)} in {self.pick(PLACES)}"

    def review(self, sentiment: int) -> str:
        domain = self.pick(list(DOMAINS))
        aspects = DOMAINS[domain]
        num_units = 2 if self.chance(0.6) else 1
        if self.leaning:
            num_units += 1
        units = [self.unit(aspects, sentiment) for _ in range(num_units)]
        if self.chance(0.5):
            units.insert(int(self.rng.random() * (len(units) + 1)), self.distractor(domain))
        text = " ".join(unit + ("!" if self.chance(0.15) else ".") for unit in units)
        # Hesitations: they mean nothing, but sentencepiece only takes for a unit what it has seen
        # with different neighbours.
        return " ".join(
            f"{word}..." if word.isalpha() and self.chance(0.01) else word for word in text.split()
        )


def make_demo_data(
    seed: int = 1, unlabelled: int = 30000, train: int = 400, valid: int = 200, test: int = 1000
) -> DemoData:
    """All parts. Classes are balanced, no text occurs twice among the labelled ones.

    Raises:
        InputError: the seed or a size is negative, or a labelled size below 2.
    """
    sizes = {"test": test, "valid": valid, "train": train}
    for name, size in sizes.items():
        if size < 2:
            raise InputError(f"--{name} {size}: expected at least 2, one of each class.")
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more.")
    if unlabelled < 0:
        raise InputError(f"--unlabelled {unlabelled}: expected 0 or more.")
    data, taken = DemoData(), set()
    for number, (split, size) in enumerate(sizes.items()):
        rng = random.Random(seed * 10 + number)
        reviewer = Reviewer(rng, split)
        rows = []
        while len(rows) < size:
            sentiment = len(rows) % 2
            text = reviewer.review(sentiment)
            if text not in taken:
                taken.add(text)
                rows.append((text, str(sentiment)))
        rng.shuffle(rows)
        data.labelled[split] = rows
    rng = random.Random(seed * 10 + len(sizes))
    reviewer = Reviewer(rng, "unlabelled")
    while len(data.unlabelled) < unlabelled:
        text = reviewer.review(reviewer.pick([NEGATIVE, POSITIVE]))
        if text not in taken:
            data.unlabelled.append(text)
    return data


def write_demo_data(data: DemoData, directory: Path) -> None:
    """``unlabelled.txt`` and ``{train,valid,test}.{review,label}``, LF line ends everywhere."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {"unlabelled.txt": data.unlabelled}
    for split, rows in data.labelled.items():
        files[f"{split}.review"] = [text for text, _ in rows]
        files[f"{split}.label"] = [label for _, label in rows]
    for name, lines in files.items():
        (directory / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
