"""What the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from common.config import read_yaml


@pytest.fixture(scope="module")
def project(repo: Path) -> dict[str, Any]:
    return tomllib.loads((repo / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(repo: Path) -> dict[str, str]:
    lines = (repo / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def make(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)


def test_constraints_are_plain_versions(pins: dict[str, str]) -> None:
    assert all(
        re.fullmatch(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?", pin) for pin in pins.values()
    )
    assert pins["torch"] == "2.13.0"
    assert "causalneg-lain" not in pins


def test_every_requirement_is_pinned_within_its_bounds(project: dict[str, Any], pins: dict[str, str]) -> None:
    known = {canonicalize_name(name): Version(pin) for name, pin in pins.items()}
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + [line for extra in extras.values() for line in extra]
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name == project["project"]["name"]:
            assert requirement.extras <= set(extras), line
            continue
        assert list(requirement.specifier), f"{line} has no lower bound"
        assert known[canonicalize_name(requirement.name)] in requirement.specifier, line


def test_the_installed_libraries_are_the_pinned_ones(pins: dict[str, str]) -> None:
    for name in ("torch", "lightning"):
        assert Version(metadata.version(name)).public == pins[name]


def test_make_alone_shows_the_help(repo: Path) -> None:
    assert make(repo).stdout == make(repo, "help").stdout
    phony = (repo / "Makefile").read_text().split(".PHONY:")[1].split("\n\n")[0]
    targets = phony.replace("\\\n", " ").split()
    for target in targets:
        assert f"  {target} " in make(repo, "help").stdout


def test_clean_leaves_the_runs(repo: Path) -> None:
    done = make(repo, "--dry-run", "clean")
    assert done.returncode == 0
    assert ".venv" in done.stdout
    assert "runs" not in done.stdout


def test_a_study_gets_its_arguments(repo: Path) -> None:
    stamp = ["--assume-old=.venv/.stamp", "--dry-run"]
    plain = make(repo, *stamp, "reproduce-ctr").stdout
    given = make(repo, *stamp, "reproduce-ctr", "STUDY=kuairand", "DATA=a b", "SEEDS=1").stdout
    assert "lain study 'world'" in plain
    assert "--data" not in plain
    assert "lain study 'kuairand'" in given
    assert "--data 'a b' --seeds '1'" in given
    other = make(repo, *stamp, "reproduce-retrieval", "STUDY=wiki-mix", "DATA=a b").stdout
    assert "causalneg study 'wiki-mix'" in other
    assert "--data 'a b'" in other


def test_every_tracked_yaml_loads(repo: Path) -> None:
    done = subprocess.run(
        ["git", "ls-files", "*.yaml", "*.yml"], cwd=repo, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in done.stdout.splitlines():
        assert read_yaml(repo / name), name


def test_nothing_but_tracking_backends_and_commands_reads_the_environment(repo: Path) -> None:
    allowed = {"wandb_mode.py", "cli.py", "openai_server.py", "vllm_engine.py", "taught.py"}
    for path in (repo / "packages").rglob("*.py"):
        if path.name not in allowed:
            assert not re.search(r"\bos\.(environ|getenv)\b", path.read_text()), path


def test_nothing_can_run_code_from_a_file(repo: Path) -> None:
    banned = re.compile(r"\b(pickle\.loads?|eval|exec)\(|trust_remote_code=True|weights_only=False")
    for path in (repo / "packages").rglob("*.py"):
        text = re.sub(r"\.(eval|exec)\(", "", path.read_text())
        assert not banned.search(text), path


def test_the_licence_is_apache_2(repo: Path, project: dict[str, Any]) -> None:
    assert "Apache License\n                           Version 2.0" in (repo / "LICENSE").read_text()
    assert project["project"]["license"] == "Apache-2.0"
