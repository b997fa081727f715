"""The journal: what is finished is never lost nor asked again, whatever happens to process, disk or file."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from causalneg.generation.journal import Answer, Finished, Journal, Ledger
from causalneg.generation.status import read_totals, status
from common.errors import DataError

IDENTITY = {"model": "one", "prompt version": "1"}


def key(number: int) -> str:
    return f"{number:032x}"


def answer(number: int, **more: object) -> Answer:
    value = {"text": f'answer, "value": {number}\n'}
    values = {"step": "negatives", "value": value, "prompt_tokens": 10, "completion_tokens": 5}
    return Answer(key=key(number), unit=f"q{number}", **(values | more))  # type: ignore[arg-type]


def ledger_of(journal: Journal) -> Ledger:
    return journal.ledger("writer", IDENTITY)


def change(path: Path, statement: str, *values: object) -> None:
    """What bit rot, a hand or another tool does to a journal."""
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement, values)
        database.commit()


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    failed = answer(7, value=None, failure="timeout", detail="x")
    with Journal(path) as journal:
        ledger = ledger_of(journal)
        for number in range(100):
            ledger.add(answer(number))
        ledger.add(failed)
        ledger.finish(Finished(key(1), "rewrite", "d", "", {"text": "said"}))
        assert ledger.get(key(3)) == answer(3)
    with Journal(path) as journal:
        ledger = ledger_of(journal)
        assert [ledger.get(key(n)) for n in (0, 99)] == [answer(0), answer(99)]
        # The last word counts, and everything that was paid is counted.
        assert ledger.get(key(7)) == failed
        assert ledger.get(key(100)) is None
        assert journal.spent == (101 * 10, 101 * 5)
        assert ledger.totals().tokens == 101 * 15
        assert ledger.finished("rewrite", key(1)) == Finished(key(1), "rewrite", "d", "", {"text": "said"})
        assert ledger.finished("negatives", key(1)) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.journal"]


def test_another_identity_begins_a_new_set_and_the_old_one_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    said: list[str] = []
    with Journal(path, report=said.append) as journal:
        ledger_of(journal).add(answer(1))
        # A judge beside it is no other set.
        assert journal.ledger("judge", {"model": "judge"}).get(key(1)) is None
    assert said == []
    with Journal(path, report=said.append) as journal:
        other = journal.ledger("writer", IDENTITY | {"model": "two"})
        assert other.get(key(1)) is None
        other.add(answer(1, value={"text": "two"}))
        assert journal.spent == (10, 5)
    assert said == [f"{path}: model is two and was one: a new generation set begins"]
    with Journal(path, report=said.append) as journal:
        assert ledger_of(journal).get(key(1)) == answer(1)
    assert len(said) == 1


def test_the_second_process_refuses(tmp_path: Path, repo: Path) -> None:
    path = tmp_path / "set.journal"
    code = (
        "import sys; from pathlib import Path; from causalneg.generation.journal import Journal\n"
        "from common.cli import run_command\n"
        "run_command(lambda: Journal(Path(sys.argv[1])).close())"
    )
    command = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    with Journal(path) as journal:
        ledger_of(journal).add(answer(1))
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert second.stderr == (
            f"error: {path}: another process is writing to this journal; wait for it, or write to another "
            "output\n"
        )
        ledger_of(journal).add(answer(2))
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    with Journal(path) as journal:
        assert ledger_of(journal).get(key(2)) == answer(2)


WRITE = """
import sys
from pathlib import Path
from causalneg.generation.journal import Answer, Journal
ledger = Journal(Path(sys.argv[1])).ledger("writer", {"model": "one", "prompt version": "1"})
number = int(sys.argv[2])
while True:
    text = "x" * (number * 37 % 500)
    ledger.add(Answer(key=f"{number:032x}", step="analysis", unit="u", value={"text": text}))
    print(number, flush=True)
    number += 1
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_finished(tmp_path: Path, repo: Path) -> None:
    path = tmp_path / "set.journal"
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    first = 0
    for round_number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(path), str(first)], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(40 + 17 * round_number)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        # A last number without its line end may not have been written.
        done = [int(line) for line in lines if line.endswith(b"\n")]
        with Journal(path) as journal:
            ledger = ledger_of(journal)
            for number in done:
                found = ledger.get(key(number))
                assert found is not None
                assert found.value == {"text": "x" * (number * 37 % 500)}
        first = done[-1] + 1


