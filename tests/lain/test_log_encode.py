"""Rows to be scored, encoded by the vocabularies of a prepared log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from common.errors import DataError
from lain.cli import main
from lain.data.store import Store
from lain.formats.log import load_schema, prepare_log
from lain.formats.log.encode import EncodedRows, encode_rows, keep_encoding
from lain.formats.tables import Progress

SCHEMA = """
columns: {user: who, item: what, time: when, label: clicked}
ids: {user: true}
features:
  topic: {source: item, kind: list, separator: "|", min_count: 1}
  image: {source: item, kind: vector, separator: " "}
  age: {source: user, kind: numeric}
  place: {min_count: 1}
  price: {kind: buckets, buckets: 4}
  hour: {kind: hour}
items: [{file: items.csv, key: what}]
history: {events: clicked == 1, columns: {place: {min_count: 1}}}
splits: {by: time, fractions: [0.6, 0.2, 0.2]}
"""


def make(folder: Path, seed: int = 0) -> tuple[Path, pl.DataFrame]:
    """A prepared log, and its rows."""
    rng = np.random.default_rng(seed)
    rows = 240
    user = rng.integers(9, size=rows)
    log = pl.DataFrame({
        "who": [f"u{u}" for u in user], "what": rng.integers(15, size=rows),
        "when": 1_700_000_000 + np.sort(rng.choice(100_000, rows, replace=False)),
        "clicked": rng.integers(2, size=rows), "age": 20 + user * 5,
        "place": [["a", "b", None][n] for n in rng.integers(3, size=rows)],
        "price": rng.normal(size=rows).round(2),
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    items = {"what": range(15), "topic": [f"t{n % 4}|t{n % 3}" for n in range(15)], "image": ["0.5 -1"] * 15}
    pl.DataFrame(items).write_csv(folder / "items.csv")
    log.write_csv(folder / "log.csv")
    (folder / "log.yaml").write_text(SCHEMA)
    prepare_log(folder / "log.csv", folder / "data", load_schema(folder / "log.yaml"), Progress(False))
    return folder / "data", log


def seen(store: Store, split: str, row: int) -> dict[str, Any]:
    """All that a model reads of a row."""
    rows = store.split(split)
    item, user, end = int(rows.item[row]), int(rows.user[row]), int(rows.end[row])
    begin = int(store.histories.offsets[user])
    history = store.histories.values[begin : begin + end]
    return {
        "item": {name: table[item].tolist() for name, table in store.items.items()},
        "user": {name: table[user].tolist() for name, table in store.users.items()},
        "context": {name: values[row].tolist() for name, values in rows.context.items()},
        "history": {name: table[history].tolist() for name, table in store.items.items()},
        "behaviours": {
            name: values[begin : begin + end].tolist() for name, values in store.behaviours.items()
        },
        "length": int(rows.length[row]),
    }


def as_prepared(store: Store, log: pl.DataFrame, encoded: EncodedRows) -> None:
    """The encoded rows are the test rows of the prepared set, to the last number."""
    new, test = Store.open(encoded.path), store.split("test")
    new.verify()
    assert new.features == store.features
    assert len(test) == len(encoded.number) == 48
    assert encoded.user.to_list() == log["who"].gather(encoded.number).to_list()
    assert encoded.item.to_list() == log["what"].gather(encoded.number).cast(pl.String).to_list()
    for row in range(len(test)):
        assert seen(new, "rows", row) == seen(store, "test", row)
    assert any(seen(store, "test", row)["length"] for row in range(len(test)))


@pytest.mark.parametrize("where", ["prepared", "run"])
def test_equal_to_the_test_rows(tmp_path: Path, where: str) -> None:
    """Unlabelled rows with the earlier ones as a history; of a run the data and the item table are gone."""
    data, log = make(tmp_path)
    store = Store.open(data)
    first = int(store.split("test").context["time"].min())
    past, rows = log.filter(pl.col("when") < first), log.filter(pl.col("when") >= first)
    both = pl.concat(
        [log.filter(pl.col("when") < first), rows.with_columns(clicked=None)], how="vertical_relaxed"
    )
    both.write_csv(tmp_path / "new.csv")
    encoding = data
    if where == "run":
        (tmp_path / "run").mkdir()
        keep_encoding(store, tmp_path / "run")
        (tmp_path / "items.csv").unlink()
        encoding = tmp_path / "run"
    # clicks of the test rows themselves are unknown here, so compare with a log in which they did not happen
    quiet = log.with_columns(
        pl.when(pl.col("when") >= first).then(0).otherwise(pl.col("clicked")).alias("clicked")
    )
    quiet.write_csv(tmp_path / "log.csv")
    if where == "run":
        items = {
            "what": range(15),
            "topic": [f"t{n % 4}|t{n % 3}" for n in range(15)],
            "image": ["0.5 -1"] * 15,
        }
        pl.DataFrame(items).write_csv(tmp_path / "items.csv")
    prepare_log(tmp_path / "log.csv", tmp_path / "quiet", load_schema(tmp_path / "log.yaml"), Progress(False))
    if where == "run":
        (tmp_path / "items.csv").unlink()
    wanted = Store.open(tmp_path / "quiet")
    as_prepared(wanted, both, encode_rows(encoding, tmp_path / "new.csv", tmp_path / "a", part_rows=50))
    rows.drop("clicked", "age").write_csv(tmp_path / "rows.csv")
    past.write_csv(tmp_path / "past.csv")
    apart = encode_rows(encoding, tmp_path / "rows.csv", tmp_path / "b", history=tmp_path / "past.csv")
    as_prepared(wanted, rows, apart)


def test_what_is_new_is_unknown(tmp_path: Path) -> None:
    data, _ = make(tmp_path)
    (tmp_path / "rows.csv").write_text(
        "who,what,when,place,price\nnobody,unheard,1700200000,c,1e9\nu1,3,1700200000,,\n"
    )
    encoded = encode_rows(data, tmp_path / "rows.csv", tmp_path / "out")
    rows = Store.open(encoded.path)
    order = encoded.number.argsort()
    assert encoded.user[order].to_list() == ["nobody", "u1"]
    new, old = (seen(rows, "rows", int(row)) for row in order)
    assert new["item"] == {
        "item": 1,
        "topic": [1, 1] if new["item"]["topic"][1] else [2, 0],
        "image": [0.0, 0.0],
    }
    assert new["user"]["user"] == 1
    assert new["user"]["age"] == [0.0, 1.0]
    assert (new["context"]["place"], old["context"]["place"]) == (1, 2)
    assert (new["context"]["price"], old["context"]["price"]) == (6, 2)
    assert old["item"]["item"] > 2
    assert old["item"]["image"] == [0.5, -1.0]
    assert old["user"]["age"][1] == 0


def test_a_run_scores_a_log_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlabelled rows, the data and their folder gone, from another directory; equal to the test scores."""
    data, log = make(tmp_path / "work")
    store = Store.open(data)
    first = int(store.split("test").context["time"].min())
    quiet = log.with_columns(
        pl.when(pl.col("when") >= first).then(0).otherwise(pl.col("clicked")).alias("clicked")
    )
    quiet.write_csv(tmp_path / "work" / "log.csv")
    schema = load_schema(tmp_path / "work" / "log.yaml")
    prepare_log(tmp_path / "work" / "log.csv", data, schema, Progress(False))
    (tmp_path / "train.yaml").write_text(
        f"data: {data}\nout: {tmp_path / 'runs'}\nhistory: {{columns: [place, gap]}}\n"
    )
    run = CliRunner()
    settings = ["fit.epochs=1", "fit.accelerator=cpu", "tracking.wandb=disabled", "fit.progress=false"]
    trained = run.invoke(main, ["train", str(tmp_path / "train.yaml"), *settings])
    assert trained.exit_code == 0, trained.output
    folder = Path(trained.stdout.splitlines()[-1])
    own = pl.read_parquet(folder / "predictions" / "test.parquet")
    times = np.asarray(Store.open(data).split("test").context["time"])
    wanted = own.with_columns(when=pl.Series(times)).sort("when")
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.filter(pl.col("when") >= first).drop("clicked").write_csv("rows.csv")
    log.filter(pl.col("when") < first).write_csv("past.csv")
    result = run.invoke(main, ["predict", str(folder), "rows.csv", "scores.parquet", "--history", "past.csv"])
    assert result.exit_code == 0, result.output
    assert result.stdout == "scores.parquet\n"
    found = pl.read_parquet("scores.parquet")
    assert (
        found["user"].to_list() == log.filter(pl.col("when") >= first)["who"].to_list()
    )  # rows are in time order
    np.testing.assert_allclose(found["score"], wanted["score"], rtol=0, atol=1e-7)
    assert found["length"].to_list() == wanted["length"].to_list()
    assert sorted(entry.name for entry in Path().iterdir()) == ["past.csv", "rows.csv", "scores.parquet"]


def test_other_data_have_no_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keeps no encoding of raw values"):
        encode_rows(tmp_path, tmp_path / "rows.csv", tmp_path / "out")


def test_a_missing_column_of_the_row_is_one_line(tmp_path: Path) -> None:
    data, _ = make(tmp_path)
    (tmp_path / "rows.csv").write_text("who,what,when,plce,price\nu1,3,1700200000,a,1\n")
    with pytest.raises(DataError, match=r"column 'place' is missing; did you mean 'plce'\?") as caught:
        encode_rows(data, tmp_path / "rows.csv", tmp_path / "out")
    assert len(caught.value.messages) == 1
    assert not (tmp_path / "out").exists()
