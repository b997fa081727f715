from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causalneg.data.schema import Analysis, Disruption, Document, Query, Requirement, StrategyKind
from causalneg.generation.writers.prompts import (
    Drafts,
    Limits,
    Prompts,
    choose_orders,
    cut_document,
    load_profile,
    profile_names,
)
from causalneg.llm.schema import bounded_schema
from common.errors import ConfigError, DataError

QUERY = Query(id="q", text="Who built the bridge?")
POSITIVE = Document(id="d", text="Ann Bo built the bridge. It took a year.", title="The bridge")
KINDS = list(get_args(StrategyKind))


def requirement(text: str, *kinds: StrategyKind, critical: bool = True) -> Requirement:
    ways = [Disruption(kind=kind, instruction=f"{kind} of {text}") for kind in kinds]
    return Requirement(text=text, facet="entity", critical=critical, disruptions=ways)


def analysis(*requirements: Requirement) -> Analysis:
    return Analysis(core_need="n", how_met="h", answer_boundary="b", requirements=list(requirements))


def test_the_promised_profiles_are_there_and_each_says_what_it_must() -> None:
    assert profile_names() == ["generic", "hotpotqa", "mmarco", "nq", "triviaqa"]
    for name in profile_names():
        system = Prompts(name).analysis(QUERY, POSITIVE)[0].content
        assert load_profile(name).sections["relevance"] in system
        assert load_profile(name).sections["style"] in system
        assert "$" not in system


