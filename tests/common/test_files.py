"""Folders that processes share."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from common.files import fill_once


def write(text: str, folder: Path) -> None:
    (folder / "content").write_text(text)


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    fill_once(tmp_path / "shared", lambda empty: write("first", empty))
    fill_once(tmp_path / "shared", lambda empty: pytest.fail("it is there already"))
    assert (tmp_path / "shared" / "content").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared"]


def test_of_two_that_fill_it_at_once_the_first_ones_stays(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    first_is_there = threading.Event()

    def slowly(empty: Path) -> None:
        write("second", empty)
        both.wait(10)
        assert first_is_there.wait(10)

    late = threading.Thread(target=fill_once, args=(tmp_path / "shared", slowly))
    late.start()

    def first(empty: Path) -> None:
        write("first", empty)
        both.wait(10)

    fill_once(tmp_path / "shared", first)
    first_is_there.set()
    late.join(10)
    assert (tmp_path / "shared" / "content").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["shared"]


def test_a_folder_that_cannot_be_filled_leaves_nothing(tmp_path: Path) -> None:
    def fail(empty: Path) -> None:
        write("half", empty)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fill_once(tmp_path / "shared", fail)
    assert not list(tmp_path.iterdir())
