"""`lain prepare log`: against a slow reading of the same log, row by row, in plain Python."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lain.cli import main
from lain.data.store import Store
from lain.formats import prepare
from lain.formats.log import load_schema, prepare_log
from lain.formats.log.vocabulary import stable_hash
from lain.formats.tables import Progress

Log = list[dict[str, Any]]

SCHEMA = """
columns: {user: who, item: what, time: when, label: clicked}
features:
  topic: {source: item}
  country: {source: user, min_count: 1}
  place: {kind: categorical, min_count: 3}
  price: {kind: numeric}
  hour: {kind: hour}
  words: {kind: list, separator: "|", min_count: 1}
history:
  events: clicked == 1 or place == "shelf"
  columns: {place: {min_count: 1}}
splits: {by: time, fractions: [0.6, 0.2, 0.2]}
"""


def log(seed: int = 0, rows: int = 300, users: int = 12, items: int = 25) -> Log:
    """Rows with ties, missing values, and ids that are no numbers."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        user, item = int(rng.integers(users)), int(rng.integers(items))
        found.append(
            {
                "who": f"kund:in {user}", "what": f"№{item}",
                "when": 1_700_000_000 + int(rng.integers(rows // 2)) * 977,
                "clicked": int(rng.integers(2)), "topic": ["a", "b", "ü", ""][item % 4],
                "country": ["de", "", "fr"][user % 3],
                "place": ["shelf", "top", "", "rare"][int(rng.integers(100)) // 33],
                "price": "" if rng.random() < 0.1 else f"{rng.normal(5, 2):.2f}",
                "words": "|".join(f"w{w}" for w in rng.integers(5, size=rng.integers(4))),
            }
        )  # fmt: skip
    return found


def write_csv(path: Path, rows: Log) -> Path:
    pl.DataFrame(rows).write_csv(path)
    return path


def prepared(tmp_path: Path, rows: Log, schema: str = SCHEMA, *, part_rows: int = 1_000_000) -> Store:
    tmp_path.mkdir(parents=True, exist_ok=True)
    (tmp_path / "log.yaml").write_text(schema)
    source, out = write_csv(tmp_path / "log.csv", rows), tmp_path / "out"
    prepare_log(source, out, load_schema(tmp_path / "log.yaml"), Progress(False), part_rows=part_rows)
    store = Store.open(out)
    store.verify()
    return store


def raw(store: Store, name: str) -> list[str]:
    """The values that the indices of items or users stand for."""
    table = pl.read_parquet(store.vocabularies[name])
    assert table["code"].to_list() == list(range(table["code"][0], table["code"][0] + len(table)))
    return [""] * int(table["code"][0]) + table["value"].to_list()


def decode(store: Store, name: str, codes: np.ndarray) -> list[Any]:
    """Ids as the raw values; OOV, missing and padding in words."""
    table = pl.read_parquet(store.vocabularies[name])
    words = {0: "<pad>", 1: "<oov>", 2: None} | dict(zip(table["code"], table["value"], strict=True))
    return [words[int(code)] for code in codes]


class Naive:
    """The same log by hand."""

    def __init__(self, rows: Log) -> None:
        times = sorted(row["when"] for row in rows)
        self.valid_from, self.test_from = (times[round(share * len(rows))] for share in (0.6, 0.8))
        self.rows = rows
        self.train = [row for row in rows if self.split(row) == "train"]
        self.item_tie = {
            item: int(stable_hash(pl.Series([item]), 0)[0]) for item in {r["what"] for r in rows}
        }

    def split(self, row: dict[str, Any]) -> str:
        when = row["when"]
        return "test" if when >= self.test_from else "valid" if when >= self.valid_from else "train"

    def history(self, row: dict[str, Any]) -> list[tuple[str, Any]]:
        mine = [
            r for r in self.rows
            if r["who"] == row["who"] and r["when"] < row["when"] and (r["clicked"] or r["place"] == "shelf")
        ]  # fmt: skip
        mine.sort(key=lambda r: (r["when"], self.item_tie[r["what"]]))
        return [(r["what"], r["when"]) for r in mine]

    def kept(self, column: str, min_count: int) -> set[str]:
        count = Counter(row[column] for row in self.train if row[column] != "")
        return {value for value, n in count.items() if n >= min_count}


def coded(value: str, kept: set[str]) -> Any:
    return None if value == "" else value if value in kept else "<oov>"


def assert_same(store: Store, rows: Log) -> None:
    naive = Naive(rows)
    users, items = raw(store, "user_id"), raw(store, "item_id")
    prices = np.array([float(row["price"]) for row in naive.train if row["price"]])
    for name in ("train", "valid", "test"):
        wanted: dict[Any, list[Any]] = defaultdict(list)
        for row in rows:
            if naive.split(row) == name:
                price = (float(row["price"]) - prices.mean()) / prices.std() if row["price"] else 0.0
                place = coded(row["place"], naive.kept("place", 3))
                about: tuple[Any, ...] = (row["who"], row["what"], row["when"], row["clicked"], place)
                about += (round(price, 3), row["when"] // 3600 % 24, row["words"])
                wanted[about].append(naive.history(row))
        split = store.split(name)
        assert list(split.context["time"]) == sorted(split.context["time"])
        found: dict[Any, list[Any]] = defaultdict(list)
        places = decode(store, "place", split.context["place"])
        for n in range(len(split)):
            history = slice(store.histories.offsets[split.user[n]], None)
            sequence = store.histories.values[history][: split.end[n]]
            when = store.behaviours["time"][history][: split.end[n]]
            words = [w for w in decode(store, "words", split.context["words"][n]) if w != "<pad>"]
            price, missing = split.context["price"][n]
            assert missing in (0, 1)
            key: tuple[Any, ...] = (
                users[split.user[n]],
                items[split.item[n]],
                split.context["time"][n],
                split.label[n],
            )
            key += (places[n], round(float(price), 3), split.context["hour"][n] - 1)
            key += ("" if words == [None] else "|".join(words),)
            assert split.length[n] == split.end[n]
            found[key].append([(items[i], int(t)) for i, t in zip(sequence, when, strict=True)])
        assert found == wanted
    train_topics = naive.kept("topic", 2)
    topic = {row["what"]: coded(row["topic"], train_topics) for row in rows}
    assert decode(store, "topic", store.items["topic"][1:]) == [topic[item] for item in items[1:]]
    country = {row["who"]: coded(row["country"], naive.kept("country", 1)) for row in rows}
    assert decode(store, "country", store.users["country"]) == [country[user] for user in users]
    learned = naive.kept("what", 2)
    assert decode(store, "item", store.items["item"][1:]) == [coded(item, learned) for item in items[1:]]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), part_rows=st.sampled_from([7, 40, 1_000_000]), size=st.integers(60, 200))
def test_equals_a_slow_reading(
    tmp_path_factory: pytest.TempPathFactory, seed: int, part_rows: int, size: int
) -> None:
    """Whatever the number of parts on disk."""
    rows = log(seed, size)
    assert_same(prepared(tmp_path_factory.mktemp("log"), rows, part_rows=part_rows), rows)


def test_the_order_of_the_file_changes_nothing(tmp_path: Path) -> None:
    rows = log(3)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    first = prepared(tmp_path / "a", rows)
    assert prepared(tmp_path / "b", shuffled).fingerprint == first.fingerprint
    assert (
        prepared(tmp_path / "c", shuffled, part_rows=11).histories.values.tolist()
        == first.histories.values.tolist()
    )


def test_behaviours_of_one_moment_do_not_ascend(tmp_path: Path) -> None:
    """All behaviours of a user in one second: their order says nothing of file order or ids."""
    rows = [
        {"who": "u", "what": i, "when": 1_700_000_000, "clicked": 1, "split": "train"} for i in range(400)
    ]
    rows.append({"who": "u", "what": 5, "when": 1_700_000_001, "clicked": 0, "split": "train"})
    schema = """
columns: {user: who, item: what, time: when, label: clicked}
splits: {by: column, column: split}
"""
    store = prepared(tmp_path, rows, schema)
    sequence = np.asarray(store.histories.values[:400])
    assert sorted(sequence.tolist()) == list(range(1, 401))
    assert 0.4 < float((np.diff(sequence) > 0).mean()) < 0.6
    ends = [int(end) for name in store.splits for end in store.split(name).end]
    assert sorted(ends) == [0] * 400 + [400]


def test_from_a_log_to_a_trained_run(tmp_path: Path) -> None:
    """The whole way by the command line: propose, prepare, train, evaluate."""
    source = write_csv(tmp_path / "log.csv", log(1, 600))
    run = CliRunner()
    proposed = run.invoke(main, ["prepare", "log", str(source), "--propose"])
    assert proposed.exit_code == 2  # 'who' and 'what' are nobody's names for users and items
    names = {"who": "user_id", "what": "item_id", "when": "timestamp", "clicked": "is_click"}
    renamed = [{names.get(key, key): value for key, value in row.items()} for row in log(1, 600)]
    write_csv(source, renamed)
    proposed = run.invoke(main, ["prepare", "log", str(source), "--propose"])
    assert proposed.exit_code == 0, proposed.output
    schema = tmp_path / "log.yaml"
    schema.write_text(proposed.stdout)
    assert "topic: {source: item, kind: categorical}" in proposed.stdout
    result = run.invoke(
        main, ["prepare", "log", str(source), str(tmp_path / "data"), "--schema", str(schema)]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'data'}\n"
    config = tmp_path / "train.yaml"
    config.write_text(f"data: {tmp_path / 'data'}\nout: {tmp_path / 'runs'}\n")
    result = run.invoke(
        main,
        [
            "train",
            str(config),
            "fit.epochs=1",
            "fit.accelerator=cpu",
            "tracking.wandb=disabled",
            "fit.progress=false",
        ],
    )
    assert result.exit_code == 0, result.output
    record = json.loads((Path(result.stdout.splitlines()[-1]) / "record.json").read_text())
    assert 0 < record["metrics"]["test/auc"] < 1


def test_parquet_gives_the_same_as_text(tmp_path: Path) -> None:
    """A folder of Parquet files with typed columns, of which one has floats for ids, equals one CSV file."""
    rows = [{**row, "what": int(row["what"][1:])} for row in log(5)]
    text = prepared(tmp_path / "text", rows)
    frame = pl.DataFrame(rows).with_columns(
        pl.col("price").cast(pl.Float32, strict=False).cast(pl.Float64).round(2),
        *[pl.when(pl.col(c) != "").then(pl.col(c)).alias(c) for c in ("topic", "country", "place")],
    )
    folder = tmp_path / "parquet"
    folder.mkdir()
    frame[:100].with_columns(pl.col("what").cast(pl.Float64)).write_parquet(folder / "part-0.parquet")
    frame[100:].with_columns(pl.from_epoch("when")).write_parquet(folder / "part-1.parquet")
    (tmp_path / "log.yaml").write_text(SCHEMA)
    prepare("log", folder, tmp_path / "out", schema=tmp_path / "log.yaml")
    assert Store.open(tmp_path / "out").fingerprint == text.fingerprint