def test_a_new_profile_is_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "law.txt"
    path.write_text("version: 3\n=== relevance\nJudgments.\n=== style\nDry, $5 a word.\n")
    prompts = Prompts(str(path))
    assert "law3" in prompts.version
    assert "Dry, $5 a word." in prompts.analysis(QUERY, POSITIVE)[0].content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("=== relevance\nx\n=== style\ny\n", "must begin with a line like 'version: 1'"),
        ("version: 1\n=== relevance\nx\n", "'=== style' is missing or empty"),
        ("version: 1\n=== relevance\n\n=== style\ny", "'=== relevance' is missing or empty"),
    ],
)
def test_a_profile_that_is_none_is_told_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "law.txt"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        Prompts(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_profile_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'triviaqa'\?"):
        Prompts("trivaqa")


def test_the_version_follows_every_letter(tmp_path: Path) -> None:
    versions = set()
    for style in ("Short.", "Short!", "Long."):
        path = tmp_path / "own.txt"
        path.write_text(f"version: 1\n=== relevance\nx\n=== style\n{style}\n")
        versions.add(Prompts(str(path)).version)
    assert len(versions) == 3


def test_what_pairs_share_comes_first_and_the_second_call_continues_the_first() -> None:
    prompts = Prompts("nq")
    other = prompts.analysis(Query(id="r", text="When?"), Document(id="e", text="In May."))
    first = prompts.analysis(QUERY, POSITIVE)
    assert first[0] == other[0]
    made = analysis(requirement("It is about the bridge.", "entity shift"))
    orders = choose_orders(made, KINDS)
    second = prompts.negatives(QUERY, POSITIVE, made, [Document(id="c", text="A tower.")], orders)
    assert second[: len(first)] == first
    assert json.loads(second[len(first)].content) == made.model_dump()
    assert "[1] A tower." in second[-1].content
    assert 'negative_1: break the requirement "It is about the bridge."' in second[-1].content


def test_without_candidates_the_second_call_says_so() -> None:
    made = analysis(requirement("r", "entity shift"))
    text = Prompts().negatives(QUERY, POSITIVE, made, [], choose_orders(made, KINDS))[-1].content
    assert "(none; take the answering passage" in text
    assert "about 10 words each" in text


def test_the_preview_holds_both_prompts_and_needs_no_model() -> None:
    shown = Prompts().preview(QUERY, POSITIVE, [Document(id="c", text="A tower.")])
    assert shown.index("--- system ---") < shown.index("Who built the bridge?") < shown.index("[1] A tower.")
    assert "The bridge\nAnn Bo built the bridge." in shown


def test_chinese_lengths_are_in_signs() -> None:
    made = analysis(requirement("r", "entity shift"))
    text = Document(id="d", text="这座桥是安波在十九世纪修建的。" * 4)
    assert "about 60 characters each" in Prompts("mmarco").negatives(QUERY, text, made, [], [])[-1].content


def test_orders_take_other_requirements_and_other_kinds_before_any_twice() -> None:
    made = analysis(
        requirement("a", "entity shift", "attribute shift"),
        requirement("style", "intent drift", critical=False),
        requirement("b", "entity shift", "constraint violation"),
        requirement("c", "entity shift", "relation break"),
    )
    orders = choose_orders(made, KINDS)
    assert [o.requirement.text for o in orders] == ["a", "b", "c"]
    assert len({o.disruption.kind for o in orders}) == 3


def test_one_requirement_gives_as_many_orders_as_it_has_ways() -> None:
    made = analysis(requirement("a", "entity shift", "attribute shift"))
    assert [o.disruption.kind for o in choose_orders(made, KINDS)] == ["entity shift", "attribute shift"]


def test_an_analysis_that_calls_nothing_critical_still_gives_orders() -> None:
    soft = analysis(requirement("a", "intent drift", critical=False), requirement("b"))
    assert [o.requirement.text for o in choose_orders(soft, KINDS)] == ["a"]
    bare = analysis(requirement("a"), requirement("b"))
    assert [(o.requirement.text, o.disruption.kind) for o in choose_orders(bare, KINDS)] == [
        ("a", "entity shift"),
        ("b", "entity shift"),
    ]
    assert choose_orders(analysis(), KINDS) == []


def test_kinds_are_spread_evenly_over_pairs_although_models_list_some_first() -> None:
    made = analysis(*(requirement(f"r{n}", *KINDS) for n in range(6)))
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(600):
        kinds = rng.sample(KINDS, len(KINDS))
        counts.update(o.disruption.kind for o in choose_orders(made, kinds))
    # 1,800 orders over six kinds; the standard deviation of each count is about 12.
    assert all(abs(counts[kind] - 300) < 60 for kind in KINDS)


SENTENCES = st.lists(
    st.text("abc 桥。", min_size=1, max_size=30).map(lambda s: f"{s.strip() or 'x'}."), min_size=1, max_size=8
)


@given(SENTENCES, st.integers(1, 120))
def test_a_cut_text_fits_and_is_a_beginning(sentences: list[str], tokens: int) -> None:
    whole = Document(id="d", text=" ".join(sentences))
    short, cut = cut_document(whole, tokens, len)
    assert whole.text.startswith(short.text)
    assert len(short.text) <= tokens or not cut
    assert cut == (short.text != whole.text)


def test_texts_are_cut_at_the_end_of_a_sentence() -> None:
    text = Document(id="d", text="One two three. Four five six! Seven eight nine?")
    assert cut_document(text, 30, len)[0].text == "One two three. Four five six!"
    assert cut_document(text, 13, len)[0].text == "One two"
    chinese = Document(id="d", text="一二三。四五六。七八九。")
    assert cut_document(chinese, 9, len)[0].text == "一二三。四五六。"
    titled = Document(id="d", title="Title", text="One two. Three four.")
    assert cut_document(titled, 16, len)[0].text == "One two."


def test_schemas_leave_nothing_without_bounds() -> None:
    prompts = Prompts(limits=Limits(sentence_characters=50, passage_characters=90, candidates=2))
    schemas = [prompts.analysis_schema, *prompts.negatives_schemas, prompts.rewrite_schema]
    seen: Counter[str] = Counter()

    def walk(schema: object) -> None:
        if isinstance(schema, dict):
            seen.update([str(schema.get("type"))])
            if schema.get("type") == "string":
                assert "enum" in schema or schema["maxLength"] in (50, 90)
            if schema.get("type") == "array":
                assert schema["maxItems"] in (3, 8)
            if schema.get("type") == "integer":
                assert (schema["minimum"], schema["maximum"]) == (0, 2)
            if schema.get("type") == "object":
                assert schema["required"] == list(schema["properties"])
                assert schema["additionalProperties"] is False
            for value in schema.values():
                walk(value)
        elif isinstance(schema, list):
            for value in schema:
                walk(value)

    walk(schemas)
    assert min(seen[kind] for kind in ("string", "array", "integer", "object")) > 0
    assert [len(schema["properties"]) for schema in prompts.negatives_schemas] == [1, 2, 3]


def test_a_text_that_has_a_key_named_title_keeps_it() -> None:
    schema = Prompts().negatives_schemas[0]["$defs"]["Draft"]
    assert list(schema["properties"]) == ["passage", "change", "title", "text"]
    with pytest.raises(KeyError):
        bounded_schema(Analysis, characters=5)


def test_limits_that_cannot_be_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Limits(least_requirements=9, rewrite_tokens=0)
    assert caught.value.messages == (
        "rewrite_tokens: must be at least 1, got 0",
        "least_requirements: 9 is more than most_requirements, 8",
    )


def test_an_answer_without_a_negative_is_none() -> None:
    with pytest.raises(ValueError, match="there is no negative"):
        Drafts.model_validate({"hello": 1})
