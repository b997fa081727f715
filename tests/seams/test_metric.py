"""A measure is one function and one line in its registry."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from common.metrics.ctr import CTR_MEASURES, ctr_metrics
from common.metrics.retrieval import RETRIEVAL_MEASURES
from tiny_retrieval import causalneg, tiny_data

FILE = '''
def first_is_right(judged, cut):
    """Whether the best document is a positive."""
    return {
        query: float(any(judged.qrels[query].get(document, 0) > 0 for document in judged.ranking(query)[:1]))
        for query in judged.qrels
    }


def brier(rows):
    """Mean squared error of the predicted probability."""
    total = float(rows.weight.sum())
    if total <= 0:
        return None, "no rows"
    return float((rows.weight * (rows.score - rows.label) ** 2).sum() / total), ""
'''


def test_a_retrieval_measure_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_measure.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    measure = importlib.import_module("tiny_measure").first_is_right
    monkeypatch.setitem(RETRIEVAL_MEASURES, "first", measure)
    out = tmp_path / "out"
    shown = causalneg(
        "evaluate", "--bm25", "--data", tiny_data(tmp_path / "data"), "--out", out,
        "--measure", "first", "--measure", "success@1", "--measure", "ndcg@3",
    )  # fmt: skip
    metrics = json.loads((out / "eval" / "data-test" / "metrics.json").read_text())["metrics"]
    assert list(metrics) == ["first", "success@1", "ndcg@3"]
    assert metrics["first"] == metrics["success@1"] > 0
    assert f"{metrics['first']:.4f}" in shown.stdout


def test_a_click_measure_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_click.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(CTR_MEASURES, "brier", importlib.import_module("tiny_click").brier)
    label, score = np.array([1, 0, 1, 0]), np.array([0.9, 0.2, 0.4, 0.4])
    found = ctr_metrics(label=label, score=score, length=np.array([1, 1, 70, 70])).values
    assert found["brier"] == pytest.approx(np.mean((score - label) ** 2))
    assert found["brier/0-50"] == pytest.approx((0.01 + 0.04) / 2)


def test_an_unknown_measure_is_refused_before_the_search(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from causalneg.cli import main

    data = tiny_data(tmp_path / "data")
    refused = CliRunner().invoke(main, ["evaluate", "--bm25", "--data", str(data), "--measure", "ndgc@10"])
    assert refused.exit_code == 2
    assert "there is no measure 'ndgc@10'; did you mean 'ndcg'?" in refused.stderr
    assert isinstance(refused.exception, SystemExit)
