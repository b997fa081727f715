"""A trained run as a function, equal to `lain predict` to the last bit."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from common.errors import DataError
from lain import Scorer
from lain.backbones import BACKBONES
from lain.data.store import Store
from lain.serving.scorer import UserMemory
from tiny_log import lain, make_log_run, train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scorer") / "world"
    lain("world", out, "--users", 20, "--seed", 3)
    return out


@pytest.fixture(scope="module")
def twin(world: Path) -> Path:
    return train(world, "name=twin")


@pytest.fixture(scope="module")
def scorer(twin: Path) -> Scorer:
    return Scorer(twin)


def as_rows(scorer: Scorer, store: Store) -> tuple[list[UserMemory], list[list[int]], list[dict[str, Any]]]:
    """All test rows as requests, each user's memory made once for each history."""
    rows = store.split("test")
    memories: dict[tuple[int, int], UserMemory] = {}
    owners = list(zip(rows.user.tolist(), rows.end.tolist(), strict=True))
    for (user, end), length in zip(owners, rows.length, strict=True):
        if (user, end) not in memories:
            history = store.histories[user][:end]
            memories[user, end] = scorer.encode(history, user=user, length=int(length))
    asked = [memories[owner] for owner in owners]
    contexts = [{n: v[i] for n, v in rows.context.items()} for i in range(len(rows))]
    return asked, [[int(item)] for item in rows.item], contexts


@pytest.mark.parametrize("preset", ["base", "lain"])
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_equal_to_predict_to_the_last_bit(world: Path, backbone: str, preset: str) -> None:
    """Each user read alone, without the data; predict reads all histories of a batch together."""
    run = train(world, f"model.name={backbone}", f"length.preset={preset}", f"name={backbone}-{preset}")
    out = run.parent / "scores.parquet"
    lain("predict", run, world, "--out", out)
    found = np.concatenate(Scorer(run).score_many(*as_rows(Scorer(run), Store.open(world))))
    wanted = pl.read_parquet(out)["score"].to_numpy()
    assert len(np.unique(wanted)) > len(wanted) / 2
    assert found.dtype == np.float64
    assert found.tobytes() == wanted.tobytes()


def test_eight_threads_score_as_one(scorer: Scorer, world: Path) -> None:
    memories, items, contexts = as_rows(scorer, Store.open(world))
    requests = list(zip(memories, items, contexts, strict=True))[:50]
    alone = [scorer.score(*request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: scorer.score(*request), requests * 4))
    assert np.array_equal(np.concatenate(together), np.concatenate(alone * 4))


def test_a_thousand_candidates_are_a_thousand_requests(scorer: Scorer, world: Path) -> None:
    store = Store.open(world)
    rows = store.split("test")
    memory = scorer.encode(store.histories[0], user=0)
    context = {name: values[0] for name, values in rows.context.items()}
    items = np.arange(1, store.num_items)
    many = scorer.score(memory, items, context)
    each = np.concatenate([scorer.score(memory, [i], context) for i in items[:40]])
    np.testing.assert_allclose(many[:40], each, rtol=1e-5)
    per_row = {name: [value] * len(items) for name, value in context.items()}
    assert np.array_equal(scorer.score(memory, items, per_row), many)
    assert scorer.score(memory, [], context).tolist() == []


def test_only_the_end_of_a_history_is_read_and_its_true_length_counts(scorer: Scorer, world: Path) -> None:
    store = Store.open(world)
    history = np.resize(store.histories[0], 200)
    context = {name: values[0] for name, values in store.split("test").context.items()}
    whole = scorer.score(scorer.encode(history, user=0), [1, 2, 3], context)
    cut = scorer.score(scorer.encode(history[-60:], user=0, length=200), [1, 2, 3], context)
    assert np.array_equal(whole, cut)
    nothing = scorer.score(scorer.encode([], user=0), [1, 2, 3], context)
    assert np.isfinite(nothing).all()
    assert not np.array_equal(nothing, whole)


