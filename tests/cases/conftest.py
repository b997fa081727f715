"""Small inputs that once failed, run through the real commands; they lie beside the checkout.

Where ``../shared/cases`` is missing these tests are skipped, and say so. Cases that a test with an input of
its own already covers are named in the docstrings of the files here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from outcome import Case, Command, copy


@pytest.fixture(scope="session")
def cases(shared: Path) -> Path:
    """The folder of all cases."""
    path = shared / "cases"
    if not path.is_dir():
        pytest.skip(f"no cases: {path} does not exist")
    return path


@pytest.fixture
def case(cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Go to a copy of a case."""

    def go(name: str) -> Path:
        if not (cases / name).is_dir():
            pytest.skip(f"no such case: {cases / name}")
        folder = copy(cases / name, tmp_path / "case")
        monkeypatch.chdir(folder)
        return folder

    return go


@pytest.fixture(scope="session")
def lain() -> Command:
    """The command ``lain``."""
    from lain.cli import main

    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="session")
def causalneg() -> Command:
    """The command ``causalneg``."""
    from causalneg.cli import main

    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])
