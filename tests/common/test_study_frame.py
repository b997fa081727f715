"""What a study collects in one tidy frame, what it makes once, and contrasts of seeds that both arms have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, DataError
from common.study.collect import Measure, Run, finished_runs, run_rows, tidy_frame
from common.study.compare import Comparison, Contrast, Resampler, Vector
from common.study.execute import execute
from common.study.plan import RunSpec, Study
from common.study.prepare import Source, check_source, files_fingerprint, is_made, make_once
from common.training.record import Record
from fake_train import small


def test_the_frame_has_a_row_per_run_and_metric(tmp_path: Path) -> None:
    plan = [
        RunSpec("a-base-0", "a", "base", 0, "", {}),
        RunSpec("a-base-0", "a", "base", 0, "sweep:x=1", {}),  # trained once, counted in both places
        RunSpec("a-lain-3", "a", "lain", 3, "", {"do": "fail"}),
    ]
    execute(plan, small, tmp_path, report=lambda line: None)
    runs = finished_runs(plan, tmp_path)
    frame = tidy_frame("s", runs)
    own = {"study": "s", "backbone": "a", "arm": "base", "seed": 0, "folder": "a-base-0"}
    own["fingerprint"] = plan[0].hash
    assert frame.to_pylist() == [
        {**own, "tag": tag, "split": split, "bucket": "", "metric": metric, "value": value}
        for tag in ("", "sweep:x=1")
        for split, metric, value in (("test", "auc", 0.5), ("test", "gauc", None), ("valid", "auc", 0.5))
    ]
    assert frame.schema.names[:5] == ["study", "backbone", "arm", "seed", "tag"]
    first, second = run_rows(frame)
    assert (first.tag, second.tag) == ("", "sweep:x=1")
    expected = {Measure("auc"): 0.5, Measure("gauc"): None, Measure("auc", split="valid"): 0.5}
    assert first.metrics == second.metrics == expected


def test_a_key_names_split_metric_and_bucket() -> None:
    assert Measure.read("test/auc/0-50") == Measure("auc", "0-50", "test")
    assert Measure.read("test-squad/ndcg@10") == Measure("ndcg@10", "", "test-squad")
    assert Measure("auc", "0-50").name == "auc/0-50"
    assert Measure("auc").name == "auc"


class Known(Resampler):
    """Vectors by arm and seed."""

    def __init__(self, vectors: dict[tuple[str, int], Sequence[float]]) -> None:
        self.resamples, self.vectors = 3, vectors

    def __call__(self, run: Run, measure: Measure) -> Vector | None:
        found = self.vectors.get((run.spec.arm, run.spec.seed))
        return None if found is None else np.array(found, dtype=np.float64)


def runs(*places: tuple[str, int]) -> list[Run]:
    record = Record.start(config={})
    return [Run(RunSpec("", "twin", arm, seed, "", {}), Path("x"), record) for arm, seed in places]


def test_seeds_are_paired_by_their_number_not_their_order() -> None:
    known = Known({("a", 0): [1, 1, 1, 1], ("a", 1): [5, 5, 5, 6], ("b", 1): [3, 2, 3, 4], ("b", 2): [9] * 4})
    places = [("a", 0), ("a", 1), ("b", 1), ("b", 2), ("c", 0)]
    comparison = Comparison(runs(*places), known)
    measure = Measure("auc")
    found = comparison.difference(Contrast(measure, "twin", "a", "b"))
    assert found is not None
    assert found.mean == 2  # seed 1 alone
    assert comparison.difference(Contrast(measure, "twin", "c", "b")) is None
    spread = comparison.spread(measure, "twin", "a")
    assert spread is not None
    assert (spread.mean, spread.seeds) == (3, 2)
    assert comparison.spread(measure, "twin", "c") is None
    tests = [Contrast(measure, "twin", arm, "b") for arm in ("a", "c")]
    assert list(comparison.family(tests)) == tests[:1]


def test_intervals_may_speak_about_new_seeds() -> None:
    vectors: dict[tuple[str, int], Sequence[float]] = {
        **{("a", seed): [seed + 1] * 4 for seed in range(3)},
        **{("b", seed): [0] * 4 for seed in range(3)},
    }
    places = runs(*vectors)
    contrast = Contrast(Measure("auc"), "twin", "a", "b")
    pooled = Comparison(places, Known(vectors)).difference(contrast)
    crossed = Comparison(places, Known(vectors), intervals="crossed").difference(contrast)
    assert pooled is not None
    assert crossed is not None
    assert (pooled.low, pooled.high) == (2, 2)
    # Differences 1, 2, 3: 2 +- t_2 sqrt(1 / 3).
    assert (crossed.low, crossed.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_crossed_intervals_need_two_seeds() -> None:
    with pytest.raises(ConfigError, match="intervals: crossed needs at least 2 seeds, got 1"):
        Study("s", backbones=["a"], arms={"x": {}}, seeds=[0], intervals="crossed")
    with pytest.raises(ConfigError, match="at least 2 seeds, got 1"):
        Study("s", backbones=["a"], arms={"x": {}}, seeds=[0, 1], intervals="crossed").plan(seeds=1)


def test_a_product_is_made_once_and_again_with_other_options(tmp_path: Path) -> None:
    target, made = tmp_path / "set.jsonl", []

    def make(text: str, *, stop: bool = False) -> None:
        made.append(text)
        with target.open("a") as file:
            file.write(text)
        if stop:
            raise KeyboardInterrupt

    first = make_once(target, {"a": 1, "b": 2}, lambda: make("x"))
    assert make_once(target, {"b": 2, "a": 1}, lambda: make("never")) == first
    assert make_once(target, {"a": 2}, lambda: make("y")) != first
    assert (made, target.read_text()) == (["x", "y"], "y")  # nothing of the first is left
    assert is_made(target, {"a": 2})
    with pytest.raises(KeyboardInterrupt):
        make_once(target, {"a": 3}, lambda: make("half", stop=True))
    assert not is_made(target, {"a": 3})
    make_once(target, {"a": 3}, lambda: make("-whole"), resume=True)
    assert target.read_text() == "half-whole"
    with pytest.raises(KeyboardInterrupt):
        make_once(target, {"a": 4}, lambda: make("half", stop=True))
    make_once(target, {"a": 5}, lambda: make("new"), resume=True)  # of other options: nothing to go on with
    assert target.read_text() == "new"
    target.unlink()
    make_once(target, {"a": 5}, lambda: make("again"))
    assert target.read_text() == "again"


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one")
    b.write_text("two")
    before = files_fingerprint([a, b])
    assert files_fingerprint([b, a]) != before
    b.write_text("too")  # as long as before
    assert files_fingerprint([a, b]) != before
    source = Source("the data", ("a", "c"), "https://example.org")
    with pytest.raises(DataError, match=r"no c; get the data \(https://example\.org\), put a, c there"):
        check_source(source, tmp_path)
