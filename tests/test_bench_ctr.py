"""The speed comparison: its data, its arithmetic, and the command on a few rows."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

from lain.data.store import Store
from lain.formats import prepare

BENCH = Path(__file__).resolve().parents[1] / "experiments" / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("bench_ctr")


def test_data_follows_the_description(bench: ModuleType, tmp_path: Path) -> None:
    world = bench.World(users=20_000, items=2_000, categories=9, rows=20_000)
    world.write(tmp_path)
    history = pq.read_table(tmp_path / "user_info.parquet")["full_item_seq"].combine_chunks()
    length = np.diff(history.offsets.to_numpy())
    rows = pq.read_table(tmp_path / "train.parquet")
    drawn = rows["seq_len"].to_numpy()
    assert 75 <= np.median(length) <= 79
    assert length.min() >= 1
    assert length.max() == 1000
    assert 125 <= length.mean() <= 140  # 140 before the cut at 1000
    expected = (length.astype(float) ** 2).sum() / length.sum()  # drawn in proportion to length
    assert drawn.mean() == pytest.approx(expected, rel=0.05)
    np.testing.assert_array_equal(drawn, length[rows["user_index"].to_numpy()])
    assert set(np.unique(history.values.to_numpy())) == set(range(1, 2001))


def test_data_can_be_prepared(bench: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    bench.QUICK.write(tmp_path / "source")
    prepare("reczoo", tmp_path / "source", tmp_path / "store", progress=False)
    store = Store.open(tmp_path / "store")
    assert {f.name: f.width for f in store.features} == {"item_id": 1, "cate_id": 1, "image_emb": 64}
    assert store.splits == {"train": 256, "valid": 16, "test": 16}


def test_turns_compare_medians(bench: ModuleType) -> None:
    def batch(load: float, **steps: float) -> dict[str, object]:
        return {"rows": 10, "load": load, "steps": steps}

    turns = bench.Turns(
        own=[[batch(1, base=1, lain=3), batch(1, base=4, lain=4)], [batch(1, base=1, lain=1)]],
        peer=[[batch(2, peer=18)], [batch(2, peer=8)]],
    )
    found = turns.compare("base")
    assert found["rows_per_second"] == pytest.approx(5)  # the median of 5, 2 and 5
    assert found["peer_rows_per_second"] == pytest.approx(0.75)  # between 0.5 and 1
    assert found["ratio"] == pytest.approx(5 / 0.75)
    assert found["spread"] == pytest.approx([5 / 1, 3.5 / 0.5])  # second turn, first turn
    assert turns.compare(None)["rows_per_second"] == pytest.approx(10)
    assert bench.Turns(turns.own, []).compare("lain")["ratio"] is None


def test_verdict_names_each_target(bench: ModuleType) -> None:
    row = {"backbone": "twin", "max_length": 1000, "ratio": 3.9, "extra_time": 0.04}
    assert bench.verdict(row) == "short of 4x, met +5% time"
    assert bench.verdict(row | {"max_length": 100}) == ""


def test_profile_names_what_takes_most_and_what_differs_most(bench: ModuleType) -> None:
    operators = {
        "base": {"mm": [8.0, 2], "add": [3.0, 5], "cat": [1.0, 1]},
        "lain": {"mm": [8.5, 3], "add": [3.0, 5], "take": [0.25, 0.5]},
    }
    title, _, _, _, *lines = bench.profile_table("twin", operators, most=2).strip().splitlines()
    assert title == "## twin"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [
        ["all", "12.0", "", "11.8", "", "-0.2"],
        ["`mm`", "8.0", "2", "8.5", "3", "+0.5"],
        ["`add`", "3.0", "5", "3.0", "5", "+0.0"],
        ["`cat`", "1.0", "1", "0.0", "0", "-1.0"],
    ]


def test_table_says_that_the_peers_batches_are_smaller(bench: ModuleType) -> None:
    row = {"backbone": "dien", "arm": "base", "max_length": 1000, "rows_per_second": 100.0}
    row |= {"peer_rows_per_second": 2.0, "ratio": 50.0, "spread": [49.0, 51.0], "batch_rows": 512}
    assert "| 2.0 (batches of 64) |" in bench.table([row | {"peer_batch_rows": 64}])
    assert "(batches" not in bench.table([row | {"peer_batch_rows": 512}])


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "bench_ctr.py"), *map(str, arguments)]
    packages = str(BENCH.parents[1] / "packages")
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": packages})


def test_a_peer_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = run("--quick", "--peer", tmp_path, "--data", tmp_path / "data", "--out", tmp_path / "out.json")
    assert done.returncode == 2
    assert (
        done.stderr == f"error: --peer {tmp_path}: no model_zoo/LongCTR in it; give a checkout of FuxiCTR\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_quick_run_writes_the_figures(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = run("--quick", "--profile", "--backbone", "twin", "--data", tmp_path / "data", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert [(r["backbone"], r["arm"]) for r in rows] == [
        ("loader", "base"),
        ("twin", "base"),
        ("twin", "lain"),
    ]
    for row in rows:
        assert row["max_length"] == 100
        assert row["rows_per_second"] > 0
        assert row["peer_rows_per_second"] is row["ratio"] is row["spread"] is None
    for row in rows[1:]:
        assert row["floor_share"] > 0
        assert row["peak_memory_bytes"] > 0
        assert (row["extra_time"] is None) == (row["arm"] == "base")
        assert (row["extra_parameters"] or 0) >= 0
    assert "| twin" in done.stdout
    assert "n/a" not in done.stdout
    assert "`aten::mm`" in (tmp_path / "bench-profile.md").read_text()