FULL = """
import resource, signal, sys
from pathlib import Path
from causalneg.generation.journal import Answer, Journal
from common.cli import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
def main():
    with Journal(Path(sys.argv[1])) as journal:
        ledger = journal.ledger("writer", {"model": "one", "prompt version": "1"})
        for number in range(5000):
            ledger.add(Answer(key=f"{number:032x}", step="analysis", unit="u", value={"text": "x" * 100}))
            print(number, flush=True)
run_command(main)
"""


def test_without_room_the_journal_stays_whole_and_one_line_says_so(tmp_path: Path, repo: Path) -> None:
    path = tmp_path / "set.journal"
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    command = [sys.executable, "-c", FULL, str(path)]
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert stopped.returncode == 2
    assert stopped.stderr.count("\n") == 1
    assert stopped.stderr.startswith(f"error: {path}: ")
    assert "what is finished so far is kept" in stopped.stderr
    written = [int(line) for line in stopped.stdout.split()]
    assert len(written) > 20
    with Journal(path) as journal:
        ledger = ledger_of(journal)
        assert all(ledger.get(key(n)) is not None for n in written)


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    notes, earlier, other = tmp_path / "notes", tmp_path / "earlier", tmp_path / "other"
    notes.write_text("first\nsecond\n")
    earlier.write_text('{"set": "0", "about": {}, "time": 1.0}\n')
    change(other, "CREATE TABLE songs (name TEXT)")
    os.mkfifo(tmp_path / "pipe")
    for path, said in (
        (notes, "is no journal of generated negatives"),
        (earlier, "is a journal of an earlier version"),
        (other, "is no journal of generated negatives"),
        (tmp_path / "pipe", "is no file that a journal can be"),
        (Path("/dev/null"), "is no file that a journal can be"),
        (tmp_path, "is no file that a journal can be"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        calls: tuple[Callable[[Path], object], ...] = (Journal, read_totals)
        for call in calls:
            with pytest.raises(DataError, match=said) as caught:
                call(path)
            assert len(caught.value.messages) == 1
        assert not path.is_file() or path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["earlier", "notes", "other", "pipe"]
    with pytest.raises(DataError, match="there is no journal"):
        read_totals(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="is no journal"):
        read_totals(tmp_path / "empty")
    Journal(tmp_path / "empty").close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE calls SET value = 'no json'",
        "UPDATE calls SET value = '['",
        "UPDATE calls SET value = NULL",
        "UPDATE ledgers SET identity = '[]'",
        "UPDATE ledgers SET identity = 'null'",
        "DROP TABLE calls",
    ],
)
def test_wrong_values_give_one_clear_line(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "set.journal"
    with Journal(path) as journal:
        ledger_of(journal).add(answer(1))
    change(path, statement)

    def read() -> None:
        with Journal(path) as journal:
            # Another identity is compared with the last one.
            journal.ledger("writer", {"model": "two"})
            ledger_of(journal).get(key(1))

    with pytest.raises(DataError, match=r"the journal is damaged \(.*\); move it away"):
        read()
    if "value" not in statement:
        with pytest.raises(DataError, match="the journal is damaged"):
            status(path)


@pytest.mark.parametrize("column", ["prompt_tokens", "attempts", "repaired", "step", "key", "unit"])
@pytest.mark.parametrize("value", ["'x'", "NULL", "x'ff'"])
def test_a_value_of_another_type_does_not_get_in(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "set.journal"
    with Journal(path) as journal:
        ledger_of(journal).add(answer(1))
    if (column, value) in (("key", "x'ff'"), ("step", "'x'"), ("unit", "'x'")):
        return
    with pytest.raises(sqlite3.IntegrityError):
        change(path, f"UPDATE calls SET {column} = {value}")


def test_a_torn_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    with Journal(path) as journal:
        ledger = ledger_of(journal)
        for number in range(500):
            ledger.add(answer(number))
    content = bytearray(path.read_bytes())
    content[4096 : len(content) : 3] = b"\xff" * len(content[4096 : len(content) : 3])
    path.write_bytes(content)

    def read() -> None:
        with Journal(path) as journal:
            ledger = ledger_of(journal)
            for number in range(500):
                ledger.get(key(number))

    with pytest.raises(DataError, match="is damaged"):
        read()


def test_totals_follow_pairs_through_their_jobs(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    with Journal(path) as journal:
        ledger = ledger_of(journal)
        ledger.begin(5, (2.0, 4.0))
        steps = ("analysis", "analysis", "analysis", "negatives", "rewrite")
        for number, (step, failure) in enumerate(zip(steps, ("", "", "timeout", "", ""), strict=True)):
            ledger.add(
                answer(number, step=step, failure=failure, completion_tokens=1, attempts=1 + number % 2)
            )
        ledger.finish(Finished(key(1), "negatives", "a"))
        ledger.finish(Finished(key(2), "negatives", "b", "timeout"))
        ledger.finish(Finished(key(3), "rewrite", "d"))
        during = read_totals(path)
        assert during.running
    totals = read_totals(path)
    assert (totals.done, totals.failures) == (1, {"timeout": 1})
    assert (totals.pairs, totals.finished, totals.tokens) == (5, 2, 55)
    assert totals.steps == {"analysis": 2, "negatives": 1, "rewrite": 1}
    assert (totals.asked_again, totals.prompt_price, totals.completion_price) == (2, 2.0, 4.0)
    assert not totals.running
    with Journal(path) as journal:
        # The pair that failed is tried again and goes well.
        ledger = ledger_of(journal)
        ledger.begin(5)
        ledger.finish(Finished(key(2), "negatives", "b"))
        assert ledger.totals().done_before == 2
    assert (read_totals(path).failures, read_totals(path).done) == ({}, 2)


OPEN = """
import resource, sys, time
from pathlib import Path
from causalneg.generation.journal import Journal
from causalneg.generation.status import read_totals
began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Journal(Path(sys.argv[1])) as journal:
    ledger = journal.ledger("writer", {"model": "one", "prompt version": "1"})
    assert ledger.get(f"{999_999:032x}").unit == "q999999"
    seconds = time.monotonic() - began
    totals = ledger.totals()
assert read_totals(Path(sys.argv[1])).done == 1_000_000
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, totals.tokens)
"""


@pytest.mark.slow
def test_a_million_answers_open_in_little_memory(tmp_path: Path, repo: Path) -> None:
    path = tmp_path / "set.journal"
    with Journal(path) as journal:
        ledger_of(journal)
    text = json.dumps({"text": "x" * 300})
    with closing(sqlite3.connect(path)) as database:
        database.executemany(
            "INSERT INTO calls (ledger, key, step, unit, failure, detail, prompt_tokens, completion_tokens, "
            "attempts, repaired, value) VALUES (1, ?, 'negatives', ?, '', '', 10, 5, 1, 0, ?)",
            ((bytes.fromhex(key(n)), f"q{n}", text) for n in range(1_000_000)),
        )
        database.executemany(
            "INSERT INTO jobs (ledger, step, key, unit, failure, time) VALUES (1, 'negatives', ?, ?, '', ?)",
            ((bytes.fromhex(key(n)), f"q{n}", time.time()) for n in range(1_000_000)),
        )
        database.commit()
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    found = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    seconds, kilobytes, tokens = found.stdout.split()
    assert int(tokens) == 15_000_000
    assert int(kilobytes) < 200 * 1024, f"{kilobytes} kB, {seconds} s"
    print(f"a million answers: {float(seconds):.2f} s, {int(kilobytes) / 1024:.0f} MB")  # noqa: T201