def test_mistakes_are_one_line(scorer: Scorer, world: Path) -> None:
    store = Store.open(world)
    context = {name: values[0] for name, values in store.split("test").context.items()}
    memory = scorer.encode([1, 2], user=0)
    name = next(iter(context), "")
    for request, line in (
        (lambda: scorer.encode([1, 10**9], user=0), f"item: .* 1 to {store.num_items - 1}, got 1000000000"),
        (lambda: scorer.encode([0], user=0), "item: .*got 0"),
        (lambda: scorer.encode(["a"], user=0), "item: .*a whole number, got 'a'"),
        (lambda: scorer.encode([1, 2], user=0, length=1), "length: 1, but the history has 2 behaviours"),
        (lambda: scorer.encode([1], user=0, columns={"hour": [1]}), "columns: 'hour' is not one of none"),
        (lambda: scorer.score(memory, [1.5], context), "a whole number, got 1.5"),
        (lambda: scorer.score(memory, [1], context | {f"{name}x": 1}), "context: '.*' is not one of"),
        (lambda: scorer.score_many([memory], [], [context]), "1 memories, 0 lists of candidates"),
    ):
        with pytest.raises(DataError, match=line) as caught:
            request()
        assert len(caught.value.messages) == 1


@pytest.fixture(scope="module")
def log_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    """A run on a log of raw ids, whose data are gone, and that log."""
    return make_log_run(tmp_path_factory.mktemp("log"), "fit.max_steps=20")


def test_raw_ids_score_as_lain_predict(log_run: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    """Ids, users and values of the log itself, new ones among them, against the command."""
    run, log = log_run
    past, rows = log.head(240), log.tail(60).drop("clicked")
    new = rows.tail(2).with_columns(
        what=pl.lit(99, pl.Int64), who=pl.lit("nobody"), place=pl.lit("c"), age=pl.lit(33, pl.Int64)
    )
    rows = pl.concat([rows.head(58), new])
    past.write_csv(tmp_path / "past.csv")
    rows.write_csv(tmp_path / "rows.csv")
    out = tmp_path / "scores.parquet"
    lain("predict", run, tmp_path / "rows.csv", out, "--history", tmp_path / "past.csv", "--quiet")
    wanted = pl.read_parquet(out)
    scorer = Scorer(run)
    memories = {}
    for who in rows["who"].unique():
        own = past.filter((pl.col("who") == who) & (pl.col("clicked") == 1))
        columns = {"place": own["place"].to_list(), "when": own["when"].to_list()}
        memories[who] = scorer.encode(own["what"].to_list(), user=who, columns=columns)
    contexts = rows.select("place", "price", "when", "age").to_dicts()
    contexts = [{k: v for k, v in c.items() if k != "age" or v is not None} for c in contexts]
    found = scorer.score_many([memories[who] for who in rows["who"]], [[i] for i in rows["what"]], contexts)
    assert wanted["length"].to_list() == [memories[who].length for who in rows["who"]]
    assert len(wanted["score"].unique()) > 50
    assert np.concatenate(found).tobytes() == wanted["score"].to_numpy().tobytes()


def test_one_id_whatever_its_type(log_run: tuple[Path, pl.DataFrame]) -> None:
    scorer = Scorer(log_run[0])
    context = {"place": "a", "price": 0.5, "when": 1_700_100_000}
    columns: dict[str, Any] = {"place": ["a", None], "when": [1_700_000_000, 1_700_000_100]}
    memory = scorer.encode(["3", "4"], user="u1", columns=columns)
    wanted = scorer.score(memory, ["7", "unheard"], context)
    for seven in (7, 7.0, np.int32(7)):
        assert np.array_equal(scorer.score(memory, [seven, "unheard"], context), wanted)
    assert wanted[0] != wanted[1]
    assert np.array_equal(scorer.score(memory, ["new", 123456], context)[1:], wanted[1:])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"price": "dear"}, "context: column 'price', .*row 1.*dear"),
        ({"prize": 1}, "context: 'prize' is not one of .*did you mean 'price'"),
        ({"place": ["a", "b"]}, "context: 'place' has 2 values for 1 rows"),
        ({"when": "noon"}, "context: column 'when', row 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(
    log_run: tuple[Path, pl.DataFrame], change: dict[str, Any], line: str
) -> None:
    scorer = Scorer(log_run[0])
    memory = scorer.encode([], user="u1", columns={"place": [], "when": []})
    context = {"place": "a", "price": 0.5, "when": 1_700_100_000} | change
    with pytest.raises(DataError) as caught:
        scorer.score(memory, ["7"], context)
    assert any(re.search(line, message) for message in caught.value.messages), caught.value.messages


def test_a_run_that_keeps_no_items_takes_the_data(twin: Path, world: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(twin, old)
    shutil.rmtree(old / "catalog")
    with pytest.raises(DataError, match="give the prepared data set too"):
        Scorer(old)
    requests = as_rows(Scorer(twin), Store.open(world))
    wanted = np.concatenate(Scorer(twin).score_many(*requests))
    assert np.array_equal(np.concatenate(Scorer(old, data=world).score_many(*requests)), wanted)
