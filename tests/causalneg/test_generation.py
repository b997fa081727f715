"""Writers without a model, and the way from pairs to a kept set."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from causalneg.data import Dataset, read_dataset
from causalneg.data.schema import Document, Example, Negative, Passage
from causalneg.generation.card import card_figures, data_card, source_auc
from causalneg.generation.driver import Generated, generate, pairs_from, rewrite_examples
from causalneg.generation.jobs import Failure, Job
from causalneg.generation.journal import Journal
from causalneg.generation.status import read_totals
from causalneg.generation.verification.heuristics import verify
from causalneg.generation.writers import WRITERS
from causalneg.generation.writers.base import Pair, Writer, Written, draws
from causalneg.generation.writers.english import quoted
from causalneg.generation.writers.naive import NaiveWriter
from causalneg.generation.writers.rules import RulesWriter
from causalneg.text.corpus import Corpus, cut
from causalneg.text.edits import (
    _OTHERS,
    break_relation,
    name_swaps,
    other_values,
    plural,
    replace_phrases,
    shift_value,
    verb_forms,
)
from causalneg.text.style import has_style, strip_style, style_share
from causalneg.text.words import (
    MONTHS,
    answer_kind,
    content_words,
    find_names,
    find_spans,
    is_yes_no,
    match_article,
    split_sentences,
    stem,
    words,
)
from causalneg.world import World, WorldConfig, make_world
from common.errors import ConfigError, DataError
from small_corpus import (
    CANDIDATES,
    QUESTIONS,
    TEXTS,
    Counted,
    all_written,
    make_writer,
    mined_examples,
    small_dataset,
)

T = TypeVar("T")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def corpus(small: Dataset) -> Corpus:
    return Corpus(small.documents)


@pytest.fixture(scope="module")
def pairs(small: Dataset) -> list[Pair]:
    return pairs_from(mined_examples(small), small)


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(WorldConfig(passages=240, questions=50), tmp_path_factory.mktemp("world") / "tiny")


@pytest.fixture(scope="module")
def world(world_folder: Path) -> World:
    return World.open(world_folder)


@pytest.fixture(scope="module")
def world_data(world_folder: Path) -> Dataset:
    return read_dataset(world_folder, splits=["train"])


@pytest.fixture(scope="module")
def world_written(world: World, world_data: Dataset) -> list[Example]:
    writer = make_writer("rules", world_data, world=world)
    return generate(pairs_from(world_examples(world_data), world_data), writer).examples


def world_examples(data: Dataset) -> list[Example]:
    """One positive each, and passages on the same subject as candidates."""
    by_topic: dict[str, list[str]] = {}
    for document in data.documents:
        by_topic.setdefault(document.metadata["topic"], []).append(document.id)
    found = []
    for query, positives in data.positives("train").items():
        topic = data.document(positives[0]).metadata["topic"]
        near = [id for id in by_topic[topic] if id not in positives][:4]
        found.append(
            Example(
                query=data.queries[query],
                positives=[Passage(document_id=positives[0])],
                negatives=[Negative(document_id=id, source="mined", backend="bm25") for id in near],
            )
        )
    return found


def result(job: Job[T]) -> T:
    """What a job without calls finds."""
    with pytest.raises(StopIteration) as stop:
        next(job)
    found: T = stop.value.value
    return found


def made(pairs: Sequence[Pair], writer: Writer, **more: Any) -> Generated:
    return generate(pairs, writer, report=lambda line: None, **more)


def written_by(writer: Writer, pairs: Sequence[Pair]) -> list[list[Negative]]:
    return [example.negatives for example in made(pairs, writer).examples]


def changed_words(before: str, after: str) -> list[tuple[str, str]]:
    """The words that differ between two texts with as many words."""
    old, new = before.split(), after.split()
    assert len(old) == len(new)
    return [(a, b) for a, b in zip(old, new, strict=True) if a != b]


# Any English text


def test_spans_of_every_kind() -> None:
    text = (
        "In 2006, the University of Warsaw met Dr. J. R. Tolk's friend George W. Bush. On 7 February 1990 "
        "the war (1754\u20131763) had 304,016 men, 42% of seven armies. "
        'However, "a film noir" ran in the 1530s.'
    )
    found = {(span.kind, span.text) for span in find_spans(text)}
    assert found == {
        ("year", "2006"),
        ("name", "University of Warsaw"),
        ("name", "Dr. J. R. Tolk"),
        ("name", "George W. Bush"),
        ("date", "7 February 1990"),
        ("year", "1754"),
        ("year", "1763"),
        ("number", "304,016"),
        ("number", "42"),
        ("number", "seven"),
        ("quote", "a film noir"),
        ("year", "1530"),
    }
    assert ("title", "war") in {(s.kind, s.text) for s in find_spans(text, title="War")}


@settings(deadline=None)
@given(st.text(alphabet="Ab c1.,'\"-é(中", max_size=80))
def test_spans_lie_where_they_say(text: str) -> None:
    for span in find_spans(text, title="Ab"):
        assert text[span.start : span.end] == span.text
        assert span.text


def test_a_capital_at_the_beginning_makes_no_name() -> None:
    text = "Teachers met Anna Brandt. The Dutch left in May. He saw Rome."
    assert [s.text for s in find_names(text)] == ["Teachers", "Anna Brandt", "Dutch", "Rome"]
    assert [s.text for s in find_names(text, lambda w: w == "teachers")] == ["Anna Brandt", "Dutch", "Rome"]


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who found it?", "person"),
        ("When was it built?", "time"),
        ("In what year was it built?", "time"),
        ("How many floors are there?", "number"),
        ("What percentage of them left?", "number"),
        ("Where is it?", "place"),
        ("Which city is it in?", "place"),
        ("What is it made of?", "other"),
    ],
)
def test_what_a_question_asks_for(question: str, kind: str) -> None:
    assert answer_kind(question) == kind


def test_yes_or_no() -> None:
    assert is_yes_no("is it red")
    assert is_yes_no("Can't it fly?")
    assert not is_yes_no("what is red")


def test_irregular_verbs_share_a_stem() -> None:
    assert stem("wrote") == stem("written") == stem("writes")
    assert content_words("She wrote what he writes") == ["write", "write"]


def test_articles_fit_what_follows() -> None:
    assert match_article("It is a owl and an bear.", ["owl", "bear"]) == "It is an owl and a bear."
    assert match_article("An house, a hour-glass", ["house"]) == "A house, a hour-glass"


# What a corpus teaches


def test_kinds_of_names_are_learned(corpus: Corpus) -> None:
    assert corpus.first_names == {"Martin", "Anna", "Oscar", "Emma"}
    kinds = {
        name: corpus.kind(name) for name in ("Emma Hale", "Hale", "Graz", "River Mur", "Treaty of Lindau")
    }
    assert kinds == {
        "Emma Hale": "person",
        "Hale": "person",
        "Graz": "place",
        "River Mur": "place",
        "Treaty of Lindau": "event",
    }
    assert corpus.kind("Bern Clock Company") == "organisation"
    assert corpus.is_topic("Pendulum clock")
    assert not corpus.is_topic("Emma Hale")


def test_weights_and_coverage_by_hand(corpus: Corpus) -> None:
    number = len(TEXTS)
    holds = {
        w: sum(stem(w) in {stem(x) for x in words(f"{a} {b}")} for a, b in TEXTS.values())
        for w in ("bern", "sea")
    }
    idf = {w: np.log(1 + number / n) for w, n in holds.items()}
    weights = corpus.weights("The sea of Bern?")
    assert weights == pytest.approx({w: value / sum(idf.values()) for w, value in idf.items()})
    assert corpus.coverage(weights, {"sea"}) == pytest.approx(weights["sea"])
    assert corpus.weight("neverseen") == pytest.approx(np.log(1 + number))
    assert corpus.weights("what is the") == {}


def test_where_a_passage_answers(corpus: Corpus) -> None:
    for question, sentence in (("trams", 1), ("clock", 1), ("treaty", 1), ("wrote", 1), ("snow", 3)):
        text, document = QUESTIONS[question]
        found = corpus.answer_sentences(text, corpus.view(corpus.by_id[document]))
        assert sentence in found
        assert len(found) < 4
    assert corpus.answer_sentences("zebra?", corpus.view(corpus.by_id["bern"])) == {0}


def test_an_answer_needs_what_is_asked_for(corpus: Corpus) -> None:
    asked = "How many people lived in Bern in 1820?"
    assert corpus.answering(asked, "Bern", "In 1820, 17,552 people lived there.") > 0.9
    assert corpus.answering(asked, "Bern", "In 1820, people lived there.") == 0


# Counterfactual edits of any English text


def test_phrases_are_replaced_at_once() -> None:
    swaps = {"Anna Brandt": "Emma Hale", "Brandt": "Hale", "Hale": "Brandt"}
    assert replace_phrases("Anna Brandt met Hale and Brandt's son.", swaps, cased=True) == (
        "Emma Hale met Brandt and Hale's son."
    )
    assert (
        replace_phrases("An owl. The Owls.", {"owl": "bear", "owls": "bears"}, cased=False)
        == "A bear. The Bears."
    )


def test_parts_and_initials_of_a_name() -> None:
    swaps = name_swaps(
        "National Clock League",
        "Royal Sun Society",
        "The National Clock League (NCL)",
        person=False,
        common=lambda w: w == "clock",
    )
    assert swaps == {
        "National Clock League": "Royal Sun Society",
        "National": "Royal",
        "League": "Society",
        "NCL": "RSS",
    }


@settings(deadline=None)
@given(st.integers(0, 999_999), st.sampled_from(["", "th", "s"]), st.booleans())
def test_other_values_have_the_same_form(number: int, ending: str, comma: bool) -> None:
    value = f"{number:,}" if comma else str(number)
    value += ending if not comma else ""
    for other in other_values(value):
        assert other != value
        if number < 1000 or number >= 2100:
            assert ("," in other) == ("," in value)
        bare = re.sub(r"(st|nd|rd|th|s)$", "", other).replace(",", "")
        assert bare.isdigit()
        if ending != "s":
            assert len(bare) == len(str(number))


def test_other_values_of_words_and_months() -> None:
    assert set(other_values("May")) < set(MONTHS) - {"May"}
    assert "seven" not in other_values("seven")
    assert set(other_values("Seven")) == set(other_values("seven"))
    assert other_values("blue") == []


def test_verbs_are_told_apart_by_every_form() -> None:
    known: dict[str, str] = {}
    for verb in _OTHERS:
        for form in set(verb_forms(verb)):
            assert known.setdefault(form, verb) == verb
    assert verb_forms("marry") == ("marry", "marries", "married", "married", "marrying")
    assert verb_forms("publish")[1:3] == ("publishes", "published")
    assert verb_forms("dismiss")[1] == "dismisses"
    assert verb_forms("write") == ("write", "writes", "wrote", "written", "writing")
    assert verb_forms("found") == ("found", "founds", "founded", "founded", "founding")


def test_every_form_of_a_verb_gives_way() -> None:
    document = Document(
        id="d", text="He wrote it. It was written to write letters; he writes. The write head."
    )
    made = break_relation(document, "written", random.Random(0))
    assert made is not None
    assert not re.search(r"wrote|written|to write|writes", made[1])
    assert "The write head." in made[1]
    assert break_relation(document, "sold", random.Random(0)) is None
    assert break_relation(document, "unheard", random.Random(0)) is None


def test_a_year_is_shifted_everywhere_and_alone() -> None:
    document = Document(
        id="d", title="Bern 1820", text="In 1820, 18,205 people; 1820\u20131821, not 11820 or 1820.5."
    )
    made = shift_value(document, "1820", random.Random(1), {"1819"})
    assert made is None  # 1820.5 is another number, but still has the words of the year
    plain = document.model_copy(update={"text": "In 1820, 18,205 people; 1820\u20131821, not 11820."})
    made = shift_value(plain, "1820", random.Random(1), {"1819"})
    assert made is not None
    year = made[0].split()[1]
    assert year not in ("1820", "1819", "1821")
    assert 1808 <= int(year) <= 1832
    assert made[1] == f"In {year}, 18,205 people; {year}\u20131821, not 11820."


def test_entity_shift_keeps_all_but_the_entity(corpus: Corpus, pairs: list[Pair]) -> None:
    writer = RulesWriter(corpus=corpus)
    seen = 0
    for pair, negatives in zip(pairs, written_by(writer, pairs), strict=True):
        for negative in negatives:
            if negative.strategy != "entity shift":
                continue
            seen += 1
            anchor = quoted(negative.requirement)
            assert negative.facet == "entity"
            content = f"{negative.title} {negative.text}"
            assert anchor.lower() not in content.lower()
            special = [w for w in words(anchor) if not corpus.common(w)]
            assert not set(special) & set(words(content))
            if anchor[1:].islower() and len(anchor.split()) > 1:
                continue  # a subject that is no name may get another number of words
            pieces = changed_words(pair.positive.content, content)
            assert {stem(w) for old, _ in pieces for w in words(old)} <= {stem(w) for w in words(anchor)}
            new = {w for _, now in pieces for w in re.findall(r"\w+", now)}
            assert new <= {w for title, text in TEXTS.values() for w in re.findall(r"\w+", f"{title} {text}")}
            substitute = " ".join(dict.fromkeys(re.findall(r"[A-Z]\w+", " ".join(now for _, now in pieces))))
            assert corpus.kind(substitute.split(" ")[-1]) == corpus.kind(anchor.split(" ")[-1])
    assert seen >= 6


def test_one_value_or_verb_is_changed_and_no_more(pairs: list[Pair], corpus: Corpus) -> None:
    found: Counter[str] = Counter()
    for pair, negatives in zip(pairs, written_by(RulesWriter(corpus=corpus), pairs), strict=True):
        for negative in negatives:
            if negative.strategy in ("constraint violation", "relation break"):
                found[negative.strategy] += 1
                assert negative.title == pair.positive.title
                pieces = changed_words(pair.positive.text, str(negative.text))
                assert len({old.strip(".,") for old, _ in pieces}) == 1
    assert found["constraint violation"] >= 3
    assert found["relation break"] >= 4


def test_attribute_shift_leaves_the_answer_out(pairs: list[Pair], corpus: Corpus) -> None:
    everywhere = {s for _, text in TEXTS.values() for s in split_sentences(text)}
    answers = {
        "trams": "17,552",
        "clock": "ten seconds",
        "treaty": "Long",
        "snow": "April",
        "wrote": "novels",
    }
    answers |= {"founded": "Bern Clock", "dye": "chemist", "bells": "Basel"}
    seen = 0
    for pair, negatives in zip(pairs, written_by(RulesWriter(corpus=corpus), pairs), strict=True):
        for negative in negatives:
            if negative.strategy in ("attribute shift", "intent drift"):
                seen += 1
                text = str(negative.text)
                assert answers[pair.query.id] not in text
                assert set(split_sentences(text)) <= everywhere
                assert text not in [t for _, t in TEXTS.values()]
                own = [c for c in pair.candidates if c.id == negative.document_id]
                assert bool(own) == (negative.strategy == "intent drift")
    assert seen >= 5


def test_a_subject_that_is_no_name(small: Dataset, corpus: Corpus) -> None:
    clock = small.document("pendulum")
    pair = Pair(small.queries["clock"], clock, [small.document("sundial")])
    shifted = next(
        n for n in written_by(RulesWriter(corpus=corpus), [pair])[0] if n.strategy == "entity shift"
    )
    assert shifted.title == "Sundial"
    assert shifted.text == (
        "A sundial keeps time with a swinging weight. The sundial loses about ten seconds a week. Warm air "
        "makes the rod longer and the sundial slower. Most of them stand in halls."
    )


def test_initials_stand_for_the_name(corpus: Corpus, small: Dataset) -> None:
    text = "The Bern Clock Company (BCC) went to Paris. The BCC sold no clocks there. Rain fell on the halls."
    query = small.queries["clock"].model_copy(update={"text": "Where did the BCC go?"})
    writer = RulesWriter(corpus=corpus)
    pair = Pair(query, Document(id="new", text=text, title="Clocks"))
    analysis = result(writer.write(pair)).analysis
    assert analysis is not None
    assert [quoted(r.text) for r in analysis.requirements if r.facet == "entity"] == ["Bern Clock Company"]
    shifts = [n for n in written_by(writer, [pair])[0] if n.strategy == "entity shift"]
    assert all("BCC" not in str(n.text) for n in shifts)


@pytest.mark.parametrize(
    ("noun", "many"),
    [("clock", "clocks"), ("city", "cities"), ("day", "days"), ("box", "boxes"), ("s", "ses")],
)
def test_plurals(noun: str, many: str) -> None:
    assert plural(noun) == many


def test_yes_or_no_questions_lose_their_subject_only(corpus: Corpus, small: Dataset) -> None:
    query = small.queries["dye"].model_copy(update={"text": "did anna brandt live near hamburg"})
    writer = RulesWriter(corpus=corpus)
    analysis = result(writer.write(Pair(query, small.document("brandt")))).analysis
    assert analysis is not None
    shifts = {quoted(r.text): r.critical for r in analysis.requirements if r.facet == "entity"}
    assert shifts == {"Anna Brandt": True, "Hamburg": False}
    assert all(not r.disruptions for r in analysis.requirements if not r.critical)


def test_negatives_are_few_different_and_traced(pairs: list[Pair], corpus: Corpus) -> None:
    writer = RulesWriter(corpus=corpus, seed=3)
    analyses = [result(writer.write(pair)).analysis for pair in pairs]
    for pair, analysis, negatives in zip(pairs, analyses, written_by(writer, pairs), strict=True):
        assert analysis is not None
        known = {r.text: r for r in analysis.requirements}
        assert 1 <= len(negatives) <= 3
        assert len({n.text for n in negatives}) == len(negatives)
        for negative in negatives:
            requirement = known[negative.requirement]
            assert requirement.critical
            assert negative.facet == requirement.facet
            assert negative.strategy in [d.kind for d in requirement.disruptions]
            assert (negative.source, negative.backend, negative.seed) == ("generated", "rules", 3)
            assert negative.document_id in [pair.positive.id, *(c.id for c in pair.candidates)]
        weights = corpus.weights(pair.query.text)
        shares = [corpus.coverage(weights, set(content_words(f"{n.title} {n.text}"))) for n in negatives]
        assert shares == sorted(shares, reverse=True)
    kinds = Counter(n.strategy for found in written_by(writer, pairs) for n in found)
    assert set(kinds) == {
        "entity shift", "constraint violation", "relation break", "attribute shift", "intent drift",
    }  # fmt: skip


def test_nothing_to_go_by_is_a_failure(corpus: Corpus, small: Dataset) -> None:
    writer = RulesWriter(corpus=corpus)
    empty = Pair(small.queries["clock"], Document(id="new", text="", title="x"))
    wordless = Pair(small.queries["clock"].model_copy(update={"text": "?!"}), small.document("bern"))
    found = [result(writer.write(pair)).failure for pair in (empty, wordless)]
    assert [f.kind for f in found if f is not None] == ["empty positive", "empty query"]


# The same for everyone


@pytest.mark.parametrize("name", ["rules", "naive"])
def test_neither_order_nor_company_matters(name: str, small: Dataset, pairs: list[Pair]) -> None:
    writer = make_writer(name, small, artifact=0.5, seed=1)
    expected = {p.query.id: e for p, e in zip(pairs, made(pairs, writer).examples, strict=True)}
    for number in (1, 3):
        mixed = random.Random(number).sample(pairs, len(pairs) - number)
        fresh = make_writer(name, replace(small, documents=list(small.documents)), artifact=0.5, seed=1)
        assert made(mixed, fresh).examples == [expected[p.query.id] for p in mixed]
    other = made(pairs, make_writer(name, small, artifact=0.5, seed=2))
    assert other.examples != list(expected.values())


def start(code: str, *, repo: Path, seed: str = "0") -> subprocess.Popen[str]:
    path = os.pathsep.join([str(repo / "packages"), str(repo / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", f"from small_corpus import *\n{code}"],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_hash_seeds_do_not_matter(repo: Path) -> None:
    here = all_written()
    assert len(here) > 30
    hashes = {hash("a"), hash("b")}
    there = start("print(*[hash('a'), hash('b')], *all_written(), sep='\\n')", repo=repo, seed="77")
    printed, said = there.communicate(timeout=120)
    assert there.returncode == 0, said
    first, second, *lines = printed.splitlines()
    assert {int(first), int(second)} != hashes
    assert lines == here


def test_draws_depend_on_seed_and_names() -> None:
    assert draws(1, "a", "b").random() == draws(1, "a", "b").random()
    assert len({draws(*key).random() for key in ((1, "a"), (2, "a"), (1, "b"), (1, "a", "b"))}) == 4


# The naive writer


def test_naive_text_is_on_topic_and_of_the_corpus(corpus: Corpus, pairs: list[Pair]) -> None:
    everywhere = {s for _, text in TEXTS.values() for s in split_sentences(text)}
    for pair, negatives in zip(pairs, written_by(NaiveWriter(corpus=corpus), pairs), strict=True):
        asked = pair.query.text
        assert len(negatives) == 3
        for negative in negatives:
            assert set(split_sentences(str(negative.text))) <= everywhere
            shared = set(content_words(f"{negative.title} {negative.text}")) & set(content_words(asked))
            # Where nothing but the positive has a word of the query, the candidates stand in.
            others = [f"{a} {b}" for id, (a, b) in TEXTS.items() if id != pair.positive.id]
            alone = not set(content_words(asked)) & set(content_words(" ".join(others)))
            assert shared or (alone and negative.title in [c.title for c in pair.candidates])
            assert (negative.requirement, negative.facet, negative.strategy) == ("", None, None)
            assert negative.document_id is None


@pytest.mark.parametrize("kind", [RulesWriter, NaiveWriter])
def test_the_dial_sets_the_fingerprint_and_nothing_else(
    kind: type[RulesWriter] | type[NaiveWriter], corpus: Corpus, pairs: list[Pair]
) -> None:
    plain = [str(n.text) for found in written_by(kind(corpus=corpus), pairs) for n in found]
    assert not any(map(has_style, plain))
    shares = []
    for artifact in (0.3, 1.0):
        texts = [
            str(n.text) for found in written_by(kind(corpus=corpus, artifact=artifact), pairs) for n in found
        ]
        shares.append(float(np.mean([style_share(text) for text in texts])))
        if kind is RulesWriter:
            assert [strip_style(text) for text in texts] == plain
    assert 0.1 < shares[0] < 0.6
    assert shares[1] == 1


def test_rewriting_keeps_what_is_said(corpus: Corpus, small: Dataset) -> None:
    for writer in (NaiveWriter(corpus=corpus, artifact=1.0), RulesWriter(corpus=corpus, artifact=1.0)):
        for document in small.documents:
            passage = result(writer.rewrite(document))
            assert isinstance(passage, Passage)
            assert passage.text != document.text
            assert strip_style(str(passage.text)) == document.text
            assert (passage.document_id, passage.title) == (document.id, document.title)
            assert passage.voice == writer.name
    same = result(RulesWriter(corpus=corpus).rewrite(small.documents[0]))
    assert isinstance(same, Passage)
    assert same.text == small.documents[0].text


def test_writers_refuse_what_they_cannot_be(small: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"there is no writer 'rule'; did you mean 'rules'"):
        WRITERS["rule"]
    for name in ("rules", "naive"):
        with pytest.raises(ConfigError, match=r"artifact: must be between 0 and 1, got 1\.5"):
            make_writer(name, small, artifact=1.5)


# The embedded world


def test_world_negatives_violate_what_they_name(
    world: World, world_data: Dataset, world_written: list[Example]
) -> None:
    checked = verify(world_written, world_data, world=world)
    assert checked.report.shares() == {"valid": 1.0, "off topic": 0.0, "answering": 0.0}
    strategies: Counter[str | None] = Counter()
    for example in checked.kept:
        for negative in example.negatives:
            id, text = example.query.id, str(negative.text)
            strategies[negative.strategy] += 1
            assert world.verdict(id, text) == "related"
            assert [r.text for r in world.violates(id, text)] == [negative.requirement]
            assert negative.facet in {
                r.facet for r in world.requirements(id) if r.text == negative.requirement
            }
            assert negative.verdict is not None
            assert negative.verdict.judge == "truth"
    assert set(strategies) == {
        "entity shift", "relation break", "constraint violation", "attribute shift", "upstream/downstream",
    }  # fmt: skip
    assert checked.report.kept > 0.9 * checked.report.written
    assert checked.report.kept > 2 * sum(bool(e.negatives) for e in world_written)


def test_world_negatives_have_the_style_of_their_base(
    world_data: Dataset, world_written: list[Example]
) -> None:
    seen = set()
    for example in world_written:
        for negative in example.negatives:
            base = world_data.document(str(negative.document_id))
            assert has_style(str(negative.text)) == has_style(base.text)
            seen.add(has_style(base.text))
    assert seen == {True, False}


def test_world_voices_state_the_same(world: World, world_data: Dataset) -> None:
    examples = world_examples(world_data)[:30]
    writer = make_writer("rules", world_data, world=world, artifact=1.0)
    voices, failed = rewrite_examples(examples, world_data, writer, negatives=2)
    assert not failed
    assert len(voices) == len(examples)
    for example, voiced in zip(examples, voices, strict=True):
        old = [*example.positives, *example.negatives[:2]]
        new = [*voiced.positives, *voiced.negatives]
        assert [p.document_id for p in old] == [p.document_id for p in new]
        for passage in new:
            text, base = str(passage.text), world_data.document(str(passage.document_id)).text
            assert passage.voice == "rules"
            assert style_share(text) == 1
            assert set(world.parse(text)) == set(world.parse(base))
            assert world.verdict(example.query.id, text) == world.verdict(example.query.id, base)


def test_a_positive_that_does_not_answer_fails(world: World, world_data: Dataset) -> None:
    pair = pairs_from(world_examples(world_data), world_data)[0]
    wrong = replace(pair, positive=Document(id="none", text="Nothing is said here."))
    found = result(make_writer("rules", world_data, world=world).write(wrong))
    assert isinstance(found, Written)
    assert found.failure is not None
    assert found.failure.kind == "no answer"


# From pairs to a set


def test_pairs_take_the_first_positive_and_the_best_candidates(small: Dataset) -> None:
    found = pairs_from(mined_examples(small), small, candidates=1)
    assert [(p.query.id, p.positive.id, [c.id for c in p.candidates]) for p in found] == [
        (id, QUESTIONS[id][1], near[:1]) for id, near in CANDIDATES.items()
    ]
    own = Example(query=small.queries["clock"], positives=[Passage(text="It ticks.", title="Clock")])
    (pair,) = pairs_from([own], small)
    assert (pair.positive.title, pair.positive.text, pair.candidates) == ("Clock", "It ticks.", ())
    assert made([pair], make_writer("naive", small)).examples[0].positives == own.positives
    with pytest.raises(ConfigError, match="candidates"):
        pairs_from([own], small, candidates=-1)


def journaled(path: Path, pairs: Sequence[Pair], writer: Writer, lines: list[str]) -> list[Example]:
    with Journal(path, report=lines.append) as journal:
        ledger = journal.ledger("writer", writer.identity)
        return generate(pairs, writer, ledger=ledger, report=lines.append).examples


def test_a_journal_gives_back_what_it_took(small: Dataset, pairs: list[Pair], tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "set.journal"
    lines: list[str] = []
    writer = Counted(log, fail=["clock"])
    plain = made(pairs, writer).examples
    log.unlink()
    first = journaled(path, pairs[:5], writer, lines)
    again = journaled(path, [*pairs, pairs[0]], writer, lines)
    assert again == [*plain, plain[0]]
    assert first == plain[:5]
    assert Counter(log.read_text().splitlines()) == Counter(f"write {p.query.id}" for p in pairs)
    assert [e.query.id for e in again if not e.negatives] == ["clock"]
    assert lines[-1] == f"1 of {len(pairs) + 1} pairs have no written negatives: refused 1"
    totals = read_totals(path)
    assert (totals.done, totals.failures, totals.pairs) == (len(pairs) - 1, {"refused": 1}, len(pairs) + 1)


def test_other_settings_or_texts_are_asked_anew(pairs: list[Pair], tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "set.journal"
    lines: list[str] = []
    journaled(path, pairs, Counted(log), lines)
    assert lines == []
    journaled(path, pairs, Counted(log, settings="warmer"), lines)
    assert lines == [f"{path}: settings is warmer and was : a new generation set begins"]
    edited = [replace(pairs[0], candidates=())]
    journaled(path, edited, Counted(log), lines)
    assert Counter(log.read_text().splitlines())[f"write {pairs[0].query.id}"] == 3
    assert Counter(log.read_text().splitlines())[f"write {pairs[1].query.id}"] == 2


def wait_for_lines(path: Path, number: int) -> None:
    for _ in range(600):
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not get {number} lines in a minute")


def test_kill_and_resume(repo: Path, pairs: list[Pair], tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "set.journal"
    process = start(f"write_slowly({str(log)!r}, {str(path)!r}, wait=0.3)", repo=repo)
    try:
        wait_for_lines(log, 4)
        with pytest.raises(DataError, match="another process"):
            Journal(path)
        assert read_totals(path).running
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = log.read_text().splitlines()
    assert 4 <= len(before) < len(pairs)
    totals = read_totals(path)
    assert not totals.running
    assert len(before) - 1 <= totals.finished <= len(before)
    lines: list[str] = []
    examples = journaled(path, pairs, Counted(log), lines)
    assert lines == []
    assert examples == made(pairs, Counted(tmp_path / "other")).examples
    asked = Counter(log.read_text().splitlines())
    assert set(asked) == {f"write {p.query.id}" for p in pairs}
    # At most what was on its way when it was killed is asked twice; what the journal has never is.
    assert sum(times - 1 for times in asked.values()) == len(before) - totals.finished


def test_rewriting_leaves_out_what_fails(small: Dataset, tmp_path: Path) -> None:
    mined = mined_examples(small)
    voices, failed = rewrite_examples(mined, small, Counted(tmp_path / "log"), negatives=1)
    assert [e.query.id for e in voices] == [id for id in CANDIDATES if id != "trams"]
    assert all(len(e.negatives) == 1 and e.negatives[0].text == "said" for e in voices)
    assert failed == {"mute": 1}
    with pytest.raises(ConfigError, match="negatives"):
        rewrite_examples(mined, small, Counted(tmp_path / "log"), negatives=-1)


def test_preview_shows_query_requirements_and_negatives(pairs: list[Pair], small: Dataset) -> None:
    shown = make_writer("rules", small).preview(pairs[0])
    assert "query: Who or what did Keller found in 1884?" in shown
    assert "requirement (entity): The passage is about “Martin Keller”. [entity shift]" in shown
    assert shown.count("\nnegative (") == 3


# The data card


def test_source_auc_where_it_is_known() -> None:
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(50)]

    def text() -> str:
        return " ".join(rng.choices(vocabulary, k=20))

    groups = [f"q{i}" for i in range(200)]
    plain, alike = [text() for _ in groups], [text() for _ in groups]
    marked = [f"{t} indeed" for t in alike]
    assert source_auc(marked, plain, groups * 2) == 1.0
    # The standard deviation of the AUC of pure chance is sqrt((n + m + 1) / (12 n m)) = .029.
    assert source_auc(alike, plain, groups * 2) == pytest.approx(0.5, abs=4 * 0.029)
    assert np.isnan(source_auc(marked, plain, ["q"] * 400))
    assert np.isnan(source_auc([], plain, groups))


def test_data_card(small: Dataset, pairs: list[Pair]) -> None:
    mined = mined_examples(small)
    checked = verify(made(pairs, make_writer("rules", small)).examples, small)
    figures = card_figures(checked, mined, small)
    kept = [n for e in checked.kept for n in e.negatives]
    lengths = [len(words(f"{n.title} {n.text}")) for n in kept]
    assert figures["written"]["number"] == len(kept) == checked.report.kept
    assert figures["written"]["words_mean"] == pytest.approx(np.mean(lengths))
    assert figures["mined"]["number"] == sum(len(near) for near in CANDIDATES.values())
    assert figures["tokens"] == 0
    card = data_card(checked, mined, small)
    assert "# Written negatives" in card
    assert "| attribute shift |" in re.sub(r" +", " ", card)
    bare = data_card(verify([], small), [], small)
    assert "n/a" in bare


@pytest.mark.slow
def test_real_text(shared: Path) -> None:
    data = read_dataset(shared / "data" / "retrieval" / "wiki-mix", splits=["train"])
    examples = []
    for query, positives in list(data.positives("train").items())[:800:4]:
        title = data.document(positives[0]).title
        near = [d.id for d in data.documents if d.title == title and d.id not in positives][:5]
        negatives = [Negative(document_id=id, source="mined", backend="title") for id in near]
        examples.append(
            Example(
                query=data.queries[query], positives=[Passage(document_id=positives[0])], negatives=negatives
            )
        )
    writer = make_writer("rules", data)
    checked = verify(generate(pairs_from(examples, data), writer).examples, data)
    assert checked.report.kept > 0.95 * checked.report.written
    assert checked.report.kept > 2 * len(examples)
    assert sum(not e.negatives for e in checked.kept) < 0.05 * len(examples)


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.text(max_size=200))
def test_any_text_is_borne(asked: str, text: str) -> None:
    corpus = Corpus([Document(id="d", title="T", text=text), Document(id="e", text="Another text by Anna.")])
    pair = Pair(
        small_dataset(Path("x")).queries["clock"].model_copy(update={"text": asked}), corpus.documents[0]
    )
    for writer in (RulesWriter(corpus=corpus, artifact=0.5), NaiveWriter(corpus=corpus, artifact=0.5)):
        found = result(writer.write(pair))
        assert all(n.text is not None for n in found.negatives)
        assert (found.failure is None) == bool(found.negatives)
        assert all(isinstance(result(writer.rewrite(d)), (Passage, Failure)) for d in corpus.documents)
    assert sum(map(len, cut(corpus.documents[0]).sentences)) <= len(text)
