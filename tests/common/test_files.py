"""Folders that processes share, and what a file may replace."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from common.errors import ConfigError, DataError
from common.files import atomic_write, check_output, fill_once, reserve


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


def test_a_file_never_takes_the_place_of_a_pipe_a_device_or_a_folder(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        with pytest.raises(DataError, match="which a file cannot replace"):
            atomic_write(path, "new")
        with pytest.raises(DataError, match="which a file cannot replace"):
            check_output(path, force=True)
    assert pipe.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    link.symlink_to(file)
    for content in ("first", "second"):
        atomic_write(link, content)
        assert link.is_symlink()
        assert file.read_text() == content


def test_what_may_be_replaced(tmp_path: Path) -> None:
    data, file, empty, new = (tmp_path / name for name in ("data", "file", "empty", "new"))
    data.mkdir()
    (data / "corpus").write_text("text")
    file.write_text("text")
    empty.touch()
    for path in (empty, new, data / "new"):
        check_output(path, inputs=[data])
    with pytest.raises(ConfigError, match=f"{file}: is there already and was not made by this command"):
        check_output(file)
    check_output(file, made=lambda path: path.read_text() == "text")
    check_output(file, force=True)
    link = tmp_path / "link"
    link.symlink_to(data / "corpus")
    for path, inputs in ((file, [file]), (data / "corpus", [data]), (link, [data]), (new, [new])):
        with pytest.raises(ConfigError, match="is read by this very command"):
            check_output(path, inputs=inputs, made=lambda path: True, force=True)


def test_room_is_set_aside_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    assert path.stat().st_blocks * 512 < 1 << 20
    reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert path.read_bytes() == bytes(1 << 20)

    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        reserve(path)
    assert caught.value.filename == str(path)
