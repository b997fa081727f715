"""The record of a run, written and read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import config_hash
from common.errors import DataError
from common.machine import peak_memory
from common.training.record import Record, commit


def start() -> Record:
    return Record.start(config={"lr": 0.1}, seed=3, inputs={"data": "abc"}, parameters=12)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = start()
    assert not record.complete
    record.finish({"auc": 0.7, "rows": 12, "auc/0-50": None}, {"auc/0-50": "one class only"})
    record.notes["best_epoch"] = 2
    path = tmp_path / "run" / "record.json"
    record.save(path)
    loaded = Record.load(path)
    assert loaded == record
    assert loaded.complete
    assert loaded.metrics == {"auc": 0.7, "rows": 12.0, "auc/0-50": None}
    assert loaded.reasons == {"auc/0-50": "one class only"}
    assert loaded.config == {"lr": 0.1}
    assert loaded.identity == config_hash({"config": {"lr": 0.1}, "inputs": {"data": "abc"}})
    assert (loaded.seed, loaded.inputs, loaded.parameters) == (3, {"data": "abc"}, 12)
    assert loaded.finished is not None
    assert datetime.fromisoformat(loaded.finished) >= datetime.fromisoformat(loaded.started)
    assert os.listdir(path.parent) == ["record.json"]


def test_a_record_tells_where_it_was_made() -> None:
    record = start()
    assert record.versions["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert record.versions["numpy"] == np.__version__
    assert record.hardware["threads"] == torch.get_num_threads()
    assert record.hardware["memory"] > 2**27
    assert record.hardware["cpu"]
    assert len(record.hardware["gpu"]) == torch.cuda.device_count()
    assert record.command.startswith(Path(sys.argv[0]).name)


def test_metrics_without_a_number_become_null_with_a_reason(tmp_path: Path) -> None:
    record = start().finish({"a": math.nan, "b": math.inf, "c": None, "d": 0.5})
    assert record.metrics == {"a": None, "b": None, "c": None, "d": 0.5}
    assert record.reasons == {"a": "not finite: nan", "b": "not finite: inf", "c": "no value"}
    record.save(tmp_path / "record.json")
    json.loads((tmp_path / "record.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_wall_time_and_memory_are_measured() -> None:
    block = np.ones(2**24)
    record = start().finish({})
    assert record.wall_seconds is not None
    assert 0 <= record.wall_seconds < 60
    assert record.peak_memory_bytes is not None
    assert record.peak_memory_bytes > block.nbytes


def test_peak_memory_is_not_that_of_the_parent() -> None:
    block = np.ones(2**26)
    child = "from common.machine import peak_memory; import sys; sys.stdout.write(str(peak_memory()))"
    packages = str(Path(__file__).resolve().parents[2] / "packages")
    done = subprocess.run(
        [sys.executable, "-c", child],
        env={**os.environ, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < int(done.stdout) < peak_memory() - block.nbytes / 2


def test_commit_and_dirty_are_those_of_the_checkout(repo: Path) -> None:
    head, dirty = commit()
    git = ["git", "-C", str(repo)]
    known = subprocess.run(
        [*git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, check=False
    )
    if known.returncode:
        assert head is None
        return
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    assert (head, dirty) == (known.stdout.strip(), bool(changed))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}', '{"config": {}, "else": 1}'])
def test_a_broken_record_is_a_mistake_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"record\.json: not a .*remove its folder and run again") as caught:
        Record.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such record"):
        Record.load(tmp_path / "record.json")
