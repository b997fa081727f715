"""Arms that are compared differ in their negatives and their regulariser only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from causalneg.losses import TERMS
from causalneg.study.arms import check_arms
from causalneg.training.config import LossConfig, OptimConfig, SetConfig, TrainConfig
from common.errors import ConfigError

MINED = TrainConfig(data=Path("data"), sets=[SetConfig(path=Path("bm25.jsonl"), count=18)], candidates=18)


ENTROPY = LossConfig(terms=[TERMS.component("entropy", weight=0.05)])
MATCHING = LossConfig(terms=[TERMS.component("matching", distance="energy")])


def test_negatives_regulariser_and_seed_may_differ() -> None:
    mixed = [SetConfig(path=Path("bm25.jsonl"), count=15), SetConfig(path=Path("rules.jsonl"), count=3)]
    check_arms(
        {
            "in-batch": replace(MINED, candidates=0, sets=[SetConfig(path=Path("bm25.jsonl"))], loss=batch()),
            "naive-only": replace(MINED, candidates=0, sets=[SetConfig(path=Path("naive.jsonl"), count=3)]),
            "mined": MINED,
            "causalneg": replace(MINED, sets=mixed, loss=ENTROPY, seed=1),
            "matching": replace(
                MINED, sets=mixed, loss=LossConfig(terms=[TERMS.component("matching", distance="energy")])
            ),
            "both voices": replace(MINED, sets=mixed, voices=Path("voices.jsonl"), name="voices"),
        }
    )
    check_arms({})


def batch() -> LossConfig:
    return LossConfig(in_batch=True)


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (replace(MINED, candidates=15), "candidates is 15, but 18 in arm mined"),
        (replace(MINED, loss=LossConfig(temperature=0.1)), "loss.temperature is 0.1, but 0.05"),
        (replace(MINED, loss=batch()), "loss.in_batch is True, but False"),
        (replace(MINED, candidates=0, loss=batch()), "loss.in_batch is True, but False"),
        (replace(MINED, train=OptimConfig(batch_size=32)), "train.batch_size is 32, but 64"),
        (replace(MINED, fit=replace(MINED.fit, accumulate=2)), "fit.accumulate is 2, but 1"),
        (replace(MINED, exact=False), "exact is False, but True"),
    ],
)
def test_anything_else_is_named(other: TrainConfig, line: str) -> None:
    with pytest.raises(ConfigError, match=f"arm other: {line}"):
        check_arms({"mined": MINED, "other": other})


def test_all_differences_come_together() -> None:
    other = replace(MINED, candidates=15, train=OptimConfig(batch_size=32))
    with pytest.raises(ConfigError) as error:
        check_arms({"mined": MINED, "other": other})
    assert len(error.value.messages) == 2
