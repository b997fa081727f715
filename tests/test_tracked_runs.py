"""Real runs of both methods, tracked offline, against docs/metrics.md and the dashboards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import causalneg.cli
import causalneg.dashboard
import lain.cli
import lain.dashboard
from common.dashboard import Chart, Dashboard, Section, missing_metrics
from wandb_file import Logged, read_wandb

pytestmark = pytest.mark.slow

FIT = ["fit.epochs=1", "fit.accelerator=cpu", "fit.log_every=2"]
MEANS = {
    "probe": r"(probe|diagnosis|diagnosis/untrained)",
    "split": r"(valid|test)",
    "term": r"(entropy|matching)",
}


def works(command: str, *arguments: object) -> str:
    """The last line of a command, which must succeed and warn of nothing."""
    main = {"lain": lain.cli.main, "causalneg": causalneg.cli.main}[command]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert not re.search("warn|wandb:", done.stderr, re.IGNORECASE), done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def ctr(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """SIM, the backbone with an auxiliary loss."""
    home = tmp_path_factory.mktemp("ctr")
    works("lain", "world", home / "data", "--users", 60, "--seed", 3)
    content = {
        "data": str(home / "data"), "out": str(home / "runs"), "name": "sim", "model": {"name": "sim"},
        "embedding": {"dim": 4}, "head": {"hidden": [8]}, "history": {"max_length": 30},
        "train": {"batch_size": 128}, "diagnose_rows": 20,
    }  # fmt: skip
    (home / "train.yaml").write_text(yaml.safe_dump(content))
    return read_wandb(Path(works("lain", "train", home / "train.yaml", *FIT)))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, what was mined and what was written, both tracked."""
    home = tmp_path_factory.mktemp("retrieval")
    works("causalneg", "world", home / "world", "--passages", 300, "--questions", 100)
    mined = ("--count", 6, "--depth", 30, "--wandb", "offline", "--quiet")
    works("causalneg", "mine", home / "world", home / "mined" / "bm25.jsonl", *mined)
    written = (home / "mined" / "bm25.jsonl", home / "written" / "rules.jsonl")
    works("causalneg", "generate", home / "world", *written, "wandb=offline", "--quiet")
    return home


@pytest.fixture(scope="module")
def retrieval(sets: Path) -> Logged:
    """An encoder trained on both sets, with all that can be measured."""
    content = {
        "data": str(sets / "world"), "mixed": str(sets / "world" / "mixed"), "out": str(sets / "runs"),
        "sets": [
            {"path": str(sets / "mined" / "bm25.jsonl"), "count": 3},
            {"path": str(sets / "written" / "rules.jsonl"), "count": 1},
        ],
        "encoder": {"name": "static", "dim": 16}, "exact": False, "valid_split": "dev", "ladder": False,
        "loss": {"terms": [{"name": "entropy", "weight": 0.05}]},
        "diagnose": {"holdout": 0.3, "documents": 20, "every": 2}, "train": {"batch_size": 8},
    }  # fmt: skip
    (sets / "train.yaml").write_text(yaml.safe_dump(content))
    return read_wandb(Path(works("causalneg", "train", sets / "train.yaml", "name=run", *FIT)))


def documented(repo: Path, method: str) -> dict[str, re.Pattern[str]]:
    """The names of docs/metrics.md that a run of a method has on a CPU, as patterns."""
    found = {}
    for line in (repo / "docs" / "metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`") and cells[1] in (method, "both"):
            name = cells[0].strip("`")
            pattern = re.escape(name).replace(r"\{", "{").replace(r"\}", "}")
            pattern = re.sub(r"\\\[(.*?)\\\]", r"(\1)?", pattern)
            pattern = re.sub(r"{(\w+)}", lambda m: MEANS.get(m[1], "[^/]+"), pattern)
            found[name] = re.compile(pattern)
    assert len(found) > 20
    return found


def check_documented(logged: Logged, names: dict[str, re.Pattern[str]]) -> None:
    """Everything that is logged is in the table, and the other way round."""
    unknown = [n for n in logged.names if not any(p.fullmatch(n) for p in names.values())]
    assert not unknown, f"not in docs/metrics.md: {sorted(unknown)}"
    silent = [name for name, p in names.items() if not any(p.fullmatch(n) for n in logged.names)]
    assert not silent, f"in docs/metrics.md, but not logged: {silent}"


def test_a_ctr_run_logs_what_the_table_says(repo: Path, ctr: Logged) -> None:
    check_documented(ctr, documented(repo, "lain"))
    assert ctr.run["tags"] == ["sim", "base", "seed-0"]
    kept = {one["type"]: one for one in ctr.artifacts}
    assert kept["dataset"]["use_after_commit"]
    assert "use_after_commit" not in kept["model"]


def test_a_retrieval_run_logs_what_the_table_says(repo: Path, retrieval: Logged) -> None:
    check_documented(retrieval, documented(repo, "causalneg"))
    assert retrieval.run["tags"] == ["static", "seed-0"]


def test_every_panel_has_what_it_shows(ctr: Logged, retrieval: Logged) -> None:
    assert missing_metrics(lain.dashboard.DASHBOARD, ctr.names) == []
    assert missing_metrics(causalneg.dashboard.DASHBOARD, retrieval.names) == []
    wrong = Dashboard("m", "t", "d", (Section("s", "t", (Chart("c", ("test/ndcg@10x",)),)),))
    assert missing_metrics(wrong, retrieval.names) == [
        "s / c: no metric 'test/ndcg@10x'; did you mean 'test/ndcg@10'?"
    ]


def test_the_lineage_goes_from_the_data_to_the_encoder(sets: Path, retrieval: Logged) -> None:
    """What one step made is, by name, type and content, what the next one read."""

    def lineage(logged: Logged) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
        ends: tuple[set[tuple[str, ...]], set[tuple[str, ...]]] = (set(), set())
        for one in logged.artifacts:
            if one["type"] != "run_table":
                ends["use_after_commit" not in one].add((one["type"], one["name"], one["digest"]))
        return ends

    mined, written = read_wandb(sets / "mined"), read_wandb(sets / "written")
    assert [run.run["job_type"] for run in (mined, written, retrieval)] == ["mine", "generate", "train"]
    (data, bm25), (read, rules), (trained_on, encoder) = map(lineage, (mined, written, retrieval))
    assert [{kind for kind, *_ in made} for made in (bm25, rules, encoder)] == [
        {"mined"}, {"generated"}, {"model"},
    ]  # fmt: skip
    assert {kind for kind, *_ in data} == {"dataset"}
    assert read == data | bm25
    assert trained_on >= data | bm25 | rules
    assert {kind for kind, *_ in trained_on - data - bm25 - rules} == {"training-set"}
