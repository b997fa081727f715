"""Who is in the world, and what is true of them.

A community is a handful of entities that have to do with each other and with nobody else. Its facts come in
themes: a few relations over the same few entities, in the same few years. Within a theme most relations hold
both ways round, or crosswise at different times, so that the same words are bound differently in many facts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import gcd

from causalneg.world.language import FIRST_YEAR, LAST_YEAR, Fact
from causalneg.world.lexicon import ENTITY_KINDS, NAME_PARTS, RELATIONS, Kind

MEMBERS: dict[Kind, int] = {"person": 6, "company": 3, "town": 3, "film": 2, "event": 1, "product": 2}
"""Entities of each kind in a community."""

PASSAGES_PER_COMMUNITY = 60
SPLITS = ("train", "dev", "test")

THEMES: dict[str, tuple[str, ...]] = {
    "deals": ("acquired", "sued", "supplied"),
    "sites": ("moved", "built"),
    "staff": ("founded", "led", "joined", "left"),
    "goods": ("launched", "licensed", "dropped", "designed", "tested"),
    "peers": ("taught", "succeeded", "beat", "engaged"),
    "homes": ("born", "settled", "departed"),
    "films": ("directed", "produced", "wrote", "scored", "filmed", "opened", "lasted"),
    "events": ("won", "judged", "sponsored", "held", "drew"),
    "sizes": ("employed", "housed"),
}
"""The relations of each theme; a community has some of the themes."""

THEMES_PER_COMMUNITY = 5
_YEARS_PER_THEME = 3


@dataclass(frozen=True)
class Community:
    """Entities that have to do with each other, and with nobody else.

    Args:
        split: Which questions may ask about them.
        members: Names by kind.
        facts: What is true of them, by theme.
    """

    split: str
    members: dict[Kind, list[str]]
    facts: dict[str, list[Fact]]

    @property
    def all_facts(self) -> list[Fact]:
        """What is true of them."""
        return [fact for facts in self.facts.values() for fact in facts]


def entities_in(fact: Fact) -> list[str]:
    """The entities of a fact; a number is none."""
    return [fact.subject] if RELATIONS[fact.relation].object == "number" else [fact.subject, fact.object]


def name_capacity() -> int:
    """For how many communities there are names."""
    return min(len(NAME_PARTS[kind][0]) * len(NAME_PARTS[kind][1]) // MEMBERS[kind] for kind in ENTITY_KINDS)


def _draw_names(communities: int, rng: random.Random) -> list[dict[Kind, list[str]]]:
    """Names for each community, all different. Every part is used as often as any other, give or take one."""
    names: dict[Kind, list[str]] = {}
    for kind in ENTITY_KINDS:
        first, second = (rng.sample(parts, len(parts)) for parts in NAME_PARTS[kind])
        # Where both numbers of parts have a common measure, so many rounds come back to the first pairs.
        rounds = len(second) // gcd(len(first) + 1, len(second))
        drawn = [
            f"{first[n % len(first)]} {second[(n + turn + turn // rounds) % len(second)]}"
            for n in range(communities * MEMBERS[kind])
            for turn in [n // len(first)]
        ]
        names[kind] = rng.sample(drawn, len(drawn))
    return [
        {kind: names[kind][row * MEMBERS[kind] : (row + 1) * MEMBERS[kind]] for kind in ENTITY_KINDS}
        for row in range(communities)
    ]


class _Theme:
    """Draws the facts of one theme of one community."""

    def __init__(self, members: dict[Kind, list[str]], years: Sequence[int], rng: random.Random) -> None:
        self.rng = rng
        self.members = members
        self.years = sorted(rng.sample(list(years), _YEARS_PER_THEME))
        self.facts: dict[Fact, Fact] = {}
        self.writers: dict[str, Callable[[], None]] = {
            "deals": self.deals,
            "sites": self.sites,
            "staff": self.staff,
            "goods": self.goods,
            "peers": self.peers,
            "homes": self.homes,
            "films": self.films,
            "events": self.events,
            "sizes": self.sizes,
        }

    def some(self, kind: Kind, count: int | None = None) -> list[str]:
        """Members of a kind in mixed order; all of them by default."""
        names = self.members[kind]
        return self.rng.sample(names, len(names) if count is None else count)

    def add(self, relation: str, subject: str, object: str | int, year: int | None = None) -> None:
        """One fact, in a year that is drawn unless it is given; nothing for a fact that is there already."""
        undated = Fact(relation, subject, str(object))
        if subject != object and undated not in self.facts:
            drawn = (year or self.rng.choice(self.years)) if RELATIONS[relation].dated else None
            self.facts[undated] = Fact(relation, subject, str(object), drawn)

    def both_ways(self, relations: Sequence[str], names: Sequence[str], pairs: int) -> None:
        """Relations of some pairs one way round, and most of them the other way round in another year."""
        for relation in relations:
            for one, two in self.rng.sample(list(combinations(names, 2)), pairs):
                first, second = self.rng.sample(self.years, 2)
                one, two = (one, two) if self.rng.random() < 0.5 else (two, one)
                self.add(relation, one, two, first)
                if self.rng.random() < 0.85:
                    self.add(relation, two, one, second)

    def crosswise(self, relations: Sequence[str], subjects: Sequence[str], objects: Sequence[str]) -> None:
        """Relations over the same pairs: who has one with the first thing has another with the second."""
        for shift, thing in enumerate(objects):
            for number, relation in enumerate(relations):
                self.add(relation, subjects[(number + shift) % len(subjects)], thing)

    def swapped_years(self, relations: Sequence[str], one: str, two: str, places: Sequence[str]) -> None:
        """Two things with the same two places in the same two years, the other way about."""
        for relation in relations:
            here, there = self.rng.sample(list(places), 2)
            first, second = self.rng.sample(self.years, 2)
            self.add(relation, one, here, first)
            self.add(relation, one, there, second)
            self.add(relation, two, there, first)
            self.add(relation, two, here, second)

    def deals(self) -> None:
        """Companies that buy, sue and supply each other."""
        self.both_ways(("acquired", "sued", "supplied"), self.some("company"), 3)

    def sites(self) -> None:
        """Companies that move between towns and build there."""
        one, two, three = self.some("company")
        towns = self.members["town"]
        self.swapped_years(("moved", "built"), one, two, towns)
        self.swapped_years(("moved", "built"), two, three, towns)

    def staff(self) -> None:
        """People who found, lead, join and leave companies."""
        people, companies = self.some("person", 4), self.some("company")
        for number, company in enumerate(companies):
            self.add("founded", people[number // 2], company, self.years[number % 2])
            self.add("led", people[2 - number // 2], company)
        self.swapped_years(("joined", "left"), people[0], people[1], companies)
        self.swapped_years(("joined", "left"), people[2], people[3], companies)

    def goods(self) -> None:
        """Products, who made them and who drew them up."""
        products = self.some("product")
        self.crosswise(("launched", "licensed", "dropped"), self.some("company"), products)
        self.crosswise(("designed", "tested"), self.some("person", 2), products)
        self.crosswise(("tested", "designed"), self.some("person", 2), products)

    def peers(self) -> None:
        """People who teach, follow, beat and engage each other."""
        self.both_ways(("taught", "succeeded", "beat", "engaged"), self.some("person", 4), 2)

    def homes(self) -> None:
        """Where people come from, where they go and what they leave."""
        people, towns = self.some("person", 4), self.members["town"]
        for person in people:
            self.add("born", person, self.rng.choice(towns), self.years[0])
        self.swapped_years(("settled", "departed"), people[0], people[1], towns)
        self.swapped_years(("settled", "departed"), people[2], people[3], towns)

    def films(self) -> None:
        """Films, who made them, where, and how long they are."""
        films, towns = self.some("film"), self.members["town"]
        self.crosswise(("directed", "produced", "wrote", "scored"), self.some("person", 4), films)
        self.crosswise(("filmed", "opened"), films, self.rng.sample(towns, 2))
        for film in films:
            self.add("lasted", film, 5 * self.rng.randint(14, 36))

    def events(self) -> None:
        """What was held where, who won, who judged, who paid."""
        event = self.members["event"][0]
        winners = self.some("person", 4)
        for number, year in enumerate(self.years):
            self.add("won", winners[number], event, year)
            self.add("judged", winners[number + 1], event, year)
            self.add("held", event, self.members["town"][number], year)
            self.add("drew", event, 100 * self.rng.randint(21, 90), year)
        for company in self.some("company", 2):
            self.add("sponsored", company, event)

    def sizes(self) -> None:
        """How many people companies employ and towns have, at different times."""
        for company in self.members["company"]:
            for year in self.rng.sample(self.years, 2):
                self.add("employed", company, 20 * self.rng.randint(2, 40), year)
        for town in self.members["town"]:
            for year in self.rng.sample(self.years, 2):
                self.add("housed", town, self.rng.randint(2, 60), year)


def make_communities(passages: int, rng: random.Random) -> list[Community]:
    """Communities for so many passages, each with its split: 65 % train, 10 % dev, 25 % test, at least one.

    Args:
        passages: Number of passages of the world.
        rng: Source of the draws.
    """
    number = max(len(SPLITS), round(passages / PASSAGES_PER_COMMUNITY))
    test, dev = max(1, round(0.25 * number)), max(1, round(0.1 * number))
    splits = ["test"] * test + ["dev"] * dev + ["train"] * (number - test - dev)
    rng.shuffle(splits)
    found = []
    for split, members in zip(splits, _draw_names(number, rng), strict=True):
        years = rng.sample(range(FIRST_YEAR, LAST_YEAR + 1), 5)
        facts = {}
        for name in rng.sample(sorted(THEMES), THEMES_PER_COMMUNITY):
            theme = _Theme(members, years, rng)
            theme.writers[name]()
            facts[name] = list(theme.facts.values())
        found.append(Community(split, members, facts))
    return found
