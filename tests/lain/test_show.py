"""What `lain show` says of data that were made by hand, and users behind a difference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from common.ragged import Ragged
from common.report.page.render import Page, Section
from common.report.page.text import page_text
from common.report.tables import Table
from common.study.collect import tidy_frame
from common.study.kind import Head, Report
from common.study.page import load_single
from common.study.plan import Study
from lain.cli import main
from lain.data.batch import Batches
from lain.data.schema import Feature
from lain.data.writer import StoreWriter
from lain.evaluation.show import data_page, histogram, wilson
from lain.study.data import PreparedCTR
from lain.study.examples import Looks, Scores, changes, loss
from lain.study.resample import UserResampler
from lain.training.run import load_model
from small_store import FEATURES, Row, write


def lain(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """User 0 has 3 behaviours, user 1 has 1, user 2 none; item 4 and user 2 are new in the test rows."""
    path = tmp_path_factory.mktemp("show") / "data"
    train = [Row(0, 1, 2, 1), Row(0, 1, 3, 0, length=120), Row(1, 2, 1, 0), Row(1, 3, 1, 1)]
    test = [Row(0, 4, 3, 1), Row(2, 4, 0, 0), Row(0, 1, 2, 1), Row(1, 2, 1, 0)]
    write(path, [[1, 2, 1], [3], []], {"train": train, "test": test}, num_items=5)
    return path


def table(page: Page, section: str, title: str = "") -> Table:
    found: Section = next(one for one in page.sections if one.title == section)
    return next(one.table for one in found.tables if not title or one.title == title)


def test_users_rows_and_clicks_by_hand(data: Path) -> None:
    page = data_page(data)
    rows = table(page, "Users, rows and clicks by history length").rows
    assert [row[:6] for row in rows[:6]] == [
        ["train", "all", "2", "4", "100.0 %", "50.0 %"],
        ["train", "0-50", "2", "3", "75.0 %", "66.7 %"],
        ["train", "50-100", "0", "0", "0.0 %", "n/a"],
        ["train", "0-100", "2", "3", "75.0 %", "66.7 %"],
        ["train", "100-200", "1", "1", "25.0 %", "0.0 %"],
        ["train", "200+", "0", "0", "0.0 %", "n/a"],
    ]
    # User 0 is long by the true length of one of their rows, so one of two users is short and gives 2 of 4.
    assert (
        "50.0 % of the users with training rows have fewer than 100 behaviours and give 50.0 %"
        in page.answer[1]
    )
    assert page.missing == ["No click rate over time: the rows have no time."]


def test_what_is_new_and_what_leaks_by_hand(data: Path) -> None:
    page = data_page(data)
    assert table(page, "New items and users").rows == [["test", "50.0 %", "1 of 3", "25.0 %", "1 of 3"]]
    checks = {row[0]: row[1:] for row in table(page, "Leak checks").rows}
    # (0, 1, 2) and (1, 2, 1) stand in both; (0, 1, 2) has a shorter history than the longest of user 0.
    assert checks["test: same user, item and history as a training row"] == ["2 of 4 rows", "look"]
    order = "test: rows before the last training row of their user, by their histories"
    assert checks[order] == ["1 of 4 rows", "look, unless the split is random"]
    popular = table(page, "Popularity of items")
    assert popular.rows[0] == ["1", "2", "50.0 %", "50.0 %", "2"]


def test_lengths_fall_into_their_ranges() -> None:
    assert histogram(np.array([0, 1, 1, 4, 20000])) == (
        ["0", "1", "2 to 4", "5 to 9", "10 to 19", "20 to 49", "50 to 99", "100 to 199", "200 to 499",
         "500 to 999", "1000 to 1999", "2000 to 4999", "5000 to 9999", "10000 to more"],
        [1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    )  # fmt: skip
    assert histogram(np.array([3, 7])) == (["2 to 4", "5 to 9"], [1, 1])
    assert histogram(np.array([], dtype=np.int64)) == ([], [])


def test_an_interval_of_a_share_as_published() -> None:
    # Newcombe (1998), table I: 81 of 263 is [.2553, .3662], 0 of 20 is [0, .1611].
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_clicks_over_time_and_rows_that_come_too_early(tmp_path: Path) -> None:
    features = [*FEATURES[:1], Feature("time", "context", "time", 0)]
    with StoreWriter(tmp_path / "d", name="timed", features=features, num_items=3, num_users=1) as writer:
        writer.histories(Ragged.from_lists([[1]]))
        for name, times, labels in (("train", [0, 86400 * 20 - 1], [1, 0]), ("test", [86400 * 10], [1])):
            count = len(times)
            writer.split(name, count).append(
                user=np.zeros(count, int), item=np.ones(count, int), end=np.ones(count, int),
                length=np.ones(count, int), label=np.array(labels), context={"time": np.array(times)},
            )  # fmt: skip
    page = data_page(tmp_path / "d")
    over_time = next(one for one in page.sections if one.title == "Clicks over time")
    assert over_time.text == ["Rows from 1970-01-01 00:00 to 1970-01-20 23:59 UTC, in 20 equal periods."]
    assert over_time.charts[0].table.rows == [["0.5", "100", ""], ["10.5", "", "100"], ["19.5", "0", ""]]
    checks = {row[0]: row[1] for row in table(page, "Leak checks").rows}
    assert checks["test: rows earlier than the last training row"] == "1 of 1 rows"


def test_the_command_prints_and_writes(data: Path, tmp_path: Path) -> None:
    done = lain("show", data, "--page", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert done.stdout == page_text(data_page(data))
    assert done.stderr == f"wrote {tmp_path / 'page.html'}\n"
    text = (tmp_path / "page.html").read_text()
    assert "1 of 4 rows" in text
    assert "█" in done.stdout
    wrong = lain("show", tmp_path)
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (2, 1)
    assert "not a prepared data set" in wrong.stderr
    wrong = lain("show", data, "--page", tmp_path / "none" / "page.html")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "there is no such folder" in wrong.stderr


def test_users_that_changed_most_by_hand() -> None:
    user = np.repeat([7, 8, 9, 10], [5, 5, 6, 2])
    change = np.concatenate([np.full(5, 0.1), np.full(5, -0.2), np.full(6, 0.3), np.full(2, 9.0)])
    found = changes(user, change, 1)
    assert found.gained == pytest.approx({"9": 0.3})  # user 10 has too few rows
    assert found.lost == pytest.approx({"8": -0.2})
    assert (found.up, found.down, found.same) == (2, 1, 0)
    assert loss(np.array([0.25, 0.25]), np.array([1, 0], np.uint8)).tolist() == pytest.approx(
        [-math.log(0.25), -math.log(0.75)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "branches"), [("dien", {"long"}), ("twin", {"short", "long"})])
def test_attention_on_a_history_is_that_of_the_run(tmp_path: Path, backbone: str, branches: set[str]) -> None:
    data = tmp_path / "world"
    assert lain("world", data, "--users", 20, "--seed", 3).exit_code == 0
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump({"data": str(data), "out": str(tmp_path / "runs"), "name": "run"}))
    done = lain(
        "train", config, "embedding.dim=16", "head.hidden=[24]", "history.max_length=60", "fit.max_steps=4",
        "fit.progress=false", "fit.accelerator=cpu", "tracking.wandb=disabled", "length.preset=lain",
        f"model.name={backbone}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = load_single(Path(done.output.splitlines()[-1]))
    study = Study("s", ["run"], {"run": {}}, [0])
    prepared, head = PreparedCTR(data, "", ""), Head("s", "", "", 1, 1)
    frame, resampler = tidy_frame("s", [run]), UserResampler(run, resamples=2)
    report = Report(head, study, prepared, [run], frame, resampler)
    scores = Scores(report)
    looks = Looks(report, scores)
    assert looks.data is not None
    store, split = looks.data
    row = int(np.argmax(np.asarray(split.end)))
    found = looks.attention(run, row)
    assert set(found) == branches
    history = np.asarray(store.histories[int(split.user[row])][: int(split.end[row])])[-60:]
    _, model, _ = load_model(run.folder)
    with torch.inference_mode():
        record = model(Batches(store, split, max_length=60)[np.array([row])]).attention["long"]
    weight = record.weight.double().abs().mean(1)
    assert {item for shares in found.values() for item in shares} <= set(history.tolist())
    if len(weight) == len(history):  # pair by pair, in time order
        for item in set(history.tolist()):
            expected = float(weight[torch.from_numpy(history == item)].sum() / weight.sum())
            assert found["long"][item] == pytest.approx(expected)
    assert sum(found["long"].values()) == pytest.approx(1)
    # Of other rows than were predicted nothing is shown.
    scores.user = scores.user + 1
    assert Looks(report, scores).data is None
