"""The store: what is written comes back, what is wrong is refused, nothing half-written stays."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.ragged import Ragged
from lain.data import store as stores
from lain.data.schema import Feature, file_stem
from lain.data.store import Store
from lain.data.writer import ArrayWriter, StoreWriter

FEATURES = [
    Feature("item_id", "item", "categorical", 0),
    Feature("category", "item", "categorical", 0),
    Feature("topics", "item", "list", 9, 2),
    Feature("image", "item", "vector", 0, 3),
    Feature("age", "user", "categorical", 5),
    Feature("hour", "context", "categorical", 0),
    Feature("words", "context", "list", 0, 2),
]
HISTORIES = Ragged.from_lists([[1, 2, 3], [], [4]])


def rows(**changed: Any) -> dict[str, Any]:
    """Two good rows, with changes."""
    good: dict[str, Any] = {
        "user": np.array([0, 2]),
        "item": np.array([4, 1]),
        "end": np.array([2, 1]),
        "length": np.array([2, 7]),
        "label": np.array([1, 0]),
        "context": {"hour": np.array([3, 0]), "words": np.array([[1, 2], [3, 0]])},
    }
    return good | changed


def write(path: Path, **changed: Any) -> Path:
    """A small store with two training rows."""
    with StoreWriter(
        path, name="small", features=FEATURES, num_items=5, num_users=3, notes={"a": 1}
    ) as store:
        store.items("category", np.arange(5))
        store.items("topics", np.arange(10).reshape(5, 2) % 9)
        store.items("image", np.arange(15).reshape(5, 3) / 2)
        store.users("age", np.array([4, 0, 1]))
        store.histories(HISTORIES)
        train = store.split("train", 4)
        train.append(**rows())
        train.append(**rows(**changed))
    return path


def test_round_trip(tmp_path: Path) -> None:
    store = Store.open(write(tmp_path / "store"))
    assert (store.name, store.num_items, store.num_users, store.splits) == ("small", 5, 3, {"train": 4})
    assert store.notes == {"a": 1}
    sizes = {feature.name: feature.size for feature in store.features}
    assert sizes == {
        "item_id": 5, "category": 5, "topics": 9, "image": 0, "age": 5, "hour": 4, "words": 4
    }  # fmt: skip
    assert set(store.items) == {"category", "topics", "image"}
    assert set(store.users) == {"age"}
    np.testing.assert_array_equal(store.items["image"], (np.arange(15).reshape(5, 3) / 2).astype(np.float32))
    np.testing.assert_array_equal(store.histories[0], [1, 2, 3])
    train = store.split("train")
    assert len(train) == 4
    np.testing.assert_array_equal(train.length, [2, 7, 2, 7])
    np.testing.assert_array_equal(train.context["words"], [[1, 2], [3, 0]] * 2)
    assert train.probability is None
    assert train.user.dtype == np.int32
    assert train.label.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        train.label[0] = 0
    store.verify()


def test_same_content_has_the_same_fingerprint_and_other_content_another(tmp_path: Path) -> None:
    first = Store.open(write(tmp_path / "a")).fingerprint
    assert Store.open(write(tmp_path / "b")).fingerprint == first
    assert Store.open(write(tmp_path / "c", label=np.array([1, 1]))).fingerprint != first


def test_a_changed_byte_shows_when_a_small_file_is_opened_and_a_large_one_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write(tmp_path / "small")
    monkeypatch.setattr(stores, "_SMALL_BYTES", 0)
    large = write(tmp_path / "large")
    for path in (small, large):
        file = path / "train" / "item.npy"
        changed = np.load(file)
        changed[0] = 1
        np.save(file, changed)
    with pytest.raises(DataError, match=r"item.npy: was changed after it was made; prepare the data again$"):
        Store.open(small)
    with pytest.raises(DataError, match="large: was changed after it was made"):
        Store.open(large).verify()


def test_what_dataset_json_says_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    about = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(about | {"name": "other"}))
    with pytest.raises(DataError, match=r"dataset.json: was changed after it was made"):
        Store.open(path)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"user": np.array([0, 3])}, "row 3: user 3 is outside the 3 users"),
        ({"item": np.array([0, 1])}, "row 2: item 0 is outside the item table"),
        ({"item": np.array([5, 1])}, "row 2: item 5 is outside the item table"),
        ({"end": np.array([2, 2]), "length": np.array([2, 2])}, "row 3: end 2 is beyond"),
        ({"length": np.array([1, 7])}, "row 2: length 1 is less"),
        ({"label": np.array([1, 2])}, "row 3: label 2 is neither 0 nor 1"),
        ({"context": {"hour": np.array([-1, 0]), "words": np.zeros((2, 2), int)}}, "'hour' has -1 below 0"),
        ({"context": {"hour": np.array([1, 0])}}, "context feature 'words' is missing"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_stays(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line):
        write(tmp_path / "store", **changed)
    assert list(tmp_path.iterdir()) == []


def test_two_mistakes_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write(tmp_path / "store", item=np.array([9, 1]), label=np.array([1, 3]))
    assert len(caught.value.messages) == 2


def write_parts(path: Path) -> None:
    """A store in which most is missing."""
    with StoreWriter(path, name="s", features=FEATURES, num_items=5, num_users=3) as store:
        store.history_values(np.array([1, 0, 1])).append([1, 7])
        store.split("train", 2)


def test_missing_parts_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        write_parts(tmp_path / "s")
    text = str(caught.value)
    for part in ("category", "topics", "image", "age", "0 rows were written, 2 announced", "item 7"):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_store_that_was_there(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    before = Store.open(path).fingerprint
    with pytest.raises(DataError):
        write(path, label=np.array([7, 0]))
    assert Store.open(path).fingerprint == before
    write(path, label=np.array([1, 1]))
    assert Store.open(path).fingerprint != before
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not empty"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "file" / "store")


@contextmanager
def small_files() -> Iterator[None]:
    """The operating system refuses to let a file grow beyond 100 bytes, as on a full disk.

    Only around the write itself: pytest's own output may be a file too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_is_one_line_and_nothing_stays(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"store: cannot be written \(.*[Ff]ile too large\)") as caught,
        small_files(),
    ):
        write(tmp_path / "store")
    assert len(caught.value.messages) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda p: (p / "dataset.json").unlink(), "not a prepared data set"),
        (lambda p: (p / "dataset.json").write_text("{"), "cannot be read"),
        (lambda p: (p / "dataset.json").write_text("{}"), "lacks features, fingerprint"),
        (lambda p: (p / "items" / "image.npy").unlink(), "image.npy: missing"),
        (lambda p: np.save(p / "items" / "image.npy", np.zeros((5, 2), np.float32)), "instead of float32"),
        (lambda p: np.save(p / "train" / "user.npy", np.zeros(4)), "holds float64"),
        (lambda p: (p / "train" / "label.npy").write_bytes(b"\x93NUMPY"), "label.npy: cannot be read"),
        (lambda p: (p / "histories.values.npy").unlink(), "histories"),
        (lambda p: shutil.rmtree(p), "not a prepared data set"),
    ],
)
def test_damaged_stores_are_one_line(tmp_path: Path, damage: Any, line: str) -> None:
    path = write(tmp_path / "store")
    damage(path)
    with pytest.raises(DataError, match=line):
        Store.open(path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    about = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(about | {"version": 3}))
    with pytest.raises(DataError, match="version 3"):
        Store.open(path)


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    store = Store.open(write(tmp_path / "store"))
    with pytest.raises(DataError, match="no split 'trian', only train; did you mean 'train'"):
        store.split("trian")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("", "item", "categorical", 3), "needs a name"),
        (("a", "item", "time", 0), "only a behaviour or a row has a time"),
        (("a", "context", "time", 3), "size 3"),
        (("a", "item", "vector", 3, 4), "size 3"),
        (("a", "item", "categorical", 3, 2), "width 2"),
        (("a", "item", "list", 3, 0), "width 0"),
        (("item_id", "user", "categorical", 3), "reserved"),
        (("user_id", "user", "list", 3, 2), "reserved"),
    ],
)
def test_wrong_features_are_refused(arguments: Any, line: str) -> None:
    with pytest.raises(DataError, match=line):
        Feature(*arguments)


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    for sources in (("item", "user"), ("behaviour", "behaviour")):
        twice = [Feature("a", source, "categorical", 2) for source in sources]
        with pytest.raises(DataError, match="'a' is there twice"):
            StoreWriter(tmp_path / "s", name="s", features=twice, num_items=2, num_users=1)


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6), st.sampled_from([None, 3]))
def test_an_array_written_in_pieces_is_the_array(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[list[int]], width: int | None
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.npy"
    writer = ArrayWriter(path, np.int32, width)
    arrays = [np.array(piece, dtype=np.int32) for piece in pieces]
    if width is not None:
        arrays = [np.repeat(array[:, None], width, axis=1) for array in arrays]
    for array in arrays:
        writer.append(array)
    writer.close()
    empty = np.zeros((0,) if width is None else (0, width), dtype=np.int32)
    np.testing.assert_array_equal(np.load(path, mmap_mode="r") if writer.rows else np.load(path),
                                  np.concatenate([empty, *arrays]))  # fmt: skip


NAMES = ["type", "keys", "items", "video.type", "../x", "a/b", "a%2Fb", "Ähnlich", "标签", " ", ".", "~",
         "type~", "x" * 300, "x" * 299 + "y", "con\n", "\U0001f600"]  # fmt: skip


def test_any_text_is_a_name(tmp_path: Path) -> None:
    """Of an item feature, a context feature, a column of the behaviours, a vocabulary."""
    features = [Feature("item_id", "item", "categorical", 0)]
    features += [Feature(f"{n}", "item", "categorical", 9) for n in NAMES]
    features += [Feature(f"c{n}", "context", "categorical", 9) for n in NAMES]
    features += [Feature(f"{n}", "behaviour", "categorical", 99) for n in NAMES]
    one = np.ones(1, dtype=np.int64)
    with StoreWriter(tmp_path / "s", name="s", features=features, num_items=2, num_users=1) as store:
        for number, name in enumerate(NAMES):
            store.items(name, np.array([0, number % 9]))
            store.vocabulary(name).write_text(name)
        store.histories(Ragged.from_lists([[1]]), {n: np.array([i]) for i, n in enumerate(NAMES)})
        context = {f"c{n}": one * (i % 9) for i, n in enumerate(NAMES)}
        row = {"user": one - 1, "item": one, "end": one, "length": one, "label": one}
        store.split("train", 1).append(**row, context=context)
    again = Store.open(tmp_path / "s")
    again.verify()
    for number, name in enumerate(NAMES):
        assert again.items[name].tolist() == [0, number % 9]
        assert again.behaviours[name].tolist() == [number]
        assert again.split("train").context[f"c{name}"].tolist() == [number % 9]
        assert again.vocabularies[name].read_text() == name
    assert all(path.resolve().is_relative_to((tmp_path / "s").resolve()) for path in tmp_path.rglob("*"))


@given(st.text(min_size=1), st.text(min_size=1))
def test_file_names_are_unique_and_safe(one: str, other: str) -> None:
    assert (file_stem(one) == file_stem(other)) == (one == other)
    assert re.fullmatch(r"[A-Za-z0-9_%~-][A-Za-z0-9_.%~-]{0,119}", file_stem(one))


def test_plain_names_keep_their_files() -> None:
    """Those that stores of version 1 could have."""
    assert [file_stem(n) for n in ("item_id", "Video-type.2", "0")] == ["item_id", "Video-type.2", "0"]


COLUMNS = [
    Feature("time", "behaviour", "time", 0),
    Feature("action", "behaviour", "categorical", 0),
    Feature("dwell", "behaviour", "vector", 0, 1),
    Feature("tags", "behaviour", "list", 9, 2),
]
TIMES = np.array([2**40, 5, 7, -3], dtype=np.int64)


def columns(**changed: Any) -> dict[str, Any]:
    return {"time": TIMES, "action": np.array([1, 2, 0, 6]), "dwell": np.array([[0.5], [1], [2], [3]]),
            "tags": np.array([[1, 2], [3, 0], [0, 0], [8, 8]])} | changed  # fmt: skip


def write_columns(path: Path, **changed: Any) -> Path:
    features = [Feature("item_id", "item", "categorical", 0), *COLUMNS]
    with StoreWriter(path, name="s", features=features, num_items=5, num_users=3) as store:
        store.vocabulary("action").write_text('["", "click", "buy"]')
        store.histories(HISTORIES, columns(**changed))
        store.split("train", 2).append(**rows(context={}))
    return path


def test_columns_of_behaviours_come_back_aligned(tmp_path: Path) -> None:
    store = Store.open(write_columns(tmp_path / "s"))
    assert store.behaviours["time"].tolist() == TIMES.tolist()  # seconds beyond 32 bits
    assert {f.name: f.size for f in store.features if f.source == "behaviour"} == {
        "time": 0, "action": 7, "dwell": 0, "tags": 9
    }  # fmt: skip
    assert store.behaviours["tags"].tolist() == columns()["tags"].tolist()
    assert isinstance(store.behaviours["dwell"], np.memmap)
    assert store.column("action").size == 7
    with pytest.raises(DataError, match=r"no column 'actoin' of the behaviours, only time, .*'action'"):
        store.column("actoin")
    with pytest.raises(DataError, match="its behaviours are item ids alone"):
        Store.open(write(tmp_path / "plain")).column("action")


def test_columns_and_vocabularies_are_in_the_fingerprint(tmp_path: Path) -> None:
    path = write_columns(tmp_path / "a")
    store = Store.open(path)
    other = Store.open(write_columns(tmp_path / "b", action=np.array([1, 2, 0, 5])))
    assert other.fingerprint != store.fingerprint
    store.vocabularies["action"].write_text('["", "buy", "click"]')
    with pytest.raises(DataError, match="was changed"):
        Store.open(path).verify()
    store.vocabularies["action"].unlink()
    with pytest.raises(DataError, match=r"vocabularies/action: missing"):
        Store.open(path)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"action": np.array([1, 2, 0])}, "feature 'action': 3 rows instead of 4"),
        ({"tags": np.array([[1, 2], [3, 0], [0, 0], [9, 8]])}, r"'tags', row 3: \[9 8\] outside 0 to 8"),
        ({"dwell": np.array([[1], [np.nan], [2], [3]])}, "feature 'dwell', row 1: .* must be finite"),
        ({"action": np.array([1, -2, 0, 3])}, "feature 'action', row 1: -2 below 0"),
    ],
)
def test_wrong_columns_are_refused(tmp_path: Path, changed: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line):
        write_columns(tmp_path / "s", **changed)
    assert list(tmp_path.iterdir()) == []


