"""Preparing public data sets: nothing lost, nothing from the future, every mistake one clear line."""

from __future__ import annotations

import bisect
import hashlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, DataError, UserError
from lain.cli import main
from lain.data.store import Store
from lain.formats import prepare
from lain.formats.kuairand import AGE_EDGES, DURATION_EDGES, ITEM_FEATURES, USER_FEATURES

SCHEMA = """
name: synthetic
columns: {label: is_click}
features:
  item_id: {source: item}
  cate: {source: item, size: 9, column: cate_id}
  image: {source: item, kind: vector}
  topics: {source: item, kind: list}
  age: {source: user}
  likes: {source: user, kind: list, width: 2}
  hour: {source: context, size: 24}
  words: {source: context, kind: list}
  mood: {source: context, kind: vector, width: 2}
"""
Frames = dict[str, pd.DataFrame]


def reczoo_frames(seed: int = 0, users: int = 5, items: int = 9, rows: int = 23) -> Frames:
    """All tables of a small source with every kind of feature."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(1, items, size=rng.integers(0, 7)) for _ in range(users)]

    def impressions(count: int) -> pd.DataFrame:
        user = rng.integers(users, size=count)
        return pd.DataFrame(
            {
                "user_index": user,
                "item_index": rng.integers(1, items, size=count),
                "seq_len": [int(rng.integers(0, len(sequences[u]) + 1)) for u in user],
                "is_click": rng.integers(2, size=count),
                "hour": rng.integers(24, size=count),
                "words": [rng.integers(1, 6, size=3) for _ in range(count)],
                "mood": [rng.normal(size=2).astype(np.float32) for _ in range(count)],
                "unused": "text",
            }
        )

    return {
        "item_info": pd.DataFrame(
            {
                "item_index": np.arange(items),
                "cate_id": rng.integers(9, size=items),
                "image": [rng.normal(size=4) for _ in range(items)],
                "topics": [rng.integers(1, 8, size=rng.integers(0, 4)) for _ in range(items)],
            }
        ),
        "user_info": pd.DataFrame(
            {
                "full_item_seq": sequences,
                "age": rng.integers(7, size=users),
                "likes": [rng.integers(1, 4, size=rng.integers(0, 5)) for _ in range(users)],
            }
        ),
        "train": impressions(rows),
        "valid": impressions(4),
        "test": impressions(6),
    }


def reczoo_folder(path: Path, frames: Frames, schema: str = SCHEMA) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_parquet(path / f"{name}.parquet")
    (path / "schema.yaml").write_text(schema)
    return path


def padded(lists: Iterable[Any], width: int) -> np.ndarray:
    return np.array([[*list(entries)[:width], *[0] * (width - len(entries))] for entries in lists])


def assert_holds(store: Store, frames: Frames) -> None:
    """The store holds exactly what the tables say."""
    items, users = frames["item_info"], frames["user_info"]
    expected = {
        "cate": items["cate_id"].to_numpy(),
        "image": np.stack(items["image"].tolist()).astype(np.float32),
        "topics": padded(items["topics"], max(map(len, items["topics"]))),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(store.items[name][1:], values[1:])
        assert not store.items[name][0].any()
    np.testing.assert_array_equal(store.users["age"], users["age"])
    np.testing.assert_array_equal(store.users["likes"], padded(users["likes"], 2))
    for user, sequence in enumerate(users["full_item_seq"]):
        np.testing.assert_array_equal(store.histories[user], sequence)
    for name in ("train", "valid", "test"):
        split, frame = store.split(name), frames[name]
        for column, values in {
            "user_index": split.user, "item_index": split.item, "seq_len": split.end, "is_click": split.label
        }.items():  # fmt: skip
            np.testing.assert_array_equal(values, frame[column])
        np.testing.assert_array_equal(split.length, split.end)
        np.testing.assert_array_equal(split.context["hour"], frame["hour"])
        np.testing.assert_array_equal(split.context["words"], np.stack(frame["words"].tolist()))
        np.testing.assert_array_equal(split.context["mood"], np.stack(frame["mood"].tolist()))


@given(st.integers(0, 10_000))
def test_reczoo_round_trip(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    frames = reczoo_frames(seed)
    folder = tmp_path_factory.mktemp("reczoo")
    store = Store.open(prepare("reczoo", reczoo_folder(folder / "source", frames), folder / "out"))
    assert_holds(store, frames)
    store.verify()
    assert store.name == "synthetic"
    found = {f.name: (f.size, f.width) for f in store.features}
    assert found["item_id"] == (9, 1)
    assert found["cate"] == (9, 1)
    assert found["image"] == (0, 4)
    assert found["age"] == (frames["user_info"]["age"].max() + 1, 1)
    assert found["hour"] == (24, 1)
    words = pd.concat([frames[name]["words"] for name in ("train", "valid", "test")])
    assert found["words"] == (np.stack(words.tolist()).max() + 1, 3)


def test_reczoo_reads_other_types_and_names(tmp_path: Path) -> None:
    """32-bit and unsigned integers, large and fixed-size lists, float labels, renamed columns."""
    frames = reczoo_frames()
    source = reczoo_folder(tmp_path / "source", frames)
    renamed = frames["train"].rename(columns={"is_click": "click", "seq_len": "before"})
    for name in ("train", "valid", "test"):
        table = pa.Table.from_pandas(frames[name].rename(columns={"is_click": "click", "seq_len": "before"}))
        types = {
            "user_index": pa.uint32(), "item_index": pa.int16(), "click": pa.float32(), "before": pa.int32(),
            "words": pa.list_(pa.int32(), 3), "mood": pa.large_list(pa.float64()),
        }  # fmt: skip
        for column, kind in types.items():
            position = table.column_names.index(column)
            table = table.set_column(position, column, table[column].cast(kind))
        pq.write_table(table, source / f"{name}.parquet", row_group_size=5)
    schema = tmp_path / "other.yaml"
    schema.write_text(SCHEMA.replace("{label: is_click}", "{label: click, length: before}"))
    store = Store.open(prepare("reczoo", source, tmp_path / "out", schema=schema))
    assert_holds(store, frames)
    assert len(renamed) == store.splits["train"]


def test_reczoo_without_valid(tmp_path: Path) -> None:
    frames = reczoo_frames()
    del frames["valid"]
    store = Store.open(prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out"))
    assert list(store.splits) == ["train", "test"]


def test_the_padding_item_needs_no_lists(tmp_path: Path) -> None:
    frames = reczoo_frames()
    for column in ("image", "topics"):
        frames["item_info"][column] = [None, *frames["item_info"][column][1:]]
    store = Store.open(prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out"))
    assert not store.items["image"][0].any()


def test_preparing_twice_gives_the_same_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = reczoo_folder(tmp_path / "source", reczoo_frames())
    first = Store.open(prepare("reczoo", source, tmp_path / "out")).fingerprint
    assert capsys.readouterr().err == ""
    again = Store.open(prepare("reczoo", source, tmp_path / "out", progress=True)).fingerprint
    assert again == first
    assert "train.parquet: 23 of 23 rows" in capsys.readouterr().err


def change(table: str, column: str, row: int, value: Any) -> Callable[[Frames], None]:
    """A change of one cell."""

    def apply(frames: Frames) -> None:
        values = frames[table][column].astype(object).tolist()
        values[row] = value
        whole = all(isinstance(v, int) for v in values)
        frames[table][column] = pd.Series(values, dtype="int64" if whole else "object").infer_objects()

    return apply


def drop(table: str, column: str) -> Callable[[Frames], None]:
    def apply(frames: Frames) -> None:
        frames[table] = frames[table].drop(columns=column)

    return apply


def as_text(table: str, column: str) -> Callable[[Frames], None]:
    def apply(frames: Frames) -> None:
        frames[table][column] = frames[table][column].astype(str)

    return apply


WRONG_TABLES: dict[str, tuple[Callable[[Frames], None], str]] = {
    "missing column": (drop("train", "seq_len"), r"train.parquet: column 'seq_len' is missing"),
    "near name": (
        lambda f: f.__setitem__("test", f["test"].rename(columns={"is_click": "is_clik"})),
        r"test.parquet: column 'is_click' is missing; did you mean 'is_clik'\?",
    ),
    "missing feature": (drop("item_info", "cate_id"), r"item_info.parquet: column 'cate_id' is missing"),
    "wrong type": (
        as_text("train", "item_index"),
        r"train.parquet: column 'item_index' must hold whole numbers, but its type is (large_)?string",
    ),
    "a number for a list": (
        lambda f: f["item_info"].__setitem__("topics", 1),
        r"column 'topics' must hold lists of whole numbers, but its type is int64",
    ),
    "item outside": (
        change("train", "item_index", 7, 9),
        r"train.parquet: column 'item_index', row 7: 9 is outside 1 to 8$",
    ),
    "padding item": (change("test", "item_index", 0, 0), r"column 'item_index', row 0: 0 is outside 1 to 8"),
    "user outside": (change("train", "user_index", 3, 5), r"column 'user_index', row 3: 5 is outside 0 to 4"),
    "seq_len beyond": (
        change("valid", "seq_len", 2, 99),
        r"valid.parquet: column 'seq_len', row 2: 99 is beyond the user's sequence of \d items",
    ),
    "negative seq_len": (change("valid", "seq_len", 2, -1), r"column 'seq_len', row 2: -1 is outside 0"),
    "label": (change("train", "is_click", 4, 2), r"column 'is_click', row 4: a label must be 0 or 1, got 2"),
    "label NaN": (change("train", "is_click", 4, None), r"column 'is_click', row 4: no value"),
    "item NaN": (change("train", "user_index", 4, None), r"must hold whole numbers|row 4: no value"),
    "category outside": (change("item_info", "cate_id", 2, 9), r"'cate_id', row 2: 9 is outside 0 to 8"),
    "list entry outside": (
        change("train", "words", 1, [1, -2, 3]),
        r"'words', row 1: \[ 1 -2  3\] has entries outside 0",
    ),
    "list entry missing": (
        change("train", "words", 1, [1, None, 3]),
        r"'words'(, row 1: a list with a missing entry| must hold lists of whole)",
    ),
    "no list": (change("user_info", "likes", 3, None), r"'likes', row 3: no list"),
    "vector width": (change("train", "mood", 2, [0.5]), r"'mood', row 2: a vector of 1 numbers instead of 2"),
    "infinite vector": (
        change("item_info", "image", 3, [1.0, float("inf"), 0.0, 1.0]),
        r"item_info.parquet: column 'image', row 3: a vector with a number that is not finite",
    ),
    "no vector": (change("item_info", "image", 3, None), r"'image', row 3: no list"),
    "sequence outside": (
        change("user_info", "full_item_seq", 1, [3, 12, 0]),
        r"user_info.parquet: column 'full_item_seq', row 1: item 12 is outside the item table \(1 to 8\)",
    ),
    "item order": (change("item_info", "item_index", 4, 5), r"'item_index', row 4: must be the row number"),
    "no rows": (
        lambda f: f.__setitem__("train", f["train"].iloc[:0]),
        r"train.parquet: has no rows",
    ),
    "reserved": (
        lambda f: f["item_info"].__setitem__("item_id", 1),
        r"column 'item_id' has the name of the item index",
    ),
}


@pytest.mark.parametrize("mistake", WRONG_TABLES)
def test_wrong_tables_are_one_line_and_nothing_is_written(tmp_path: Path, mistake: str) -> None:
    apply, line = WRONG_TABLES[mistake]
    frames = reczoo_frames(seed=1)
    apply(frames)
    source = reczoo_folder(tmp_path / "source", frames)
    with pytest.raises(DataError) as caught:
        prepare("reczoo", source, tmp_path / "made" / "out")
    matching = [message for message in caught.value.messages if re.search(line, message)]
    assert len(matching) == 1, caught.value.messages
    assert all("\n" not in message for message in caught.value.messages)
    made = tmp_path / "made"
    assert not made.exists() or list(made.iterdir()) == []


def test_not_a_number_is_one_line_in_labels_and_vectors(tmp_path: Path) -> None:
    """Written with Arrow, as pandas would make missing values of them."""
    source = reczoo_folder(tmp_path / "source", reczoo_frames())
    for name, column, values in (
        ("train", "is_click", [1.0, float("nan")] + [0.0] * 21),
        ("item_info", "image", [[0.5] * 4] * 8 + [[0.5, float("nan"), 0.5, 0.5]]),
    ):
        table = pq.read_table(source / f"{name}.parquet")
        table = table.set_column(table.column_names.index(column), column, pa.array(values))
        pq.write_table(table, source / f"{name}.parquet")
    with pytest.raises(DataError) as caught:
        prepare("reczoo", source, tmp_path / "out")
    vector, label = caught.value.messages
    assert vector.endswith("column 'image', row 8: a vector with a number that is not finite")
    assert label.endswith("column 'is_click', row 1: a label must be 0 or 1, got nan")


def test_many_bad_rows_are_one_line(tmp_path: Path) -> None:
    frames = reczoo_frames()
    frames["train"]["is_click"] = 7
    with pytest.raises(DataError, match=r"row 0: a label must be 0 or 1, got 7\S* \(and 22 more rows\)$"):
        prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out")


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    frames = reczoo_frames()
    for apply in (
        change("train", "is_click", 4, 2),
        change("train", "item_index", 4, 100),
        change("test", "seq_len", 1, 50),
        change("item_info", "cate_id", 2, 9),
    ):
        apply(frames)
    with pytest.raises(DataError) as caught:
        prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out")
    assert len(caught.value.messages) == 4


def test_a_missing_column_does_not_hide_a_wrong_value_elsewhere(tmp_path: Path) -> None:
    frames = reczoo_frames()
    for apply in (
        drop("train", "seq_len"),
        drop("item_info", "cate_id"),
        change("valid", "is_click", 2, 3),
        change("test", "item_index", 1, 100),
    ):
        apply(frames)
    with pytest.raises(DataError) as caught:
        prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out")
    wanted = (
        ("train.parquet", "column 'seq_len' is missing"),
        ("item_info.parquet", "column 'cate_id' is missing"),
        ("valid.parquet", "column 'is_click', row 2: a label must be 0 or 1, got 3"),
        ("test.parquet", "column 'item_index', row 1: 100 is outside 1 to"),
    )
    for message, (file, line) in zip(caught.value.messages, wanted, strict=True):
        assert f"{file}: {line}" in message
    assert not (tmp_path / "out").exists()


def test_a_missing_file_does_not_hide_a_mistake_in_the_schema(tmp_path: Path) -> None:
    source = reczoo_folder(tmp_path / "source", reczoo_frames(), SCHEMA.replace("is_click", "1.5"))
    (source / "test.parquet").unlink()
    with pytest.raises(ConfigError) as caught:
        prepare("reczoo", source, tmp_path / "out")
    assert len(caught.value.messages) == 2
    assert "test.parquet: missing" in caught.value.messages[0]
    assert "columns.label" in caught.value.messages[1]


def test_missing_columns_of_several_files_are_reported_together(tmp_path: Path) -> None:
    frames = reczoo_frames()
    for apply in (drop("train", "seq_len"), drop("user_info", "age"), as_text("test", "is_click")):
        apply(frames)
    with pytest.raises(DataError) as caught:
        prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out")
    assert len(caught.value.messages) == 3


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def scramble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:200] = b"\xff" * 192
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda p: p.with_name("user_info.parquet").unlink(),
            "user_info.parquet: missing; reczoo needs it in this folder",
        ),
        (lambda p: p.write_bytes(b""), r"train.parquet: not a Parquet file, or cut off"),
        (lambda p: p.write_text("user,item"), r"train.parquet: not a Parquet file, or cut off"),
        (lambda p: cut(p, 0.9), r"train.parquet: not a Parquet file, or cut off"),
        (scramble, r"train.parquet: damaged or cut off after row 0"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, damage: Callable[[Path], None], line: str) -> None:
    source = reczoo_folder(tmp_path / "source", reczoo_frames())
    damage(source / "train.parquet")
    with pytest.raises(DataError, match=line) as caught:
        prepare("reczoo", source, tmp_path / "out")
    assert len(caught.value.messages) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def refused(format: str, source: Path) -> list[str]:
    """The lines of a `lain prepare` that must end with exit code 2 and leave nothing, without the folder."""
    out = source.parent / "made" / "out"
    result = CliRunner().invoke(main, ["prepare", format, str(source), str(out), "--quiet"])
    assert result.exit_code == 2, result.output
    assert not out.parent.exists() or list(out.parent.iterdir()) == []
    return [line.removeprefix(f"error: {source}/") for line in result.stderr.splitlines()]


def test_a_damaged_file_does_not_hide_a_wrong_value_elsewhere(tmp_path: Path) -> None:
    frames = reczoo_frames()
    change("test", "is_click", 2, 3)(frames)
    source = reczoo_folder(tmp_path / "source", frames)
    scramble(source / "train.parquet")
    damaged, wrong = refused("reczoo", source)
    assert damaged.startswith("train.parquet: damaged or cut off after row 0")
    assert wrong == "test.parquet: column 'is_click', row 2: a label must be 0 or 1, got 3.0"


def test_two_damaged_files_are_reported_together(tmp_path: Path) -> None:
    source = reczoo_folder(tmp_path / "source", reczoo_frames())
    for name in ("train", "item_info"):
        cut(source / f"{name}.parquet", 0.5)
    with pytest.raises(DataError) as caught:
        prepare("reczoo", source, tmp_path / "out")
    assert len(caught.value.messages) == 2


@pytest.mark.parametrize("name", ["reczoo", "kuairand", "movielens"])
def test_a_missing_folder_says_what_is_needed(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"there is no such folder; {name} needs a folder with"):
        prepare(name, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"missing; {name} needs it in this folder") as caught:
        prepare(name, tmp_path / "empty", tmp_path / "out")
    assert len(caught.value.messages) >= 2


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = reczoo_folder(tmp_path / "source", reczoo_frames())
    with pytest.raises(DataError, match="cannot be written") as caught:
        prepare("reczoo", source, tmp_path / "file" / "out")
    assert len(caught.value.messages) == 1


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (("label: is_click", "lable: is_click"), ["columns.lable.*label", "columns.label: missing"]),
        (("source: user}", "source: usr}"), ["features.age.source: 'usr'.*did you mean 'user'"]),
        (("kind: vector}", "kind: vector, size: 4}"), ["size: a vector feature cannot have size"]),
        (("{source: item}", "{source: user}"), ["reserved"]),
        (("{source: item}", "{source: item, column: x}"), ["reserved for the item index"]),
        (("  hour:", "  age: {source: user}\n  hour:"), ["twice"]),
        (("size: 9", "size: many, knid: list"), ["size.*'many'", "cate.knid.*did you mean '.*kind'"]),
        (("source: item", "source: context"), ["at least one item feature"]),
        (("{label: is_click}", "[is_click"), ["not valid YAML"]),
    ],
)
def test_wrong_schemas_are_clear(tmp_path: Path, change: tuple[str, str], lines: list[str]) -> None:
    source = reczoo_folder(tmp_path / "source", reczoo_frames(), SCHEMA.replace(*change))
    with pytest.raises(ConfigError) as caught:
        prepare("reczoo", source, tmp_path / "out")
    for line in lines:
        assert any(re.search(line, message) for message in caught.value.messages), caught.value.messages
    assert not (tmp_path / "out").exists()


def test_a_missing_schema_is_one_line(tmp_path: Path) -> None:
    source = reczoo_folder(tmp_path / "source", reczoo_frames())
    (source / "schema.yaml").unlink()
    with pytest.raises(ConfigError, match=r"schema.yaml"):
        prepare("reczoo", source, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "options", "line"),
    [
        ("reczo", {}, "format: there is no format 'reczo'; did you mean 'reczoo'"),
        (
            "kuairand",
            {"schema": Path("a.yaml")},
            "format.schema: format 'kuairand' has no such setting; there are: format.valid_days",
        ),
        ("movielens", {"fractions": (0.5, 0.5, 0.5)}, "fractions: must be three shares of 1"),
        ("movielens", {"fractions": (0.0, 0.5, 0.5)}, "fractions: must be three shares of 1"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, arguments: str, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        prepare(arguments, tmp_path, tmp_path / "out", **options)


# ---------------------------------------------------------------------------------------- KuaiRand


def kuairand_frames(seed: int) -> Frames:
    """A small source with gaps in the ids, rows of the same moment, users without a past."""
    rng = np.random.default_rng(seed)
    users, videos = rng.choice(90, size=7, replace=False), rng.choice(200, size=11, replace=False) + 50
    noon = 1_650_900_000_000

    def exposures(days: list[int], count: int) -> pd.DataFrame:
        day = np.sort(rng.integers(len(days), size=count))
        return pd.DataFrame(
            {
                "user_id": rng.choice(users, size=count),
                "video_id": rng.choice(videos, size=count),
                "date": np.array(days)[day],
                "hourmin": (rng.integers(24, size=count) * 100).astype(np.int32),
                "time_ms": noon + (days[0] - 20220425 + day) * 86_400_000 + rng.integers(5, size=count),
                "is_click": rng.integers(2, size=count),
                "tab": rng.integers(4, size=count),
                "play_time_ms": 0,
            }
        )

    past = rng.choice(users, size=5, replace=False)
    watched = [rng.choice(videos, size=rng.integers(1, 6)) for _ in past]
    missing = rng.integers(4, size=11) == 0
    return {
        "val": exposures([20220425, 20220426, 20220427], 40),
        "test": exposures([20220428, 20220429], 30),
        "item_features": pd.DataFrame(
            {
                "video_id": videos,
                "author_id": rng.integers(6, size=11),
                "video_type": rng.choice(["NORMAL", "AD"], size=11),
                "upload_type": rng.choice(["Web", "Kmovie"], size=11),
                "upload_dt": rng.choice(["2022-04-10", "2022-04-24"], size=11),
                "music_type": np.where(missing, np.nan, 4.0),
                "video_duration": np.where(missing, np.nan, rng.integers(1, 400_000, size=11)),
                "tag": rng.choice(["unknown", "3", "12,3", "1,2,12"], size=11),
            }
        ),
        "user_features": pd.DataFrame(
            {"user_id": users, **{name: rng.integers(3, size=7) for name in USER_FEATURES}}
        ),
        "user_sequences": pd.DataFrame(
            {
                "user_id": past,
                "history_len": [len(w) + int(rng.integers(3)) for w in watched],
                "last_time_ms": noon - rng.integers(3, size=5) * 1000,
                "watch_seq": watched,
            }
        ),
    }


def folder_of(path: Path, frames: Frames) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_parquet(path / f"{name}.parquet")
    return path


def rows_of(frame: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(frame[column].tolist() for column in columns), strict=True))


def assert_encodes(values: pd.Series, ids: np.ndarray, known: set[Any]) -> None:
    """Known values and ids above 0 match one to one; everything else is 0."""
    pairs = pd.DataFrame({"value": values.to_numpy(), "id": np.asarray(ids)})
    is_known = pairs["value"].isin(known)
    assert ((pairs["id"] > 0) == is_known).all()
    pairs = pairs[is_known].drop_duplicates()
    assert pairs["id"].is_unique
    assert pairs["value"].is_unique


def assert_kuairand_holds(store: Store, frames: Frames, every: int) -> None:
    """Compare with a plain computation, row by row; histories of every so many-th row."""
    exposures = pd.concat([frames["val"].assign(split="val"), frames["test"].assign(split="test")])
    exposures = exposures.sort_values("time_ms", kind="stable")
    last_day = frames["val"]["date"].max()
    exposures.loc[(exposures["split"] == "val") & (exposures["date"] < last_day), "split"] = "train"
    exposures["split"] = exposures["split"].replace("val", "valid")
    videos, users = frames["item_features"], frames["user_features"]
    by_user: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for user, time, video in rows_of(exposures, "user_id", "time_ms", "video_id"):
        by_user[user][0].append(time)
        by_user[user][1].append(video)
    columns = ("user_id", "last_time_ms", "history_len", "watch_seq")
    starts = {row[0]: row[1:] for row in rows_of(frames["user_sequences"], *columns)}
    video_of = np.concatenate(([-1], videos["video_id"].to_numpy()))
    user_of = users["user_id"].to_numpy()
    for name in ("train", "valid", "test"):
        split, rows = store.split(name), exposures[exposures["split"] == name]
        np.testing.assert_array_equal(user_of[split.user], rows["user_id"])
        np.testing.assert_array_equal(video_of[split.item], rows["video_id"])
        np.testing.assert_array_equal(split.label, rows["is_click"])
        for index, (user, time) in enumerate(rows_of(rows, "user_id", "time_ms")):
            times, seen = by_user[user]
            before = bisect.bisect_left(times, time)
            last_time, length, past = starts.get(user, (-1, 0, ()))
            if last_time == time:
                length, past = length - 1, past[:-1]
            assert split.length[index] == length + before
            assert split.end[index] == len(past) + before
            if index % every == 0:
                history = store.histories[int(split.user[index])][: split.end[index]]
                assert video_of[history].tolist() == [*past, *seen[:before]]
    assert_kuairand_features(store, frames, exposures)


def assert_kuairand_features(store: Store, frames: Frames, exposures: pd.DataFrame) -> None:
    videos, users = frames["item_features"], frames["user_features"]
    authors = videos["author_id"].value_counts()
    assert_encodes(videos["author_id"], store.items["author_id"][1:] - 1, set(authors[authors > 1].index))
    assert store.items["author_id"][1:].min() >= 1
    for column in ITEM_FEATURES:
        assert_encodes(videos[column], store.items[column][1:], set(videos[column].dropna()))
    tags = [[] if t == "unknown" else t.split(",") for t in videos["tag"]]
    ids = [[v for v in row if v] for row in store.items["tag"][1:].tolist()]
    assert [len(t) for t in tags] == [len(i) for i in ids]
    pairs = {(t, i) for many, some in zip(tags, ids, strict=True) for t, i in zip(many, some, strict=True)}
    assert len(pairs) == len({t for t, _ in pairs}) == len({i for _, i in pairs})
    seconds = videos["video_duration"].to_numpy(dtype=float, na_value=np.nan) / 1000
    for second, bucket in zip(seconds, store.items["duration"][1:].tolist(), strict=True):
        assert bucket == (0 if np.isnan(second) else 1 + sum(second >= edge for edge in DURATION_EDGES))
    train = exposures[exposures["split"] == "train"]
    trained = users[users["user_id"].isin(train["user_id"])]
    for column in USER_FEATURES:
        assert_encodes(users[column], store.users[column], set(trained[column].dropna()))

    date = pd.to_datetime(exposures["date"].astype(str))
    uploaded = pd.to_datetime(videos.set_index("video_id")["upload_dt"])
    age = (date.to_numpy() - uploaded[exposures["video_id"]].to_numpy()).astype("timedelta64[D]").astype(int)
    moments = exposures.assign(
        hour=exposures["hourmin"] // 100,
        weekday=date.dt.day_of_week,
        days_since_upload=np.digitize(age, AGE_EDGES),
    )
    for column in ("tab", "hour", "weekday", "days_since_upload"):
        known = set(moments.loc[moments["split"] == "train", column])
        for name in ("train", "valid", "test"):
            values = moments.loc[moments["split"] == name, column]
            assert_encodes(values, store.split(name).context[column], known)
        both = np.concatenate([store.split(name).context[column] for name in ("train", "test")])
        values = pd.concat([moments.loc[moments["split"] == name, column] for name in ("train", "test")])
        assert_encodes(values, both, known)


@given(st.integers(0, 10_000))
def test_kuairand_sees_the_past_only(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    frames = kuairand_frames(seed)
    folder = tmp_path_factory.mktemp("kuairand")
    store = Store.open(prepare("kuairand", folder_of(folder / "source", frames), folder / "out"))
    assert_kuairand_holds(store, frames, every=1)


def test_kuairand_on_the_real_exposures(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "ctr" / "kuairand-pure"
    if not source.is_dir():
        pytest.skip(f"no KuaiRand data: {source} does not exist")
    store = Store.open(prepare("kuairand", source, tmp_path / "out"))
    assert store.splits == {"train": 73_580, "valid": 21_204, "test": 133_545}
    names = ("val", "test", "item_features", "user_features", "user_sequences")
    frames = {name: pd.read_parquet(source / f"{name}.parquet") for name in names}
    assert_kuairand_holds(store, frames, every=11)


def test_kuairand_never_reads_outcomes(tmp_path: Path) -> None:
    """Other outcomes and other statistics give the same store."""
    frames = kuairand_frames(5)
    first = Store.open(prepare("kuairand", folder_of(tmp_path / "a", frames), tmp_path / "out-a"))
    for name in ("val", "test"):
        frames[name] = frames[name].assign(play_time_ms=99, is_like=1, watch_ratio=0.5)
    frames["item_features"] = frames["item_features"].assign(play_cnt=7.0)
    second = Store.open(prepare("kuairand", folder_of(tmp_path / "b", frames), tmp_path / "out-b"))
    assert first.fingerprint == second.fingerprint


def test_kuairand_valid_days(tmp_path: Path) -> None:
    frames = kuairand_frames(0)
    source = folder_of(tmp_path / "source", frames)
    days = frames["val"]["date"].value_counts().sort_index().tolist()
    for valid_days in range(3):
        store = Store.open(prepare("kuairand", source, tmp_path / "out", valid_days=valid_days))
        expected = {"train": sum(days[: 3 - valid_days]), "valid": sum(days[3 - valid_days :])}
        given = ["prepare", "kuairand", str(source), str(tmp_path / "by-command"), f"valid_days={valid_days}"]
        assert CliRunner().invoke(main, given).exit_code == 0
        assert Store.open(tmp_path / "by-command").fingerprint == store.fingerprint
        assert store.splits == {name: n for name, n in expected.items() if n} | {"test": 30}
    with pytest.raises(ConfigError, match=r"valid_days: must be from 0 to 2 .* got 3"):
        prepare("kuairand", source, tmp_path / "other", valid_days=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("apply", "line"),
    [
        (change("val", "video_id", 3, 9999), r"'video_id', row 3: 9999 is not in item_features.parquet"),
        (change("test", "user_id", 2, 9999), r"'user_id', row 2: 9999 is not in user_features.parquet"),
        (change("val", "is_click", 1, 3), r"'is_click', row 1: a label must be 0 or 1"),
        (change("val", "date", 1, 20221399), r"'date', row 1: 20221399 is not a date"),
        (change("user_sequences", "history_len", 1, 0), r"'history_len', row 1: 0 is less than the \d items"),
        (change("user_sequences", "watch_seq", 0, [1]), r"'watch_seq', row 0: an item that is not in"),
        (change("user_sequences", "last_time_ms", 0, 2_000_000_000_000), r"older than the end of its user's"),
        (change("val", "video_id", 3, None), r"'video_id'(, row 3: no value| must hold whole numbers)"),
        (drop("item_features", "tag"), r"item_features.parquet: column 'tag' is missing"),
        (as_text("val", "time_ms"), r"val.parquet: column 'time_ms' must hold whole numbers"),
        (
            lambda f: f.__setitem__("item_features", pd.concat([f["item_features"]] * 2)),
            r"'video_id', row 11: .* is there twice \(and 10 more rows\)",
        ),
    ],
)
def test_wrong_kuairand_tables_are_one_line(
    tmp_path: Path, apply: Callable[[Frames], None], line: str
) -> None:
    frames = kuairand_frames(2)
    apply(frames)
    with pytest.raises(DataError, match=line):
        prepare("kuairand", folder_of(tmp_path / "source", frames), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_categories_of_pandas_are_their_values(tmp_path: Path) -> None:
    frames = kuairand_frames(2)
    first = Store.open(prepare("kuairand", folder_of(tmp_path / "a", frames), tmp_path / "out-a"))
    for name, column in (("user_features", USER_FEATURES[0]), ("item_features", ITEM_FEATURES[0])):
        frames[name][column] = frames[name][column].astype("category")
    frames["item_features"]["author_id"] = frames["item_features"]["author_id"].astype("category")
    second = Store.open(prepare("kuairand", folder_of(tmp_path / "b", frames), tmp_path / "out-b"))
    assert second.fingerprint == first.fingerprint


def test_a_column_that_is_there_twice_is_one_line(tmp_path: Path) -> None:
    frames = kuairand_frames(2)
    source = folder_of(tmp_path / "source", frames)
    table = pq.read_table(source / "user_features.parquet")
    doubled = table.append_column("user_id", table["user_id"])
    pq.write_table(doubled, source / "user_features.parquet")
    with pytest.raises(DataError, match=r"user_features.parquet: column 'user_id' is there 2 times$"):
        prepare("kuairand", source, tmp_path / "out")


def test_mistakes_of_columns_and_of_values_in_kuairand_are_shown_together(tmp_path: Path) -> None:
    frames = kuairand_frames(2)
    for apply in (
        drop("item_features", "tag"),
        drop("user_sequences", "watch_seq"),
        as_text("test", "user_id"),
        change("val", "is_click", 4, 2),
        change("val", "time_ms", 5, 6),
        change("test", "date", 3, 20221399),
        change("test", "video_id", 1, 9999),
        change("user_sequences", "history_len", 1, -1),
    ):
        apply(frames)
    frames["val"]["tab"] = pd.array([None, *frames["val"]["tab"][1:]], dtype="Int64")
    lines = refused("kuairand", folder_of(tmp_path / "source", frames))
    assert set(map(without_type, lines)) == {
        "item_features.parquet: column 'tag' is missing",
        "user_sequences.parquet: column 'watch_seq' is missing",
        "test.parquet: column 'user_id' must hold whole numbers, but its type is string",
        "user_sequences.parquet: column 'history_len', row 1: -1 is outside 0 and above",
        "val.parquet: column 'is_click', row 4: a label must be 0 or 1, got 2.0",
        "val.parquet: column 'tab', row 0: no value",
        "val.parquet: column 'time_ms', row 5: a row at 6 is older than the end of its user's watch_seq",
        "test.parquet: column 'date', row 3: 20221399 is not a date YYYYMMDD",
        "test.parquet: column 'video_id', row 1: 9999 is not in item_features.parquet",
    }
    assert len(lines) == 9


def without_type(line: str) -> str:
    """A line of every version of pandas and Arrow, whatever they call text, without the nearest name."""
    return line.split("; did you mean")[0].replace("large_string", "string")


def test_files_of_kuairand_that_cannot_be_read_do_not_hide_wrong_values(tmp_path: Path) -> None:
    frames = kuairand_frames(2)
    for apply in (drop("item_features", "video_id"), change("val", "is_click", 4, 2)):
        apply(frames)
    source = folder_of(tmp_path / "source", frames)
    (source / "user_features.parquet").unlink()
    cut(source / "user_sequences.parquet", 0.5)
    scramble(source / "test.parquet")
    missing, cut_off, column, label, damaged = refused("kuairand", source)
    assert missing == "user_features.parquet: missing; kuairand needs it in this folder"
    assert cut_off.startswith("user_sequences.parquet: not a Parquet file, or cut off")
    assert column.startswith("item_features.parquet: column 'video_id' is missing")
    assert label == "val.parquet: column 'is_click', row 4: a label must be 0 or 1, got 2.0"
    assert damaged.startswith("test.parquet: damaged or cut off after row 0")


def test_a_bad_cell_is_one_line(tmp_path: Path) -> None:
    """An id that is not there is not also one that is not in the other table."""
    frames = kuairand_frames(2)
    frames["val"]["video_id"] = pd.array([None, *frames["val"]["video_id"][1:]], dtype="Int64")
    lines = refused("kuairand", folder_of(tmp_path / "source", frames))
    assert lines == ["val.parquet: column 'video_id', row 0: no value"]


# --------------------------------------------------------------------------------------- MovieLens


def movielens_folder(path: Path, ratings: pd.DataFrame, movies: pd.DataFrame) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    ratings.to_csv(path / "ratings.csv", index=False)
    movies.to_csv(path / "movies.csv", index=False)
    return path


def movielens_frames(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    movies = rng.choice(50, size=9, replace=False) + 1
    ratings = pd.DataFrame(
        {
            "userId": rng.integers(10, 15, size=60),
            "movieId": rng.choice(movies, size=60),
            "rating": rng.integers(1, 11, size=60) / 2,
            "timestamp": 1_000_000_000 + rng.integers(25, size=60),
        }
    )
    genres = rng.choice(["Drama|War", "Comedy", "(no genres listed)", "War|Comedy|IMAX"], size=9)
    titles = [f'Film, The "{i}" (1999)' for i in range(9)]
    return ratings, pd.DataFrame({"movieId": movies, "title": titles, "genres": genres})


def assert_movielens_holds(
    store: Store,
    ratings: pd.DataFrame,
    movies: pd.DataFrame,
    fractions: tuple[float, float, float],
    every: int,
) -> None:
    ratings = ratings.reset_index(drop=True)
    movie_of = np.concatenate(([-1], np.sort(movies["movieId"].to_numpy())))
    user_of = np.sort(ratings["userId"].unique())
    by_user: dict[int, tuple[list[int], list[int]]] = {}
    tie_hash = [
        int.from_bytes(hashlib.blake2b(str(m).encode(), digest_size=8, key=bytes(8)).digest(), "little")
        for m in ratings["movieId"]
    ]
    in_order = ratings.assign(tie=tie_hash).sort_values(["timestamp", "tie"], kind="stable")
    for user, group in in_order.groupby("userId"):
        by_user[int(str(user))] = (group["timestamp"].tolist(), group["movieId"].tolist())
    found = []
    ends: list[Any] = []
    for name in store.splits:
        split = store.split(name)
        np.testing.assert_array_equal(split.end, split.length)
        user, movie = user_of[split.user], movie_of[split.item]
        time = []
        for index in range(len(split)):
            times, seen = by_user[int(user[index])]
            time.append(times[int(split.end[index])])  # the row is of the first moment it does not see
            if index % every == 0:
                past = [m for m, t in zip(seen, times, strict=True) if t < time[-1]]
                history = store.histories[int(split.user[index])][: split.end[index]]
                assert movie_of[history].tolist() == past
        assert time == sorted(time)
        ends.append((time[0], time[-1]))
        found.append(
            pd.DataFrame({"userId": user, "movieId": movie, "timestamp": time, "label": split.label})
        )
    keys = ["userId", "movieId", "timestamp", "label"]
    rows = pd.concat(found).sort_values(keys).reset_index(drop=True)
    expected = ratings.assign(label=(ratings["rating"] >= 4).astype(np.uint8))[keys].sort_values(keys)
    pd.testing.assert_frame_equal(rows, expected.reset_index(drop=True), check_dtype=False)
    for (_, last), (first, _) in pairwise(ends):
        assert last < first
    tie = int(ratings["timestamp"].value_counts().max())
    assert abs(store.splits["train"] - fractions[0] * len(ratings)) <= tie

    genres = movies.sort_values("movieId")["genres"]
    words = [[] if g == "(no genres listed)" else g.split("|") for g in genres]
    ids = [[v for v in row if v] for row in store.items["genres"][1:].tolist()]
    pairs = {(w, i) for a, b in zip(words, ids, strict=True) for w, i in zip(a, b, strict=True)}
    assert len(pairs) == len({w for w, _ in pairs}) == len({i for _, i in pairs})


@given(st.integers(0, 10_000), st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (0.6, 0.4, 0.0)]))
def test_movielens_sees_the_past_only(
    tmp_path_factory: pytest.TempPathFactory, seed: int, fractions: tuple[float, float, float]
) -> None:
    ratings, movies = movielens_frames(seed)
    folder = tmp_path_factory.mktemp("movielens")
    source = movielens_folder(folder / "source", ratings, movies)
    store = Store.open(prepare("movielens", source, folder / "out", fractions=fractions))
    assert_movielens_holds(store, ratings, movies, fractions, every=1)


def test_movielens_on_the_real_ratings(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "ctr" / "ml-latest-small"
    if not source.is_dir():
        pytest.skip(f"no MovieLens data: {source} does not exist")
    store = Store.open(prepare("movielens", source, tmp_path / "out"))
    ratings, movies = pd.read_csv(source / "ratings.csv"), pd.read_csv(source / "movies.csv")
    assert sum(store.splits.values()) == 100_836
    assert_movielens_holds(store, ratings, movies, (0.8, 0.1, 0.1), every=37)
    in_order = ratings.sort_values(["userId", "timestamp"], kind="stable")
    tied = (in_order["userId"].diff() == 0) & (in_order["timestamp"].diff() == 0)
    assert tied.mean() > 0.15  # neighbours of one second, which the file lists by ascending id
    ascending = np.diff(store.histories.values[:]) > 0
    assert 0.45 < ascending[tied.to_numpy()[1:]].mean() < 0.55


@pytest.mark.parametrize(
    ("file", "old", "new", "lines"),
    [
        ("ratings.csv", "rating,", "stars,", ["ratings.csv: column 'rating' is missing"]),
        ("ratings.csv", ",4.0,", ",good,", ["ratings.csv: column 'rating', row 1: good is not a number"]),
        ("ratings.csv", ",4.0,", ",nan,", ["'rating', row 1: nan is not a finite number"]),
        ("ratings.csv", ",4.0,", ",9,", ["'rating', row 1: 9.0 is outside 0.5 to 5"]),
        ("ratings.csv", ",4.0,", ",,", ["'rating', row 1: no value"]),
        ("ratings.csv", ",7,", ",8,", ["'movieId', row 0: movie 8 is not in movies.csv"]),
        ("ratings.csv", ",7,", ",7.5,", ["'movieId', row 0: 7.5 is not a whole number"]),
        ("ratings.csv", "1,9,4.0,", "x,9,6.0,", ["'userId', row 1: x is not", "'rating', row 1: 6.0 is"]),
        ("ratings.csv", "1,9,4.0,12", "1,9", ["ratings.csv: cannot be read as CSV"]),
        ("ratings.csv", "12", "10\n1,9,4.0,10", ["ratings.csv: too many ratings are of its first moment"]),
        ("movies.csv", "9,", "7,", ["movies.csv: column 'movieId', row 1: 7 is there twice"]),
    ],
)
def test_wrong_movielens_tables_are_one_line(
    tmp_path: Path, file: str, old: str, new: str, lines: list[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,3.0,10\n1,9,4.0,12\n")
    (source / "movies.csv").write_text("movieId,title,genres\n7,A,War\n9,B,Drama\n")
    content = (source / file).read_text()
    assert old in content
    (source / file).write_text(content.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        prepare("movielens", source, tmp_path / "out")
    for line in lines:
        assert any(re.search(line, message) for message in caught.value.messages), caught.value.messages
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_mistakes_of_columns_and_of_values_in_movielens_are_shown_together(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    ratings = "user,movieId,rating,timestamp\n1,7,9,10\n1,x,4.0,12\n1,8,nan,12\n"
    (source / "ratings.csv").write_text(ratings)
    (source / "movies.csv").write_text("movieId,title,genre\n7,A,War\n7,B,Drama\n")
    assert refused("movielens", source) == [
        "movies.csv: column 'genres' is missing; did you mean 'genre'?",
        "ratings.csv: column 'userId' is missing; did you mean 'user'?",
        "movies.csv: column 'movieId', row 1: 7 is there twice",
        "ratings.csv: column 'movieId', row 1: x is not a whole number",
        "ratings.csv: column 'rating', row 2: nan is not a finite number",
        "ratings.csv: column 'movieId', row 2: movie 8 is not in movies.csv",
        "ratings.csv: column 'rating', row 0: 9.0 is outside 0.5 to 5",
    ]
    (source / "movies.csv").unlink()
    assert refused("movielens", source)[0] == "movies.csv: missing; movielens needs it in this folder"
    assert len(refused("movielens", source)) == 5


@pytest.mark.parametrize("content", ["", "userId,movieId,rating,timestamp\n"])
def test_empty_ratings_are_one_line(tmp_path: Path, content: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ratings.csv").write_text(content)
    (source / "movies.csv").write_text("movieId,title,genres\n7,A,War\n")
    with pytest.raises(UserError, match=r"ratings.csv: (has no rows|cannot be read as CSV)") as caught:
        prepare("movielens", source, tmp_path / "out")
    assert len(caught.value.messages) == 1


# ------------------------------------------------------------------------------------------ Memory

PREPARE = """
import resource, sys
from pathlib import Path
from lain.formats import prepare
prepare("reczoo", Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def large_folder(path: Path, rows: int, users: int, items: int) -> Path:
    """A source with a row group for all rows, the worst case for a reader in pieces."""
    rng = np.random.default_rng(0)
    path.mkdir()
    lengths = np.clip(rng.lognormal(np.log(77), 1.1, size=users), 0, 1000).astype(np.int32)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    values = rng.integers(1, items, size=offsets[-1], dtype=np.int32)
    sequences = pa.LargeListArray.from_arrays(offsets, values)
    pq.write_table(pa.table({"full_item_seq": sequences}), path / "user_info.parquet", row_group_size=users)
    vectors = pa.FixedSizeListArray.from_arrays(rng.random(items * 64, dtype=np.float32), 64)
    table = {"item_index": np.arange(items), "cate": rng.integers(500, size=items), "image": vectors}
    pq.write_table(pa.table(table), path / "item_info.parquet", row_group_size=items)
    for name, count in (("train", rows), ("test", 1000)):
        user = rng.integers(users, size=count, dtype=np.int32)
        table = {
            "user_index": user,
            "item_index": rng.integers(1, items, size=count, dtype=np.int32),
            "seq_len": (lengths[user] * rng.random(count)).astype(np.int32),
            "label": rng.integers(2, size=count, dtype=np.int8),
            "hour": rng.integers(24, size=count, dtype=np.int8),
        }
        pq.write_table(pa.table(table), path / f"{name}.parquet", row_group_size=count)
    (path / "schema.yaml").write_text(
        "columns: {label: label}\n"
        "features: {item_id: {source: item}, cate: {source: item}, image: {source: item, kind: vector},"
        " hour: {source: context}}\n"
    )
    return path


@pytest.mark.slow
def test_twelve_million_rows_fit_in_four_gigabytes(tmp_path: Path, repo: Path) -> None:
    rows = 12_000_000
    source = large_folder(tmp_path / "source", rows, users=100_000, items=300_000)
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(repo / "packages"), "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    store = Store.open(tmp_path / "out")
    assert store.splits["train"] == rows
    kilobytes = int(done.stdout)
    assert kilobytes < 4 * 1024**2


def test_hashed_categories_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They make a table of two thousand million rows, which training would refuse."""
    frames = reczoo_frames()
    frames["item_info"]["cate_id"] = [0, *(2_000_000_000 - n for n in range(1, 9))]
    source = reczoo_folder(tmp_path / "source", frames, SCHEMA.replace("size: 9, ", ""))
    prepare("reczoo", source, tmp_path / "out")
    line = "note: feature 'cate': ids up to 1,999,999,999 for at most 9 different values make a table of"
    assert line in capsys.readouterr().err


def test_a_history_that_holds_the_target_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Clicked rows whose seq_len is one too large: their target is the last behaviour."""
    for leak in (True, False):
        frames = reczoo_frames()
        sequences = [np.arange(n, n + 60) % 8 + 1 for n in range(5)]
        frames["user_info"]["full_item_seq"] = pd.Series(sequences)
        rng, rows = np.random.default_rng(0), 200
        user, length, click = (
            rng.integers(5, size=rows),
            rng.integers(50, size=rows),
            rng.integers(2, size=rows),
        )
        item = [
            int(sequences[u][n]) if y else int(rng.integers(1, 9))
            for u, n, y in zip(user, length, click, strict=True)
        ]
        frames["train"] = (
            pd.concat([frames["train"]] * 10)
            .iloc[:rows]
            .assign(user_index=user, item_index=item, seq_len=length + leak * click, is_click=click)
        )
        prepare("reczoo", reczoo_folder(tmp_path / "source", frames), tmp_path / "out")
        said = "train: in 100% of the clicks the last behaviour of the history is the target itself"
        assert (said in capsys.readouterr().err) == leak
