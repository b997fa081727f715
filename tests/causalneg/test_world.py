"""The embedded world: its language reads back, its truth is exact, and the same seed is the same world."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalneg.data import Dataset, read_dataset
from causalneg.text.style import has_style, strip_style, stylise
from causalneg.world import Fact, Need, Pattern, World, WorldConfig, make_world
from causalneg.world.build import has_words_of
from causalneg.world.communities import MEMBERS, _draw_names, name_capacity
from causalneg.world.edits import EditStrategy
from causalneg.world.language import kind_of, names_in, parse, read
from causalneg.world.lexicon import ENTITY_KINDS, NAME_PARTS, RELATIONS, REMARKS
from causalneg.world.needs import SOUGHT, VIA, Oracle, requirements_of, solve
from causalneg.world.writing import paraphrase, render
from common.errors import ConfigError, DataError

SMALL = WorldConfig(passages=180, questions=60)


def name_of(kind: str, first: int, second: int) -> str:
    parts = NAME_PARTS[kind]  # type: ignore[index]
    return f"{parts[0][first % len(parts[0])]} {parts[1][second % len(parts[1])]}"


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    relation = RELATIONS[draw(st.sampled_from(sorted(RELATIONS)))]
    small = st.integers(0, 3)
    subject = name_of(relation.subject, draw(small), draw(small))
    object = (
        str(draw(st.integers(2, 999)))
        if relation.object == "number"
        else name_of(relation.object, draw(small), draw(small))
    )
    if subject == object:
        object = name_of(relation.object, 9, 9)
    return Fact(relation.name, subject, object, draw(st.none() | st.integers(1921, 1990)))


FACTS = st.lists(facts(), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(SMALL, tmp_path_factory.mktemp("world") / "small")


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return World.open(folder)


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return read_dataset(folder)


@pytest.fixture(scope="module")
def truth(data: Dataset) -> dict[str, set[str]]:
    """All relevant passages of each question."""
    return {
        query: set(documents)
        for split in ("train-truth", "dev", "test")
        for query, documents in data.positives(split).items()
    }


def test_the_lexicon_can_be_read_back() -> None:
    firsts = [first for parts, _ in NAME_PARTS.values() for first in parts]
    assert len(firsts) == len(set(firsts))
    for kind in ENTITY_KINDS:
        for parts in NAME_PARTS[kind]:
            assert len(parts) == len(set(parts))
    seen = set()
    for relation in RELATIONS.values():
        assert (len(relation.inverse) == 0) == (relation.object == "number")
        assert 3 <= len(relation.forward) <= 5
        for side in ("forward", "inverse"):
            for phrase in relation.phrases(side):
                assert " and " not in phrase.past
                assert not phrase.past.replace("{}", "").strip(" ,").endswith(" in 19")
                key = (relation.kind(side), relation.other(side), phrase.past)
                assert key not in seen
                seen.add(key)
    for kind, ideas in REMARKS.items():
        for idea in ideas:
            for wording in idea:
                assert parse(f"{name_of(kind, 0, 0)} grew. {wording}") == []


def test_hand_made_sentences() -> None:
    aldara, brinex = "Aldara Works", "Brinex Mills"
    text = (
        f"{aldara} was founded by Mira Tolvane in 1947. In 1950, the company took {brinex} to court and also "
        f"moved to Port Ashbury in 1962. {brinex}, which was sued by {aldara} in 1950, had 340 workers. "
        "It had 360 workers. Nobody knows why. Mira Tolvane, who was born in Port Ashbury, directed "
        "The Silent Orchard. The firm was bought by nobody."
    )
    assert parse(text) == [
        Fact("founded", "Mira Tolvane", aldara, 1947),
        Fact("sued", aldara, brinex, 1950),
        Fact("moved", aldara, "Port Ashbury", 1962),
        Fact("sued", aldara, brinex, 1950),
        Fact("employed", brinex, "340"),
        Fact("employed", aldara, "360"),
        Fact("born", "Mira Tolvane", "Port Ashbury"),
        Fact("directed", "Mira Tolvane", "The Silent Orchard"),
    ]
    assert names_in(text) == [aldara, "Mira Tolvane", brinex, "Port Ashbury", "The Silent Orchard"]
    assert parse("") == []
    assert parse("Mira Tolvane did not found Aldara Works.") == []
    assert parse("It was founded by Mira Tolvane.") == []


def test_a_stand_in_for_what_is_not_the_topic_is_the_last_of_its_kind() -> None:
    text = "Mira Tolvane founded Aldara Works. The company moved to Port Ashbury. She left Port Ashbury."
    assert parse(text)[1:] == [
        Fact("moved", "Aldara Works", "Port Ashbury"),
        Fact("departed", "Mira Tolvane", "Port Ashbury"),
    ]


@given(FACTS, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(stated: list[Fact], seed: int) -> None:
    rng = random.Random(seed)
    text = render(stated, rng, least_words=40)
    assert Counter(parse(text)) == Counter(stated)
    assert all(sentence.whole for sentence in read(text))
    assert Counter(parse(stylise(text, 0.7, rng))) == Counter(stated)
    for source in (text, stylise(text, 0.7, rng)):
        assert Counter(parse(paraphrase(source, rng))) == Counter(stated)


@given(FACTS, st.lists(st.text(), max_size=3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_any_text_can_be_read(stated: list[Fact], strange: list[str], seed: int) -> None:
    text = " ".join([*strange, render(stated, random.Random(seed)), *strange])
    rng = random.Random(seed)
    assert Counter(parse(paraphrase(text, rng))) == Counter(parse(text))


def test_relevant_are_exactly_the_passages_that_answer(
    world: World, data: Dataset, truth: dict[str, set[str]]
) -> None:
    said = {document.id: parse(document.text) for document in data.documents}
    assert truth.keys() == world.needs.keys() == data.queries.keys()
    for query_id, need in world.needs.items():
        values = {
            id: {str(found[SOUGHT]) for found in solve(need.patterns, stated)} for id, stated in said.items()
        }
        assert {id for id, found in values.items() if found} == truth[query_id]
        assert truth[query_id]
        assert set().union(*values.values()) <= set(need.answers)
    for query_id in list(world.needs)[:5]:
        for document in data.documents:
            assert world.answers(query_id, document.content) == (document.id in truth[query_id])


def test_known_training_positives_are_one_each(data: Dataset) -> None:
    known, full = data.positives("train"), data.positives("train-truth")
    assert known.keys() == full.keys()
    assert all(len(documents) == 1 and documents[0] in full[query] for query, documents in known.items())


def test_splits_share_no_entity(world: World, data: Dataset) -> None:
    asked: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for query_id, need in world.needs.items():
        named = set(names_in(data.queries[query_id].text))
        assert named == {name for name in need.entities if kind_of(name) != "number"}
        asked[need.split] |= named | {
            answer for answer in need.answers if kind_of(answer) not in (None, "number")
        }
    assert all(asked.values())
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["dev"]
    assert not asked["dev"] & asked["test"]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_is_the_same_world(folder: Path, tmp_path: Path, repo: Path) -> None:
    code = (
        "from pathlib import Path; from causalneg.world import WorldConfig, make_world; "
        f"make_world(WorldConfig(passages={SMALL.passages}, questions={SMALL.questions}), Path('again'))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "4321", "PYTHONPATH": str(repo / "packages")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert _hashes(tmp_path / "again") == _hashes(folder)
    other = make_world(replace(SMALL, seed=1), tmp_path / "other")
    assert _hashes(other)["corpus.jsonl"] != _hashes(folder)["corpus.jsonl"]


@pytest.mark.parametrize("strategy", get_args(EditStrategy))
def test_an_edit_violates_one_requirement_and_keeps_the_others(
    strategy: EditStrategy, world: World, data: Dataset, truth: dict[str, set[str]]
) -> None:
    rng = random.Random(0)
    made: Counter[str] = Counter()
    for query_id, need in world.needs.items():
        text = data.document(min(truth[query_id])).text
        assert world.violates(query_id, text) == []
        edit = world.edit(query_id, text, strategy, rng)
        if edit is None:
            continue
        made[need.kind] += 1
        assert edit.requirement in world.requirements(query_id)
        assert world.violates(query_id, edit.text) == [edit.requirement]
        assert world.verdict(query_id, edit.text) == "related"
        assert all(sentence.whole for sentence in read(edit.text))
    assert made.total() > 12
    assert len(made) >= 1 + (strategy != "constraint violation")


def test_edits_say_what_their_strategy_says(world: World, data: Dataset, truth: dict[str, set[str]]) -> None:
    """What changes between passage and edit, seen from the facts alone."""
    rng = random.Random(1)
    seen: Counter[str] = Counter()
    for query_id, need in list(world.needs.items())[::3]:
        before = data.document(min(truth[query_id])).text
        old = Counter(parse(before))
        for strategy in get_args(EditStrategy):
            edit = world.edit(query_id, before, strategy, rng)
            if edit is None:
                continue
            seen[strategy] += 1
            new = Counter(parse(edit.text))
            gone, come = list((old - new).elements()), list((new - old).elements())
            assert gone
            if strategy == "entity shift":
                left = set(names_in(before)) - set(names_in(edit.text))
                assert len(left) == 1
                assert left <= set(need.entities)
                assert [f.relation for f in gone] == [f.relation for f in come]
                assert [f.year for f in gone] == [f.year for f in come]
            elif strategy == "constraint violation":
                assert [f.relation for f in gone] == [f.relation for f in come]
            elif strategy == "relation break":
                assert {frozenset(f.ends()) for f in gone} == {frozenset(f.ends()) for f in come}
            else:
                assert len(come) == 1
                assert come[0] in world.facts
                assert {f.relation for f in gone} == {need.patterns[0].relation}
    assert set(seen) == set(get_args(EditStrategy))


def test_only_texts_that_answer_are_edited(world: World) -> None:
    query_id = next(iter(world.needs))
    assert world.edit(query_id, "Nobody knows why.", "entity shift", random.Random(0)) is None


A, B, C = "Aldara Works", "Brinex Mills", "Casmont Bank"
P, Q = "Mira Tolvane", "Otto Marwick"
TOWN, OTHER_TOWN = "Port Ashbury", "Old Brackford"
TRUE = [
    Fact("acquired", A, B, 1950),
    Fact("acquired", A, C, 1962),
    Fact("acquired", B, A, 1962),
    Fact("founded", P, A, 1947),
    Fact("born", P, TOWN, 1921),
    Fact("directed", P, "The Silent Orchard", 1950),
    Fact("produced", Q, "The Silent Orchard", 1950),
]


def need_of(*patterns: Pattern, kind: str = "single", **kinds: str) -> Need:
    oracle = Oracle(TRUE)
    answers = tuple(sorted({str(found[SOUGHT]) for found in oracle.solutions(patterns)}))
    return Need("q", kind, patterns, {SOUGHT: "company", **kinds}, answers, "test")  # type: ignore[arg-type, dict-item]


def judged(need: Need, text: str) -> tuple[str, list[str]]:
    oracle, said, names = Oracle(TRUE), parse(text), names_in(text)
    return oracle.verdict(need, said, names), [r.key for r in oracle.violated(need, said, names)]


def test_verdicts_on_one_fact() -> None:
    need = need_of(Pattern("acquired", A, SOUGHT))
    assert need.answers == (B, C)
    assert judged(need, f"{A} bought {B}.") == ("answers", [])
    assert judged(need, f"{B} was bought by {A} in 1999.") == ("answers", [])
    assert judged(need, f"{A} bought Domlec Steel.")[0] == "wrong answer"
    assert judged(need, f"{B} bought {A}.") == ("related", ["relation:0"])
    assert judged(need, f"{A} sued {B}.") == ("related", ["relation:0"])
    assert judged(need, f"{C} bought {B}.") == ("related", [f"entity:{A}"])
    assert judged(need, f"{A} moved to {TOWN}.") == ("related", ["stated:0"])
    assert judged(need, f"{P} was born in {TOWN}.")[0] == "off topic"
    assert judged(need, "")[0] == "off topic"


def test_verdicts_on_a_year() -> None:
    need = need_of(Pattern("acquired", A, SOUGHT, 1962), kind="constrained")
    assert need.answers == (C,)
    assert judged(need, f"{A} bought {C} in 1962.") == ("answers", [])
    assert judged(need, f"{A} bought {B} in 1962.")[0] == "wrong answer"
    assert judged(need, f"{A} bought {B} in 1950 and sued {C} in 1962.") == ("related", ["year:0"])
    assert judged(need, f"{A} bought {C} in 1950.") == ("related", ["year:0"])
    assert judged(need, f"{A} bought {C}.") == ("partial answer", ["year:0"])
    when = need_of(Pattern("acquired", A, B, SOUGHT), **{SOUGHT: "year"})
    assert when.answers == ("1950",)
    assert judged(when, f"In 1950, {A} bought {B}.") == ("answers", [])
    assert judged(when, f"{A} bought {B} in 1962.")[0] == "wrong answer"
    assert judged(when, f"{B} bought {A} in 1950.") == ("related", ["relation:0"])
    assert judged(when, f"{A} bought {B}.") == ("related", ["stated:0"])


def test_verdicts_on_two_conditions() -> None:
    film = "The Silent Orchard"
    need = need_of(
        Pattern("directed", P, SOUGHT), Pattern("produced", Q, SOUGHT), kind="constrained", **{SOUGHT: "film"}
    )
    assert judged(need, f"{film} was directed by {P} and produced by {Q}.") == ("answers", [])
    assert judged(need, f"{film} was directed by {Q}. {P} produced {film}.")[0] == "related"
    assert judged(need, f"{P} directed The Broken Mirror. {Q} produced {film}.")[0] == "partial answer"
    assert judged(need, f"{P} directed {film}.") == ("partial answer", ["stated:1"])
    assert judged(need, f"{P} directed {film}. Adam Halden produced {film}.") == ("related", [f"entity:{Q}"])


def test_verdicts_on_two_hops() -> None:
    need = need_of(
        Pattern("born", VIA, SOUGHT),
        Pattern("founded", VIA, A),
        kind="two-hop",
        **{SOUGHT: "town", VIA: "person"},
    )
    assert need.answers == (TOWN,)
    assert judged(need, f"{P}, who founded {A}, was born in {TOWN}.") == ("answers", [])
    assert judged(need, f"{P}, who founded {A}, was born in {OTHER_TOWN}.")[0] == "wrong answer"
    assert judged(need, f"{P} was born in {TOWN}.")[0] == "partial answer"
    assert judged(need, f"{P} founded {A} and settled in {TOWN}.")[0] == "related"
    assert judged(need, f"{P} founded {A}. {Q} was born in {TOWN}.") == ("related", ["stated:0"])
    assert judged(need, f"{P} led {A} and was born in {TOWN}.") == ("related", ["relation:1"])
    assert judged(need, f"{P} founded {B} and was born in {TOWN}.") == ("related", [f"entity:{A}"])


def test_requirements_can_be_read() -> None:
    need = need_of(Pattern("acquired", A, SOUGHT, 1962), kind="constrained")
    assert [(r.facet, r.text) for r in requirements_of(need)] == [
        ("entity", f"It speaks of {A}, not of another company."),
        ("constraint", f"It says that {A} acquired the company asked for in 1962, not in another year."),
        (
            "relation",
            f"It says that {A} acquired the company asked for, not the other way round or otherwise.",
        ),
        ("attribute", f"It tells at all that {A} acquired the company asked for."),
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"During the year 1947 {P} had founded {A}.",
        f"{A}, founded by {P} in 1947, was later led by someone.",
        f"{A} was founded in 1947 by {P}, who was tall.",
        f"Long ago, {A} had been set up by {P} in 1947.",
        f"Nothing is left, but {P} started {A} in 1947; the rest is unknown.",
    ],
)
def test_what_others_write_is_read(text: str) -> None:
    assert parse(text) == [Fact("founded", P, A, 1947)]


def test_titles_may_have_a_small_article() -> None:
    assert parse(f"{P} directed the Silent Orchard.") == [Fact("directed", P, "The Silent Orchard")]


@pytest.mark.parametrize(
    "text",
    [
        f"{P} never founded {A}.",
        f"{A} was not founded by {P} in 1947.",
        f"It is false that {P} founded {A}.",
    ],
)
def test_denials_state_nothing(text: str) -> None:
    assert Fact("founded", P, A, 1947) not in parse(text)
    assert Fact("founded", P, A) not in parse(text)


def test_the_corpus_is_as_asked(folder: Path, data: Dataset, truth: dict[str, set[str]]) -> None:
    lengths = [len(document.text.split()) for document in data.documents]
    assert len(lengths) == SMALL.passages
    assert 40 <= min(lengths) <= max(lengths) <= 120
    assert len({document.text for document in data.documents}) == SMALL.passages
    assert len(truth) == len(data.queries) == SMALL.questions
    assert len({query.text for query in data.queries.values()}) == SMALL.questions
    # Four standard errors of the share.
    styled = [document.metadata["style"] for document in data.documents]
    assert styled == [has_style(document.text) for document in data.documents]
    assert sum(styled) / len(styled) == pytest.approx(0.35, abs=4 * (0.35 * 0.65 / len(styled)) ** 0.5)
    gold = {document for documents in truth.values() for document in documents}
    assert any(data.document(id).metadata["style"] for id in gold)
    record = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    assert record["counts"]["passages"] == SMALL.passages


def test_several_passages_state_the_same_fact(data: Dataset) -> None:
    stated = Counter(fact for document in data.documents for fact in set(parse(document.text)))
    assert sum(stated.values()) / len(stated) > 2


def test_the_same_words_are_bound_differently(
    world: World, data: Dataset, truth: dict[str, set[str]]
) -> None:
    """Most questions have passages with all their entities, relations and years that do not answer."""
    said = {document.id: parse(document.text) for document in data.documents}
    confusable = [
        sum(has_words_of(need, stated) for id, stated in said.items() if id not in truth[query_id])
        for query_id, need in world.needs.items()
    ]
    assert sum(count > 0 for count in confusable) / len(confusable) > 0.5


def test_the_mixed_twin_says_the_same(folder: Path, data: Dataset) -> None:
    mixed = read_dataset(folder / "mixed")
    assert (mixed.queries, mixed.qrels) == (data.queries, data.qrels)
    assert [document.id for document in mixed.documents] == [document.id for document in data.documents]
    for twin, document in zip(mixed.documents, data.documents, strict=True):
        assert strip_style(twin.text) == strip_style(document.text)
        assert (twin.text == document.text) or twin.metadata["style"]
    share = sum(document.metadata["style"] for document in mixed.documents) / SMALL.passages
    assert share == pytest.approx(0.5, abs=4 * 0.5 / SMALL.passages**0.5)


def test_mistakes_in_the_settings_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        WorldConfig(passages=10, questions=2, seed=-1, style_share=1.5)
    assert [message.split(":")[0] for message in caught.value.messages] == [
        "passages",
        "questions",
        "seed",
        "style_share",
    ]
    with pytest.raises(ConfigError, match="questions: 60 passages do not answer 2000 questions"):
        make_world(WorldConfig(passages=60, questions=2000), tmp_path / "world")


def test_a_folder_that_is_no_world_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no world.json here; make a world with: causalneg world"):
        World.open(tmp_path)
    (tmp_path / "world.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not JSON"):
        World.open(tmp_path)
    (tmp_path / "world.json").write_text('{"version": 0}', encoding="utf-8")
    with pytest.raises(DataError, match="a world of version 0, this program reads"):
        World.open(tmp_path)
    (tmp_path / "world.json").write_bytes((folder / "world.json").read_bytes())
    with pytest.raises(DataError, match=r"entities.jsonl: missing"):
        World.open(tmp_path)
    with pytest.raises(DataError, match="not empty"):
        make_world(SMALL, tmp_path)
    with pytest.raises(DataError, match="query 'x': not a question of this world"):
        World.open(folder).need("x")


def test_no_two_things_have_one_name() -> None:
    for communities in (1, 333, name_capacity()):
        drawn = _draw_names(communities, random.Random(0))
        names = [name for members in drawn for found in members.values() for name in found]
        assert len(names) == len(set(names)) == communities * sum(MEMBERS.values())


@pytest.mark.slow
def test_the_whole_world(tmp_path: Path) -> None:
    """The default world: sizes, and that no word of a test question is new to who has seen the rest."""
    data = read_dataset(make_world(WorldConfig(), tmp_path / "world"))
    assert (tmp_path / "world" / "corpus.jsonl").stat().st_size < 15e6
    assert (len(data.documents), len(data.queries)) == (20_000, 8_000)
    sizes = {split: len(data.positives(split)) for split in ("train", "dev", "test")}
    assert sizes["train"] / 8_000 == pytest.approx(0.65, abs=0.01)
    assert sizes["test"] / 8_000 == pytest.approx(0.25, abs=0.01)
    words = {
        split: {word for query in data.split_queries(split) for word in query.text.lower().strip("?").split()}
        for split in sizes
    }
    answers = {id for documents in data.positives("test").values() for id in documents}
    others = [document.text for document in data.documents if document.id not in answers]
    read_elsewhere = {word.strip('.,;:"').lower() for text in others for word in text.split()}
    assert words["test"] <= words["train"] | read_elsewhere
    kinds = Counter(query.metadata["kind"] for query in data.queries.values())
    assert min(kinds.values()) / 8_000 > 0.2

    world = World.open(tmp_path / "world")
    for query_id in data.queries:
        need = world.need(query_id)
        assert {str(found[SOUGHT]) for found in world.oracle.solutions(need.patterns)} == set(need.answers)
    # Passages with all entities, relations and years of a question, bound otherwise, outnumber its answers.
    said = {document.id: parse(document.text) for document in data.documents}
    stating: dict[str, set[str]] = {}
    for id, stated in said.items():
        for fact in stated:
            for name in fact.ends():
                stating.setdefault(name, set()).add(id)
    confusable = relevant = 0
    for query_id, documents in data.positives("test").items():
        need = world.need(query_id)
        near = stating[need.entities[0]] - set(documents)
        confusable += sum(has_words_of(need, said[id]) for id in near)
        relevant += len(documents)
    assert confusable > relevant
