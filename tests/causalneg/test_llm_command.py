"""`causalneg generate` with a language model, as users run it: whole sets, kills, and what they get wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner, Result

from causalneg.cli import main
from causalneg.commands import mine_set
from causalneg.data import read_dataset, read_examples
from causalneg.generation.journal import Journal
from causalneg.generation.status import read_totals
from causalneg.llm.tiny_model import make_model, save, train_tokenizer
from causalneg.llm.weights import weights_digest
from causalneg.mining import MiningRules
from causalneg.world import WorldConfig, make_world
from fault_server import MODEL, FaultServer

QUICK = ("backend.first_wait=0.02", "backend.timeout=5")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    make_world(WorldConfig(passages=400, questions=100), folder)
    return folder


@pytest.fixture(scope="module")
def mined(world: Path) -> Path:
    path = world.parent / "mined.jsonl"
    mine_set(world, path, split="train", rules=MiningRules(count=4))
    return path


@pytest.fixture(scope="module")
def model(world: Path) -> Path:
    """A tiny model with random weights; what it says is noise."""
    texts = [d.content for d in read_dataset(world, splits=[]).documents]
    tokenizer = train_tokenizer(texts, vocabulary=1024)
    return save(make_model(tokenizer, width=16, layers=1, inner=32), tokenizer, world.parent / "model")


def causalneg(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def asked(endpoint: str, *more: str) -> list[str]:
    return ["--backend", "openai", "--endpoint", endpoint, "--model", MODEL, "--quiet", *QUICK, *more]


def complaint(*args: object) -> str:
    """The one line of a command that must end with exit code 2 and without a traceback."""
    result = causalneg(*args)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    return lines[0].removeprefix("error: ")


def command(*args: object) -> list[str]:
    code = "import sys; from causalneg.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", code, *map(str, args)]


def environment(repo: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo / "packages"), "OMP_NUM_THREADS": "1", **more}


def calls(journal: Path) -> list[tuple[Any, ...]]:
    """The finished calls of a journal, in their order."""
    with closing(sqlite3.connect(journal)) as database:
        return database.execute("SELECT id, key, step, value FROM calls ORDER BY id").fetchall()


def closed_port() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


def test_a_set_with_judge_and_both_voices_is_written_shown_and_trained_with(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    # Without the world's facts the verifier goes by the words, as on anybody's data.
    data, out = tmp_path / "plain", tmp_path / "set.jsonl"
    shutil.copytree(world, data, ignore=shutil.ignore_patterns("world.json", "mixed"))
    prices = ("budget.prompt_price=2", "budget.completion_price=4")
    with FaultServer() as server:
        more = ["--limit", "24", "--judge", "llm", "--both-voices", "--voices-per-query", "1"]
        result = causalneg("generate", data, mined, out, *asked(server.url, *prices, "wandb=offline"), *more)
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == str(out)
    kept, rejected = read_examples(out), read_examples(tmp_path / "set.rejected.jsonl")
    written = [n for e in (*kept, *rejected) for n in e.negatives]
    assert [e.query.id for e in kept] == [e.query.id for e in read_examples(mined)[:24]]
    assert len(written) == 3 * 24
    assert sum(len(e.negatives) for e in kept) >= 24
    assert all(n.requirement and n.strategy and n.prompt_version and n.tokens and n.verdict for n in written)
    voices = read_examples(tmp_path / "set.voices.jsonl")
    assert {p.voice for e in voices for p in (*e.positives, *e.negatives)} == {"openai"}
    totals = read_totals(tmp_path / "set.journal")
    assert totals.steps["analysis"] == totals.steps["negatives"] == 24
    card = (tmp_path / "set.card.md").read_text()
    assert card in result.stdout
    for part in (
        *("entity shift", "attribute shift", "valid", "words, mean", "overlap with the query"),
        *("| mined ", "AUC of a bag of words", f"Tokens: {totals.prompt_tokens} read, "),
        f"written; cost {(totals.prompt_tokens * 2 + totals.completion_tokens * 4) / 1e6:.4f}.",
        *("## The judge", "The two disagree on", "Tokens of the judge", "## Both voices", "Judged by llm"),
        *("- model: tiny", "- prompt version: 1-generic1-"),
    ):
        assert part in card
    assert json.loads((tmp_path / "set.card.json").read_text())["written"] == 72
    # W&B's own files, for the figures of the progress.
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    shown = causalneg("generate", data, mined, out, "--status").stdout
    for row in (
        r"pairs finished +\| +24 of 24 \(100\.0%\)",
        r"with negatives +\| +24",
        r"pairs per minute +\| +[\d.]+",
        r"judge: answers +\| +\d+",
        r"cost +\| +0\.\d{4}",
        r"time left +\| +0 s",
    ):
        assert re.search(row, shown), shown
    config = {
        "data": str(data),
        "out": str(tmp_path / "runs"),
        "name": "run",
        "sets": [{"path": str(mined), "count": 3}, {"path": str(out), "count": 1}],
        "encoder": {"name": "static", "dim": 16},
        "train": {"batch_size": 8},
        "fit": {"epochs": 1, "progress": False, "accelerator": "cpu"},
        "tracking": {"wandb": "disabled"},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    trained = causalneg("train", tmp_path / "train.yaml")
    assert trained.exit_code == 0, trained.output


def test_failures_stand_in_the_status_by_kind(world: Path, mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    with FaultServer(lambda n, digest: "not json" if n % 2 else "wrong schema") as server:
        more = asked(server.url, "backend.attempts=1", "--limit", "10")
        result = causalneg("generate", world, mined, out, *more)
    assert result.exit_code == 2
    assert "10 of 10 pairs have no written negatives" in result.stderr
    failed = "10 of 10 pairs have no negatives"
    assert result.stderr.splitlines()[-1].startswith(
        f"error: {out}: {failed}, more than max_failed=0.5 allows"
    )
    assert not out.exists()
    assert f"**Failed: {failed}; the set was not written.**" in (tmp_path / "set.card.md").read_text()
    shown = causalneg("generate", world, mined, out, "--status").stdout
    assert re.search(r"failed: not json +\| +5", shown)
    assert re.search(r"failed: wrong schema +\| +5", shown)
    with FaultServer() as server:
        assert causalneg("generate", world, mined, out, *asked(server.url, "--limit", "10")).exit_code == 2
        kept = asked(server.url, "--limit", "10", "--max-failed", "1")
        assert causalneg("generate", world, mined, out, *kept).exit_code == 0
        assert [len(e.negatives) for e in read_examples(out)] == [0] * 10
        assert sum(server.happened.values()) == 0
        more = asked(server.url, "--limit", "10", "--retry-failed")
        assert causalneg("generate", world, mined, out, *more).exit_code == 0
        assert sum(server.happened.values()) == 20
    assert read_totals(tmp_path / "set.journal").failures == {}


def test_dry_run_prints_both_prompts_for_the_first_pair_and_asks_nobody(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set.jsonl"
    result = causalneg("generate", world, mined, out, "--backend", "openai", "--dry-run", "--profile", "nq")
    assert result.exit_code == 0, result.output
    example = read_examples(mined)[0]
    dataset = read_dataset(world, splits=[])
    first, second = result.stdout.split("--- assistant ---")
    assert f"Query: {example.query.text}" in first
    assert dataset.document(str(example.positives[0].document_id)).text in first
    assert "TASK ONE" in first
    assert "Paragraphs of the English Wikipedia" in first
    assert f"[1] {dataset.document(str(example.negatives[0].document_id)).text}" in second
    assert "Task two" in second
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--backend", "openai", "--model", "m", "--endpoint", "CLOSED"], "no server answers; start it"),
        (["--backend", "openai", "--model", "tinny", "--endpoint", "SERVER"], "did you mean 'tiny'?"),
        (["--backend", "openai", "--model", MODEL], "endpoints: name at least one"),
        (["--backend", "openai", "--endpoint", "SERVER"], "model: name the model"),
        (["--backend", "transformers", "--model", "NONE"], "cannot be loaded"),
        (["--backend", "openai", "--profile", "hotpot"], "did you mean 'hotpotqa'?"),
        (["--backend", "opena"], "did you mean 'openai'?"),
        (["--backend", "openai", "budgets.tokens=3"], "did you mean 'budget"),
        (["--backend", "openai", "server.timeout=3"], "server: this setting is now backend"),
        (["--backend", "openai", "limits.candidates=3"], "this setting is now writer.limits"),
        (["--backend", "openai", "backend.timeout=0"], "backend.timeout: must be above 0, got 0"),
        (["--writer", "rule"], "did you mean 'rules'?"),
        (["--backend", "openai", "--judge", "lm"], "did you mean 'llm'?"),
        (["--backend", "openai", "budget.money=3"], "needs the prices"),
        (["--backend", "openai", "--config", "NONE"], "no such config file"),
        (["--backend", "rules", "--model", MODEL], "--model: no language model is asked"),
        (["--backend", "rules", "--writer", "llm"], "leave --writer llm out"),
        (["--backend", "openai", "--artifact", "1"], "writer 'llm' has no such setting"),
        (["--backend", "openai", "--model", MODEL, "--endpoint", "SERVER", "backend.context=900"], "too few"),
        (
            ["--backend", "openai", "--model", MODEL, "--endpoint", "SERVER", "--judge", "cross-encoder"],
            "name a cross-encoder",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_asked(
    world: Path, mined: Path, tmp_path: Path, args: list[str], line: str
) -> None:
    with FaultServer() as server:
        places = {"SERVER": server.url, "CLOSED": closed_port(), "NONE": str(tmp_path / "none")}
        given = [places.get(a, a) for a in args]
        assert line in complaint("generate", world, mined, tmp_path / "set.jsonl", *given)
        assert sum(server.happened.values()) == 0
    assert not (tmp_path / "set.jsonl").exists()


def test_a_pair_without_a_positive_is_told_with_its_line(world: Path, mined: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in mined.read_text().splitlines()[:3]]
    for positives, said in (([], "broken.jsonl:2"), ([{"document_id": "nowhere"}], "nowhere")):
        lines[1]["positives"] = positives
        (tmp_path / "broken.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with FaultServer() as server:
            args = (world, tmp_path / "broken.jsonl", tmp_path / "set.jsonl", *asked(server.url))
            assert said in complaint("generate", *args)
            assert sum(server.happened.values()) == 0


def test_the_mined_set_is_not_written_over(world: Path, mined: Path) -> None:
    before = mined.read_bytes()
    asked = ("generate", world, mined, mined, "--backend", "openai", "--model", "m")
    assert "is read by this very command" in complaint(*asked, "--endpoint", "http://127.0.0.1:9/v1")
    assert mined.read_bytes() == before


def test_there_is_no_status_before_anything_is_generated(world: Path, mined: Path, tmp_path: Path) -> None:
    assert "nothing has been generated here yet" in complaint(
        "generate", world, mined, tmp_path / "set.jsonl", "--status"
    )


class Gossip(FaultServer):
    """Repeats the key that it is given in every error."""

    async def _act(self, what: str, asked: dict[str, Any], digest: str, writer: Any) -> bool:
        if what == "right":
            return await super()._act(what, asked, digest, writer)
        await self._send(writer, 500, {"error": {"message": "failed for sk-said-back"}})
        return True


def test_the_key_is_in_no_line_and_no_file(
    world: Path, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set.jsonl"
    with Gossip(lambda n, digest: "told" if n % 3 == 2 else "right", key="sk-said-back") as server:
        args = ["generate", world, mined, out, *asked(server.url, "backend.attempts=1"), "--limit", "10"]
        args += ["--max-failed", "1"]
        assert "wants a key; set OPENAI_API_KEY to it" in complaint(*args)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        line = complaint(*args)
        assert "refuses the key in OPENAI_API_KEY" in line
        assert "sk-" not in line
        monkeypatch.setenv("OPENAI_API_KEY", "sk-said-back\n")
        result = causalneg(*args)
    assert result.exit_code == 0, result.output
    assert read_totals(tmp_path / "set.journal").failures["server error"] > 0
    assert b"failed for ***" in (tmp_path / "set.journal").read_bytes()
    assert "sk-" not in result.output
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-" not in path.read_bytes(), path


@pytest.mark.parametrize("url", ["http://me:sk-secret@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=sk-secret"])
def test_a_key_in_an_url_is_refused_and_not_repeated(
    world: Path, mined: Path, tmp_path: Path, url: str
) -> None:
    line = complaint("generate", world, mined, tmp_path / "set.jsonl", *asked(url))
    assert "keys are read from OPENAI_API_KEY" in line
    assert "secret" not in line


def test_a_key_that_is_none_is_told_and_not_repeated(
    world: Path, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-l\u00e4nger")
    line = complaint("generate", world, mined, tmp_path / "set.jsonl", *asked("http://127.0.0.1:1/v1"))
    assert line == "OPENAI_API_KEY: holds signs that no key has; set it anew"


def test_the_second_process_on_a_journal_refuses_before_it_loads_anything(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set.jsonl"
    with Journal(tmp_path / "set.journal"), FaultServer() as server:
        for args in (
            asked(server.url),
            # There is no such model, but nobody looks.
            ["--backend", "transformers", "--model", str(tmp_path / "none")],
        ):
            line = complaint("generate", world, mined, out, *args)
            assert "another process is writing to this journal" in line
        assert sum(server.happened.values()) == 0


def finish(args: Sequence[object], repo: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), env=environment(repo), capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_killed_and_run_again_it_goes_on_and_pays_for_nothing_twice(
    world: Path, mined: Path, tmp_path: Path, repo: Path
) -> None:
    most = 4
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    journal = tmp_path / "broken.journal"
    narrow = (f"backend.concurrency={most}", f"backend.highest_concurrency={most}")
    with FaultServer() as server:
        done = causalneg("generate", world, mined, whole, *asked(server.url))
        assert done.exit_code == 0, done.output
    pairs = len(read_examples(mined))
    with FaultServer(latency=0.02) as server:
        args = ("generate", world, mined, broken, *asked(server.url, *narrow))
        process = subprocess.Popen(command(*args), env=environment(repo), stdout=subprocess.DEVNULL)
        while process.poll() is None and sum(server.paid.values()) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        known = calls(journal)
        assert 2 < len(known) < 2 * pairs
        again = finish(args, repo)
        assert again.returncode == 0, again.stderr
        assert calls(journal)[: len(known)] == known
        # Only what was on its way when it was killed is paid for again.
        assert sum(server.paid.values()) - len(server.paid) <= most
    keys = [key for _, key, *_ in calls(journal)]
    assert len(keys) == len(set(keys)) == 2 * pairs
    assert broken.read_bytes() == whole.read_bytes()


FULL = """
import resource, signal, sys
from causalneg.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_stops_it_in_one_line_and_nothing_is_lost(
    world: Path, mined: Path, tmp_path: Path, repo: Path
) -> None:
    out, journal = tmp_path / "set.jsonl", tmp_path / "set.journal"
    with FaultServer() as server:
        args = ["generate", world, mined, out, *asked(server.url)]
        full = [sys.executable, "-c", FULL, *map(str, args)]
        stopped = subprocess.run(
            full, env=environment(repo), capture_output=True, text=True, check=False, timeout=300
        )
        assert stopped.returncode == 2, stopped.stderr
        assert stopped.stderr.count("\n") == 1
        assert stopped.stderr.startswith(f"error: {journal}: ")
        assert "what is finished so far is kept, make room and run the same again" in stopped.stderr
        assert not out.exists()
        known = calls(journal)
        assert known
        assert causalneg(*args).exit_code == 0
    assert calls(journal)[: len(known)] == known
    keys = [key for _, key, *_ in calls(journal)]
    assert len(keys) == len(set(keys)) == 2 * len(read_examples(mined))


