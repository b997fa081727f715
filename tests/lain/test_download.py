"""Fetching public data sets: checked by their sums, and one line where that is not possible."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import BackendError, ConfigError, DataError
from lain.cli import main
from lain.formats import FORMATS
from lain.formats import download as module
from lain.formats.download import PUBLISHED, Published, download


def published(path: Path, monkeypatch: pytest.MonkeyPatch, *, sums: dict[str, str] | None = None) -> None:
    """An archive on this machine, at a file address."""
    sum = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    what = Published("ratings.dat", "https://example.org", path.as_uri(), md5=sums or {path.name: sum})
    monkeypatch.setitem(PUBLISHED, "movielens-1m", what)


def make_zip(path: Path, names: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in names.items():
            packed.writestr(name, content)
    return path


def test_every_public_log_is_known() -> None:
    assert set(PUBLISHED) == set(FORMATS) - {"log", "reczoo", "kuairand"}


def test_a_zip_with_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(make_zip(tmp_path / "a.zip", {"ml-1m/ratings.dat": "1", "ml-1m/users.dat": "2"}), monkeypatch)
    download("movielens-1m", tmp_path / "out")
    assert {entry.name: entry.read_text() for entry in (tmp_path / "out").iterdir()} == {
        "ratings.dat": "1",
        "users.dat": "2",
    }
    (tmp_path / "a.zip").unlink()
    download("movielens-1m", tmp_path / "out")  # there already: nothing is fetched


def test_a_tar_that_would_write_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("../escaped")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    published(tmp_path / "a.tar.gz", monkeypatch)
    with pytest.raises(DataError, match="damaged or cut off"):
        download("movielens-1m", tmp_path / "sub" / "out")
    assert not (tmp_path / "sub" / "escaped").exists()
    assert list((tmp_path / "sub").iterdir()) == []


@pytest.mark.parametrize("sums", [{"a.zip": "0" * 32}, {"train.csv": "0" * 32}])
def test_another_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: dict[str, str]
) -> None:
    published(make_zip(tmp_path / "a.zip", {"train.csv": "1", "test.csv": "2"}), monkeypatch, sums=sums)
    with pytest.raises(DataError, match="is not what was published"):
        download("movielens-1m", tmp_path / "sub" / "out")
    assert list((tmp_path / "sub").iterdir()) == []


def test_without_a_network_the_files_and_their_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(make_zip(tmp_path / "a.zip", {"x": "1"}), monkeypatch)
    (tmp_path / "a.zip").unlink()
    line = r"a.zip: cannot be fetched .*; fetch ratings.dat from https://example.org by hand and put .*out$"
    with pytest.raises(BackendError, match=line):
        download("movielens-1m", tmp_path / "out")
    monkeypatch.setattr(module, "_fetch", lambda *_: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(
        BackendError, match=r"reczoo/KuaiVideo_x1: cannot be fetched \(no route\); fetch train.csv"
    ):
        download("kuaivideo-x1", tmp_path / "out")


def test_what_needs_a_login_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["prepare", "mind", str(tmp_path / "in"), str(tmp_path / "out"), "--download"]
    )
    assert result.exit_code == 2
    assert "needs a login or a licence to accept; fetch MINDsmall_train/" in result.stderr
    with pytest.raises(ConfigError, match="reczoo is not a public data set"):
        download("reczoo", tmp_path / "in")
