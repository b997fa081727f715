"""The store: what is written comes back, what is wrong is refused, nothing half-written stays."""

from __future__ import annotations

import json
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
from lain.data.store import ArrayWriter, Feature, Store, StoreWriter

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


def test_verify_sees_a_changed_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "store")
    file = path / "train" / "item.npy"
    changed = np.load(file)
    changed[0] = 1
    np.save(file, changed)
    with pytest.raises(DataError, match="was changed"):
        Store.open(path).verify()


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
    (path / "dataset.json").write_text(json.dumps(about | {"version": 2}))
    with pytest.raises(DataError, match="version 2"):
        Store.open(path)


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    store = Store.open(write(tmp_path / "store"))
    with pytest.raises(DataError, match="no split 'trian', only train; did you mean 'train'"):
        store.split("trian")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("a/b", "item", "categorical", 3), "letters"),
        (("../x", "item", "categorical", 3), "letters"),
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
    twice = [Feature("a", "item", "categorical", 2), Feature("a", "user", "categorical", 2)]
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
