"""Plans by hand, and real worker processes that finish, fail, die and are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.config import load
from common.errors import ConfigError
from common.study.collect import finished_runs
from common.study.execute import execute, is_done
from common.study.plan import Extra, RunSpec, Study, nested
from fake_train import small


def spec(name: str, seed: int = 0, **config: Any) -> RunSpec:
    return RunSpec(f"{name}-{seed}", name, "base", seed, "", config)


def calls(out: Path) -> Counter[str]:
    return Counter((out / "calls.txt").read_text().split())


def quiet(line: str) -> None:
    assert "\n" not in line


def test_plan() -> None:
    study = Study(
        name="s",
        backbones=["din", "dien"],
        arms={"base": {"length.preset": "base"}, "lain": {"length.preset": "lain"}},
        seeds=[0, 1],
        base={"model": {"max_length": 1000, "heads": 2}},
        main=["base"],
        per_backbone={"dien": {"model.max_length": 200}},
        extra=[
            Extra(["din"], ["lain"], seeds=[5]),
            Extra(["din"], ["base"], seeds=[0], vary={"model.max_length": [20, 1000]}, tag="sweep"),
        ],
    )
    plan = study.plan()
    assert [(run.key, run.tag, run.config["model"]["max_length"]) for run in plan] == [
        ("din-base-0", "", 1000),
        ("din-base-1", "", 1000),
        ("dien-base-0", "", 200),
        ("dien-base-1", "", 200),
        ("din-lain-5", "", 1000),
        ("din-base-sweep-max_length=20-0", "sweep:max_length=20", 20),
        ("din-base-0", "sweep:max_length=1000", 1000),  # trained once, told twice
    ]
    assert plan[4].config == {"model": {"max_length": 1000, "heads": 2}, "length": {"preset": "lain"}}
    assert {run.seed for run in study.plan(seeds=3)} == {0, 1, 2}
    assert study.base == {"model": {"max_length": 1000, "heads": 2}}


def test_two_runs_never_share_a_folder() -> None:
    study = Study(
        name="s",
        backbones=["din"],
        arms={"base": {}},
        seeds=[0],
        extra=[Extra(["din"], ["base"], None, {"a": 1})],
    )
    with pytest.raises(ConfigError, match="two different runs are called din-base-0"):
        study.plan()


def test_the_hash_knows_everything_that_decides() -> None:
    base = spec("din", a=1)
    assert base.hash == spec("din", a=1).hash
    others = [spec("din", a=2), spec("twin", a=1), spec("din", seed=1, a=1)]
    assert len({base.hash, *(other.hash for other in others)}) == 4


def test_nested() -> None:
    below = {"model": {"heads": 2, "hidden": [1]}}
    assert nested(below, {"model.heads": 4}, {"model": {"dropout": 0.1}, "fit.epochs": 3}) == {
        "model": {"heads": 4, "hidden": [1], "dropout": 0.1},
        "fit": {"epochs": 3},
    }
    assert below == {"model": {"heads": 2, "hidden": [1]}}


def test_all_mistakes_of_a_study_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: s\nbackbones: [din]\nseeds: []\narms: {base: {}}\nmain: [bose]\nper_backbone: {dinn: {}}\n"
        "extra: [{backbones: [din], arms: [lain], sede: 3}]\n"
    )
    with pytest.raises(ConfigError) as found:
        load(Study, path)
    text = str(found.value)
    for part in ("did you mean 'base'", "did you mean 'din'", "seeds: must not be empty", "extra[0].seeds"):
        assert part in text


def test_runs_are_done_once_and_again_when_their_settings_change(tmp_path: Path) -> None:
    plan = [spec("a", seed) for seed in range(3)]
    assert execute([*plan, plan[0]], small, tmp_path, report=quiet) == []
    assert calls(tmp_path) == {"a-0": 1, "a-1": 1, "a-2": 1}
    assert execute(plan, small, tmp_path, report=quiet) == []
    assert sum(calls(tmp_path).values()) == 3

    (tmp_path / "a-1" / "checkpoints").mkdir()
    (tmp_path / "a-2" / "checkpoints").mkdir()
    (tmp_path / "a-2" / "record.json").write_text('{"cut o')
    changed = [plan[0], spec("a", 1, new=True), plan[2]]
    assert [is_done(one, tmp_path) for one in changed] == [True, False, False]
    assert len(finished_runs(changed, tmp_path)) == 1
    assert execute(changed, small, tmp_path, workers=1, report=quiet) == []
    assert calls(tmp_path) == {"a-0": 1, "a-1": 2, "a-2": 2}
    assert not (tmp_path / "a-1" / "checkpoints").exists()  # nothing of other settings is resumed
    assert (tmp_path / "a-2" / "checkpoints").exists()  # but what was stopped is

    assert [(one.spec, one.record.metrics["test/auc"]) for one in finished_runs(changed, tmp_path)] == [
        (spec, 0.5 + spec.seed / 10) for spec in changed
    ]


def test_finished_runs_are_tidied_and_no_others(tmp_path: Path) -> None:
    def tidy(folder: Path) -> None:
        assert (folder / "record.json").is_file()
        (folder / "tidied").touch()

    plan = [spec("a"), spec("b", do="fail"), spec("c", do="die")]
    execute([plan[0]], small, tmp_path, report=quiet)
    execute([*plan, spec("d")], small, tmp_path, tidy=tidy, report=quiet)
    assert {path.parent.name for path in tmp_path.glob("*/tidied")} == {"a-0", "d-0"}


def test_runs_that_fail_or_die_do_not_stop_the_others(tmp_path: Path) -> None:
    plan = [spec("a", do="fail"), spec("b", do="die"), spec("c")]
    lines: list[str] = []
    failures = execute(plan, small, tmp_path, workers=1, report=lines.append)
    assert {failure.spec.key: failure.message for failure in failures} == {
        "a-0": "ValueError: two lines",
        "b-0": "its process died with exit code 9 (out of memory?)",
    }
    assert [one.spec.backbone for one in finished_runs(plan, tmp_path)] == ["c"]
    assert "ValueError: two\nlines" in (tmp_path / "a-0" / "error.txt").read_text()
    assert lines[0] == "3 runs to do, 0 already done"
    assert len(lines) == 4
    # Failed runs are tried again, done ones are not; a run that succeeds leaves no error behind.
    mended = [RunSpec(**{**vars(one), "config": {}}) for one in plan]
    assert execute(mended, small, tmp_path, workers=1, report=quiet) == []
    assert calls(tmp_path) == {"a-0": 2, "b-0": 2, "c-0": 1}
    assert not (tmp_path / "a-0" / "error.txt").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    """Otherwise an orphan and its successor would write into one folder."""
    program = (
        "import signal\nfrom pathlib import Path\nfrom fake_train import small\n"
        "from common.study.execute import execute\nfrom common.study.plan import RunSpec\n"
        "if __name__ == '__main__':\n"
        # a shell in the background starts its children deaf to the keyboard's signal
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    plan = [RunSpec('a', 'a', 'base', 0, '', {'do': 'sleep'})]\n"
        f"    execute(plan, small, Path({str(tmp_path)!r}), report=print)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    path = os.pathsep.join(path for path in sys.path if path)
    parent = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    try:
        wait_for((tmp_path / "a" / "pid").is_file, 60)
        worker = int((tmp_path / "a" / "pid").read_text())
        parent.send_signal(how)
        parent.wait(30)
        wait_for(lambda: not alive(worker), 20)
    finally:
        parent.kill()
        parent.wait()
    assert json.loads((tmp_path / "a" / "study.json").read_text())["key"] == "a"


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not fetched by its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_counts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 0 and 1"):
        execute([], small, tmp_path, workers=0, report=quiet)


def test_a_grid_is_planned_apart_from_the_study() -> None:
    grid = Extra(backbones=["a"], arms=["x"], seeds=[4], vary={"fit.epochs": [1, 2]})
    study = Study("s", backbones=["a"], arms={"x": {}}, seeds=[0], tune=[grid])
    assert [spec.tag for spec in study.plan()] == [""]
    assert [(spec.tag, spec.seed, spec.config["fit"]["epochs"]) for spec in study.tuning()] == [
        ("tune:epochs=1", 4, 1),
        ("tune:epochs=2", 4, 2),
    ]
    with pytest.raises(ConfigError, match="no grid"):
        Study("s", backbones=["a"], arms={"x": {}}, seeds=[0]).tuning()
    with pytest.raises(ConfigError, match=r"tune\[0\].arms: no arm 'y'"):
        Study("s", backbones=["a"], arms={"x": {}}, seeds=[0], tune=[Extra(["a"], ["y"])])