def test_pieces_of_a_column_are_checked_too(tmp_path: Path) -> None:
    def pieces() -> None:
        features = [Feature("action", "behaviour", "categorical", 3)]
        with StoreWriter(tmp_path / "s", name="s", features=features, num_items=5, num_users=1) as store:
            store.history_values(np.array([2])).append([1, 2])
            for value in (0, 3):
                store.behaviours("action").append([value])

    with pytest.raises(DataError, match="column 'action' has 3 outside 0 to 2"):
        pieces()


def test_a_vocabulary_that_was_announced_must_be_there(tmp_path: Path) -> None:
    def forget() -> None:
        with StoreWriter(tmp_path / "s", name="s", features=[], num_items=5, num_users=1) as store:
            store.history_values(np.array([0]))
            store.vocabulary("item")

    with pytest.raises(DataError, match="vocabulary 'item' was not written"):
        forget()


def test_a_store_of_version_1_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    about = json.loads((path / "dataset.json").read_text())
    for later in ("vocabularies", "files", "checksum"):
        del about[later]
    (path / "dataset.json").write_text(json.dumps(about | {"version": 1}))
    store = Store.open(path)
    store.verify()
    assert (store.behaviours, store.vocabularies) == ({}, {})
    assert store.fingerprint == "98a58cd84f5ace99"
