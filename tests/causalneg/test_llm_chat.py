from __future__ import annotations

import gc
import json
import string
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from causalneg.data.schema import Analysis
from causalneg.generation.verification.llm_judge import Judgement
from causalneg.generation.writers.prompts import Drafts, Rewritten
from causalneg.llm.answers import Attempts, BadAnswerError, read_answer
from causalneg.llm.chat import (
    ChatFailure,
    ChatRequest,
    ChatResult,
    Message,
    estimate_tokens,
    is_failure_kind,
)

ANALYSIS = {
    "core_need": "who built it",
    "how_met": "it names the builder",
    "answer_boundary": "a name",
    "requirements": [
        {
            "text": "It is about the bridge.",
            "facet": "entity",
            "critical": True,
            "disruptions": [{"kind": "entity shift", "instruction": "Take the tower."}],
        },
        {"text": "It is short.", "facet": "style", "critical": False, "disruptions": []},
    ],
}
RIGHT = json.dumps(ANALYSIS)


class Small(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    numbers: list[int]


@pytest.mark.parametrize(
    "text",
    [
        f"Sure {{of course}}:\n{RIGHT}\nAnything else?",
        f"```json\n{RIGHT}\n```",
        f"<think>I could say {{}} or {RIGHT[:40]}</think>\n{RIGHT}",
        RIGHT.replace("}]", "},]").replace('ower."}', 'ower.",}'),
        RIGHT.replace("entity shift", "Entity_Shift"),
        RIGHT.replace('"a name"', '"a name", "confidence": 0.9'),
    ],
)
def test_an_answer_is_found_through_what_models_put_around_it(text: str) -> None:
    value, repaired = read_answer(text, Analysis)
    assert repaired
    assert value == Analysis.model_validate(ANALYSIS)


@pytest.mark.parametrize(
    "around",
    [
        "The passage holds {quoted}, which is part of it. My verdict:\n{answer}",
        "<think>it says {quoted}</think>{answer}",
        # The template has opened the reasoning already, as those of some thinking models do.
        "A first try: {quoted}\nNo, that is wrong.\n</think>\n\n{answer}",
        "It says ```json\n{quoted}\n``` and so:\n```json\n{answer}\n```",
        "<think>one</think> {quoted} <think>two</think> {answer} {{done}}",
    ],
)
def test_the_last_complete_answer_behind_the_reasoning_counts(around: str) -> None:
    quoted = '{"reason": "x", "verdict": "related"}'
    answer = '{"reason": "It names the year.", "verdict": "answers"}'
    value, _ = read_answer(around.format(quoted=quoted, answer=answer), Judgement)
    assert value == Judgement(reason="It names the year.", verdict="answers")


def test_a_draft_of_reasoning_that_was_cut_off_is_no_answer() -> None:
    text = 'First {"text": "a draft"} comes to mind, but'
    with pytest.raises(BadAnswerError) as caught:
        read_answer(text, Rewritten, cut=True, salvage=True)
    assert caught.value.kind == "cut answer"
    # The same said in full is a model that talks around its answer.
    assert read_answer(text, Rewritten) == (Rewritten(text="a draft"), True)


def test_what_is_right_is_taken_as_it_is() -> None:
    assert read_answer(RIGHT, Analysis) == (Analysis.model_validate(ANALYSIS), False)


def test_bare_line_breaks_in_strings_are_text() -> None:
    value, repaired = read_answer('{"text": "one\ntwo"}', Rewritten)
    assert (value, repaired) == (Rewritten(text="one\ntwo"), False)


def test_an_item_that_cannot_be_is_left_out_and_the_others_stay() -> None:
    wrong = json.loads(RIGHT)
    wrong["requirements"].append({"text": "no facet"})
    wrong["requirements"][0]["disruptions"].append({"kind": "sabotage", "instruction": "?"})
    assert read_answer(json.dumps(wrong), Analysis)[0] == Analysis.model_validate(ANALYSIS)


@pytest.mark.parametrize(
    ("text", "cut", "kind"),
    [
        ("", False, "empty answer"),
        ("<think>hm", False, "empty answer"),
        ("<think>hm", True, "cut answer"),
        ("No idea.", False, "not json"),
        (RIGHT[: len(RIGHT) // 2], True, "cut answer"),
        (RIGHT[: len(RIGHT) // 2], False, "cut answer"),
        ('{"answer": 42}', False, "wrong schema"),
        (json.dumps(ANALYSIS | {"requirements": "none"}), False, "wrong schema"),
    ],
)
def test_what_is_no_answer_says_why(text: str, cut: bool, kind: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        read_answer(text, Analysis, cut=cut)
    assert caught.value.kind == kind


@pytest.mark.parametrize("shape", [Analysis, Drafts, Rewritten])
def test_nothing_of_a_wrong_answer_stays_in_memory(shape: type[BaseModel]) -> None:
    class Call:
        pass

    def ask(call: Call) -> None:
        with pytest.raises(BadAnswerError):
            read_answer('{"answer": 42}', shape)

    call = Call()
    left = weakref.ref(call)
    ask(call)
    del call
    gc.collect()
    assert left() is None


def test_of_a_cut_answer_the_whole_parts_are_kept_when_asked_for() -> None:
    drafts = {
        f"negative_{n}": {"passage": 0, "change": "c", "title": "", "text": f"text {n}."} for n in (1, 2)
    }
    text = json.dumps(drafts)
    cut = text[: text.index("text 2") + 4]
    with pytest.raises(BadAnswerError):
        read_answer(cut, Drafts, cut=True)
    value, repaired = read_answer(cut, Drafts, cut=True, salvage=True)
    assert isinstance(value, Drafts)
    assert repaired
    found = value.in_order()
    assert found[0] is not None
    assert found[0].text == "text 1."
    # Half of a passage is no passage.
    assert found[1:] == [None, None]


@given(st.text(max_size=60), st.lists(st.integers(), max_size=4), st.text(string.printable, max_size=40))
def test_whatever_the_text_around_it_an_answer_with_the_shape_comes_back(
    name: str, numbers: list[int], around: str
) -> None:
    prose = around.replace("{", "(").replace("`", "'").replace("<", "(")
    value, _ = read_answer(f"{prose}{json.dumps({'name': name, 'numbers': numbers})}{prose}", Small)
    assert value == Small(name=name, numbers=numbers)


@given(st.text(max_size=200))
def test_any_text_is_an_answer_or_a_reason(text: str) -> None:
    asked = Attempts(request(), most=1)
    outcome = asked.settle(text, cut=False, prompt_tokens=0, completion_tokens=0)
    assert isinstance(outcome, ChatFailure)
    assert is_failure_kind(outcome.kind)


def request() -> ChatRequest:
    return ChatRequest("k", (Message("user", "?"),), Rewritten, {}, max_tokens=10, seed=5)


def test_a_cut_answer_is_asked_for_again_with_room_and_its_tokens_are_counted() -> None:
    asked = Attempts(request(), most=3)
    assert asked.settle('{"text": "on', cut=True, prompt_tokens=7, completion_tokens=10) is None
    assert asked.request.max_tokens == 20
    assert asked.request.seed != 5
    assert asked.request.temperature > 0
    outcome = asked.settle('{"text": "once"}', cut=False, prompt_tokens=7, completion_tokens=4)
    assert outcome == ChatResult("k", Rewritten(text="once"), 14, 14, attempts=2)


def test_attempts_come_to_an_end() -> None:
    asked = Attempts(request(), most=2)
    assert asked.settle("no", cut=False, prompt_tokens=1, completion_tokens=1) is None
    outcome = asked.settle("no", cut=False, prompt_tokens=1, completion_tokens=1)
    assert isinstance(outcome, ChatFailure)
    assert (outcome.kind, outcome.attempts, outcome.completion_tokens) == ("not json", 2, 2)


def test_tokens_are_estimated_on_the_long_side() -> None:
    assert estimate_tokens("The bridge was built by a company from the city.") >= 11
    assert estimate_tokens("这座桥是谁建的") >= 7
