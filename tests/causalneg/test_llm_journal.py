from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from causalneg.generation.journal import Journal, Record, read_totals
from common.errors import DataError

SETTINGS = {"model": "one", "prompt version": "1"}


def record(number: int, **more: object) -> Record:
    answer = {"text": f'answer, "value": {number}\n'}
    answer = {"text": f'answer, "value": {number}\n'}
    values = {"value": answer, "prompt_tokens": 10, "completion_tokens": 5}
    return Record(key=f"{number:032x}", step="negatives", unit=f"q{number}", **(values | more))  # type: ignore[arg-type]


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    with Journal(path, SETTINGS) as journal:
        for number in range(100):
            journal.add(record(number))
        journal.add(record(7, value=None, failure="timeout", detail="x"))
        assert journal.get(f"{3:032x}") == record(3)
    with Journal(path, SETTINGS) as journal:
        assert [journal.get(f"{n:032x}") for n in (0, 99)] == [record(0), record(99)]
        # The last word counts.
        assert journal.get(f"{7:032x}") == record(7, value=None, failure="timeout", detail="x")
        assert journal.get(f"{100:032x}") is None
        assert (journal.totals.done, journal.totals.failures) == (99, {"timeout": 1})
        assert journal.totals.tokens == 101 * 15


def test_a_last_line_cut_anywhere_is_taken_off_and_said(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    with Journal(path, SETTINGS) as journal:
        for number in range(3):
            journal.add(record(number))
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole), 7):
        path.write_bytes(whole[:end])
        said: list[str] = []
        with Journal(path, SETTINGS, report=said.append) as journal:
            assert journal.get(f"{1:032x}") == record(1)
            assert journal.get(f"{2:032x}") is None
            journal.add(record(2))
        assert len(said) == (end > last)
        with Journal(path, SETTINGS) as journal:
            assert [journal.get(f"{n:032x}") for n in range(3)] == [record(n) for n in range(3)]


def test_other_settings_begin_a_new_set_and_the_old_one_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    said: list[str] = []
    with Journal(path, SETTINGS, report=said.append) as journal:
        journal.add(record(1))
    assert said == []
    with Journal(path, SETTINGS | {"model": "two"}, report=said.append) as journal:
        assert journal.get(f"{1:032x}") is None
        journal.add(record(1, value={"text": "two"}))
    assert said == [f"{path}: model is two and was one: a new generation set begins"]
    with Journal(path, SETTINGS, report=said.append) as journal:
        assert journal.get(f"{1:032x}") == record(1)
    assert len(said) == 1


def test_the_second_process_refuses(tmp_path: Path, repo: Path) -> None:
    path = tmp_path / "set.journal"
    code = (
        "import sys; from pathlib import Path; from causalneg.generation.journal import Journal\n"
        "from common.cli import run_command\n"
        f"run_command(lambda: Journal(Path(sys.argv[1]), {SETTINGS!r}).close())"
    )
    command = [sys.executable, "-c", code, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    with Journal(path, SETTINGS) as journal:
        journal.add(record(1))
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert second.stderr == (
            f"error: {path}: another process is writing to this journal; wait for it, or write to another "
            "output\n"
        )
        journal.add(record(2))
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    with Journal(path, SETTINGS) as journal:
        assert journal.get(f"{2:032x}") == record(2)


WRITE = """
import sys
from pathlib import Path
from causalneg.generation.journal import Journal, Record
journal = Journal(Path(sys.argv[1]), {"model": "one", "prompt version": "1"}, report=print)
number = int(sys.argv[2])
while True:
    text = "x" * (number * 37 % 500)
    journal.add(Record(key=f"{number:032x}", step="analysis", unit="u", value={"text": text}))
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
        done = [int(line) for line in lines if line.endswith(b"\n") and line.strip().isdigit()]
        with Journal(path, SETTINGS) as journal:
            for number in done:
                found = journal.get(f"{number:032x}")
                assert found is not None
                assert found.value == {"text": "x" * (number * 37 % 500)}
        first = done[-1] + 1


FULL = """
import resource, signal, sys
from pathlib import Path
from causalneg.generation.journal import Journal, Record
from common.cli import run_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
def main():
    with Journal(Path(sys.argv[1]), {"model": "one", "prompt version": "1"}) as journal:
        for number in range(1000):
            journal.add(Record(key=f"{number:032x}", step="analysis", unit="u", value={"text": "x" * 100}))
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
    content = path.read_bytes()
    assert content.endswith(b"\n")
    lines = [json.loads(line) for line in content.splitlines()]
    assert 20_000 - len(content) < 400
    with Journal(path, SETTINGS) as journal:
        assert journal.get(lines[-1]["key"]) is not None


def test_what_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("first\nsecond\n")
    with pytest.raises(DataError, match=r"notes\.txt:1: is no line of a journal"):
        Journal(path, SETTINGS)
    assert path.read_text() == "first\nsecond\n"
    with pytest.raises(DataError, match="there is no journal"):
        read_totals(tmp_path / "none")


def test_totals_follow_pairs_through_their_calls(tmp_path: Path) -> None:
    path = tmp_path / "set.journal"
    with Journal(path, SETTINGS) as journal:
        journal.begin(5)
        for number, (step, failure) in enumerate(
            [("analysis", ""), ("analysis", ""), ("analysis", "timeout"), ("negatives", ""), ("rewrite", "")]
        ):
            unit = "a" if step == "negatives" else f"{'abc'[min(number, 2)]}"
            journal.add(
                Record(
                    key=f"{number:032x}",
                    step=step,  # type: ignore[arg-type]
                    unit=unit,
                    value=None if failure else {},
                    failure=failure,
                    prompt_tokens=10,
                    completion_tokens=1,
                )
            )
        during = read_totals(path)
        assert during.running
    totals = read_totals(path)
    assert (totals.done, totals.analysed, totals.failures) == (1, 1, {"timeout": 1})
    assert (totals.pairs, totals.finished, totals.tokens) == (5, 2, 55)
    assert totals.steps == {"analysis": 2, "negatives": 1, "rewrite": 1}
    assert not totals.running
    with Journal(path, SETTINGS) as journal:
        # The third pair is tried again and goes well.
        journal.begin(5)
        assert journal.totals.done_before == 2
        journal.add(record(5))
        journal.add(Record(key=f"{6:032x}", step="analysis", unit="c", value={}))
    assert read_totals(path).failures == {}
    assert read_totals(path).done == 2