def test_the_budget_holds_for_writer_and_judge_together(world: Path, mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"

    def spent() -> int:
        journal = tmp_path / "set.journal"
        return read_totals(journal).tokens + read_totals(journal, "judge").tokens

    with FaultServer() as server:
        args = ["generate", world, mined, out, *asked(server.url, "--limit", "12", "--judge", "llm")]
        first = causalneg(*args, "budget.tokens=6500")
        assert first.exit_code == 0, first.output
        assert re.search(r"the budget is spent: \d+ of 12 pairs are left", first.stderr)
        assert len(read_examples(out)) < 12
        assert spent() <= 6_500
        second = causalneg(*args, "budget.money=1", "budget.prompt_price=1")
        assert second.exit_code == 0, second.output
        assert "budget" not in second.stderr
        assert max(server.paid.values()) == 1
    assert len(read_examples(out)) == 12


def test_rewritten_passages_are_judged_though_nobody_was_named(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set.jsonl"
    with FaultServer() as server:
        more = asked(server.url, "--limit", "4", "--both-voices", "--voices-per-query", "2")
        result = causalneg("generate", world, mined, out, *more)
    assert result.exit_code == 0, result.output
    assert "Judged by llm; only unchanged ones are kept." in result.stdout
    assert "## The judge" not in result.stdout
    assert read_totals(tmp_path / "set.journal", "judge").steps["judge"] > 0
    assert [len(e.negatives) for e in read_examples(tmp_path / "set.voices.jsonl")] == [2] * 4
    negatives = [n for e in read_examples(tmp_path / "set.rejected.jsonl") for n in e.negatives]
    assert "llm" not in {n.verdict.judge for n in negatives if n.verdict}


def test_other_prompts_or_schema_begin_a_new_set_and_say_so(world: Path, mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    said = []
    with FaultServer() as server:
        for more in ((), ("--profile", "nq"), ("--profile", "nq", "writer.limits.most_requirements=6"), ()):
            before = sum(server.happened.values())
            result = causalneg("generate", world, mined, out, *asked(server.url, "--limit", "3", *more))
            assert result.exit_code == 0, result.output
            said.append((result.stderr, sum(server.happened.values()) - before))
    assert said[0] == ("", 6)
    assert "prompt version is 1-nq1-" in said[1][0]
    assert "schema is " in said[2][0]
    assert all("a new generation set begins" in line and count == 6 for line, count in said[1:3])
    # Back to the first settings, whose answers are still there.
    assert said[3] == ("", 0)


def test_a_local_model_writes_and_other_weights_in_its_folder_are_another_model(
    world: Path, mined: Path, tmp_path: Path, model: Path
) -> None:
    out = tmp_path / "set.jsonl"
    small = ["writer.limits.analysis_tokens=24", "backend.attempts=1", "backend.device=cpu"]
    small += ["--limit", "3", "--quiet"]
    args = ["generate", world, mined, out, "--backend", "transformers", "--model", model, *small]
    first = causalneg(*args)
    assert first.exit_code == 2, first.output
    assert "3 of 3 pairs have no negatives, more than max_failed=0.5 allows" in first.stderr
    totals = read_totals(tmp_path / "set.journal")
    # Noise is no JSON, so every pair fails with a reason.
    assert totals.failures.total() == 3
    assert set(totals.failures) <= {"cut answer", "not json", "empty answer", "wrong schema"}
    assert totals.identity["weights"] == weights_digest([str(model)])
    assert "new generation set" not in causalneg(*args).output
    library: Any = transformers
    other = library.AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.01)
    other.save_pretrained(model)
    changed = causalneg(*args)
    assert re.search(r"weights is \w+ and was \w+: a new generation set begins", changed.stderr)


def test_verify_asks_a_judge_when_told_and_keeps_its_answers(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    written, out = tmp_path / "set.jsonl", tmp_path / "checked.jsonl"
    made = causalneg("generate", world, mined, written, "--backend", "rules", "--limit", "10", "--quiet")
    assert made.exit_code == 0, made.output
    with FaultServer() as server:
        judge = ["--judge", "llm", "--model", MODEL, "--endpoint", server.url]
        for _ in range(2):
            result = causalneg("verify", world, written, out, *judge)
            assert result.exit_code == 0, result.output
            assert "verifier / llm" in result.stdout
            assert "The two disagree on 0 of" in result.stdout
        judged = [n for e in read_examples(out) for n in e.negatives if n.source == "generated"]
        assert judged
        assert {n.verdict.judge for n in judged if n.verdict} == {"llm"}
        assert max(server.paid.values()) == 1


def test_a_judge_that_does_not_answer_keeps_nothing(world: Path, mined: Path, tmp_path: Path) -> None:
    written, out = tmp_path / "set.jsonl", tmp_path / "checked.jsonl"
    assert causalneg("generate", world, mined, written, "--limit", "10", "--quiet").exit_code == 0
    number = sum(len(e.negatives) for e in read_examples(written))
    with FaultServer(lambda n, digest: "500") as server:
        judge = ["--judge", "llm", "--model", MODEL, "--endpoint", server.url, *QUICK, "backend.attempts=1"]
        line = complaint("verify", world, written, out, *judge)
        assert (
            f"the judge gave no verdict on {number} of {number} negatives, more than max_failed=0.5" in line
        )
        assert not out.exists()
        tolerant = causalneg("verify", world, written, out, *judge, "--max-failed", "1")
    assert tolerant.exit_code == 0
    assert "they are rejected as not judged" in tolerant.stderr
    assert [len(e.negatives) for e in read_examples(out)] == [0] * 10
    rejected = [n for e in read_examples(tmp_path / "checked.rejected.jsonl") for n in e.negatives]
    assert {n.verdict.reason for n in rejected if n.verdict} == {"not judged"}
    # What had to do with the server is asked again, and answered now.
    with FaultServer() as server:
        judge = ["--judge", "llm", "--model", MODEL, "--endpoint", server.url]
        assert causalneg("verify", world, written, out, *judge).exit_code == 0
    assert sum(len(e.negatives) for e in read_examples(out)) == number


def test_what_each_request_says_beside_the_prompt_belongs_to_the_set(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "set.jsonl", []
    with FaultServer() as server:
        for more in ((), ("backend.extra_body={reasoning_effort: high, temperature: 0}",), ()):
            before = sum(server.happened.values())
            result = causalneg("generate", world, mined, out, *asked(server.url, "--limit", "3", *more))
            assert result.exit_code == 0, result.output
            said.append((sum(server.happened.values()) - before, result.stderr))
        assert server.bodies[-1]["reasoning_effort"] == "high"
    assert [number for number, _ in said] == [6, 6, 0]
    assert 'extra_body is {"reasoning_effort": "high", "temperature": 0} and was none' in said[1][1]


def test_rules_write_and_a_model_judges(world: Path, mined: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    with FaultServer() as server:
        judge = ["--writer", "rules", "--judge", "llm", "--model", MODEL, "--endpoint", server.url]
        result = causalneg("generate", world, mined, out, *judge, "--limit", "5", "--quiet")
    assert result.exit_code == 0, result.output
    assert {n.verdict.judge for e in read_examples(out) for n in e.negatives if n.verdict} == {"llm"}
    shown = causalneg("generate", world, mined, out, "--status").stdout
    assert re.search(r"- writer: rules", shown)
    assert re.search(r"pairs finished +\| +5 of 5", shown)
    assert re.search(r"judge: answers +\| +\d+", shown)


def test_rules_have_a_status_too_and_a_foreign_journal_is_left_alone(
    world: Path, mined: Path, tmp_path: Path
) -> None:
    out, journal = tmp_path / "set.jsonl", tmp_path / "set.journal"
    journal.write_text("my notes\n")
    assert "is no journal of generated negatives" in complaint("generate", world, mined, out, "--quiet")
    assert "is no journal of generated negatives" in complaint("generate", world, mined, out, "--status")
    assert journal.read_text() == "my notes\n"
    journal.unlink()
    assert causalneg("generate", world, mined, out, "--limit", "6", "--quiet").exit_code == 0
    first = out.read_bytes()
    shown = causalneg("generate", world, mined, out, "--status").stdout
    assert re.search(r"pairs finished +\| +6 of 6 \(100\.0%\)", shown)
    assert re.search(r"tokens written +\| +0", shown)
    # Given again, it takes what it has.
    assert causalneg("generate", world, mined, out, "--limit", "6", "--quiet").exit_code == 0
    assert out.read_bytes() == first
    with closing(sqlite3.connect(journal)) as database:
        database.execute("UPDATE jobs SET value = json_set(value, '$.negatives', 5)")
        database.commit()
    line = complaint("generate", world, mined, out, "--limit", "6", "--quiet")
    assert "the journal is damaged (the result of negatives of" in line
