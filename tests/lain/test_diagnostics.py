"""Shapes of the attention against textbook formulas; gradient cosines where the answer is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lain.backbones import BACKBONES
from lain.data.batch import Batches
from lain.data.schema import Feature
from lain.evaluation.diagnostics import (
    attention_by_bucket,
    attention_shape,
    choose_rows,
    gini,
    gradient_cosine,
    normalised_entropy,
)
from lain.heads import HEADS
from lain.layers.attention import AttentionRecord
from lain.layers.embedding import FeatureEmbedding
from lain.length import PRESETS, LengthOptions
from lain.model import CTRModel
from lain.ops.spans import Spans
from small_store import Row, write

weights = st.lists(
    st.lists(st.one_of(st.just(1.0), st.floats(0.01, 10)), min_size=1, max_size=8), min_size=1, max_size=5
)


def spans_of(*lengths: int) -> Spans:
    return Spans(torch.tensor([0, *lengths]).cumsum(0), torch.arange(sum(lengths)))


def flat(samples: Sequence[Sequence[float]]) -> tuple[torch.Tensor, Spans]:
    values = torch.tensor([w for sample in samples for w in sample], dtype=torch.float64)
    return values, spans_of(*(len(sample) for sample in samples))


class TestGini:
    @pytest.mark.parametrize(
        ("sample", "wanted"),
        [
            ([1.0, 0.0, 0.0, 0.0], 0.75),
            ([0.25, 0.75], 0.25),
            ([2.0, 2.0, 2.0], 0.0),
            ([1.0], 0.0),
            ([1.0, 2.0, 3.0], 2 / 9),
            ([3.0, -1.0, 2.0], 2 / 9),
        ],
    )
    def test_by_hand(self, sample: list[float], wanted: float) -> None:
        assert gini(*flat([sample])).item() == pytest.approx(wanted, abs=1e-15)

    @given(samples=weights)
    def test_is_the_mean_absolute_difference(self, samples: list[list[float]]) -> None:
        """G = sum_ij |w_i - w_j| / (2 n sum w), sample by sample."""
        wanted = [sum(abs(a - b) for a in s for b in s) / (2 * len(s) * sum(s)) for s in samples]
        assert gini(*flat(samples)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)

    def test_none(self) -> None:
        found = gini(*flat([[1.0, 3.0], [], [2.0, 2.0]]))
        assert found[0].item() == pytest.approx(0.25)
        assert math.isnan(found[1])
        assert found[2].item() == 0


class TestEntropy:
    @pytest.mark.parametrize(
        ("sample", "wanted"),
        [
            ([2.0, 2.0, 2.0], 1.0),
            ([1.0, 0.0], 0.0),
            ([0.25, 0.75], (2 - 0.75 * math.log2(3))),
            ([-1.0, 1.0], 1.0),
        ],
    )
    def test_by_hand(self, sample: list[float], wanted: float) -> None:
        assert normalised_entropy(*flat([sample])).item() == pytest.approx(wanted, abs=1e-14)

    @given(samples=weights)
    def test_textbook(self, samples: list[list[float]]) -> None:
        found = normalised_entropy(*flat(samples)).tolist()
        for sample, value in zip(samples, found, strict=True):
            shares = [w / sum(sample) for w in sample]
            if len(sample) == 1:
                assert math.isnan(value)
            else:
                wanted = -sum(p * math.log(p) for p in shares) / math.log(len(sample))
                assert value == pytest.approx(wanted, rel=1e-9, abs=1e-12)

    def test_none(self) -> None:
        found = normalised_entropy(*flat([[], [1.0]]))
        assert torch.isnan(found).all()


class TestShape:
    def test_prompts_are_set_apart(self) -> None:
        """Two heads; one prompt in front; gini and entropy over the behaviours alone."""
        of_prompts = torch.tensor([[[0.5, 0.2]], [[1.0, 1.0]]])
        weight = torch.tensor([[0.125, 0.4], [0.375, 0.4]])
        record = AttentionRecord(weight, spans_of(2, 0), of_prompts)
        shape = attention_shape(record)
        assert shape["prompt_mass"].tolist() == pytest.approx([0.35, 1.0], rel=1e-6)
        assert shape["gini"][0].item() == pytest.approx((0.25 + 0) / 2, abs=1e-7)
        entropy = (2 - 0.75 * math.log2(3) + 1) / 2
        assert shape["entropy"][0].item() == pytest.approx(entropy, rel=1e-6)
        assert math.isnan(shape["gini"][1])
        assert math.isnan(shape["entropy"][1])

    def test_without_prompts(self) -> None:
        shape = attention_shape(
            AttentionRecord(torch.tensor([[0.25], [0.75]]), spans_of(2), torch.empty(1, 0, 1))
        )
        assert shape["prompt_mass"].tolist() == [0.0]
        assert shape["gini"].tolist() == pytest.approx([0.25])


class TestChoice:
    def test_evenly_spread_and_once(self) -> None:
        length = np.array([5, 60, 7, 300, 8, 9, 61, 6])
        assert choose_rows(length, [(0, 50), (50, 100), (200, None)], 3).tolist() == [0, 1, 3, 4, 6, 7]
        assert choose_rows(length, [(0, 100), (0, 50)], 100).tolist() == [0, 1, 2, 4, 5, 6, 7]
        assert choose_rows(length, [(100, 200)], 3).tolist() == []
        assert choose_rows(length, [], 3).tolist() == []

    def test_borders(self) -> None:
        length = np.array([49, 50, 99, 100])
        assert choose_rows(length, [(50, 100)], 9).tolist() == [1, 2]
        assert choose_rows(length, [(100, None)], 9).tolist() == [3]


FEATURES = (
    Feature("item_id", "item", "categorical", 8),
    Feature("category", "item", "categorical", 5),
    Feature("hour", "context", "categorical", 24),
)


def make_model(name: str = "twin", preset: str = "base", sparse: bool = False) -> CTRModel:
    torch.manual_seed(0)
    return CTRModel(
        features=FEATURES,
        embedding=partial(FeatureEmbedding, dim=4, sparse=sparse),
        backbone=BACKBONES.component(name).build,
        head=HEADS.component("mlp", hidden=(8,)).build,
        length=LengthOptions(**PRESETS[preset]),
    )


def batches_of(folder: Path, rows: list[Row]) -> Batches:
    histories = [[1, 2, 3, 4, 5, 6], [2, 3], []]
    store = write(folder / "store", histories, {"test": rows}, num_items=8, features=FEATURES)
    return Batches(store, store.split("test"), max_length=50)


class TestByBucket:
    def test_even_attention_by_hand(self, tmp_path: Path) -> None:
        """Queries of zero look at all alike: gini 0, entropy 1, prompts 2 / (2 + n)."""
        rows = [Row(0, 1, 6, length=100), Row(0, 1, 2, length=2), Row(0, 1, 4, length=4), Row(2, 1, 0)]
        model = make_model("twin", "lain")
        with torch.no_grad():
            model.get_parameter("backbone.short.query.weight").zero_()
            model.get_parameter("backbone.long.query.weight").zero_()
        model.train()
        found = attention_by_bucket(model, batches_of(tmp_path, rows), [(0, 50), (50, 100), (100, None)])
        assert model.training
        assert set(found) == {"short", "long"}
        for figures in found.values():
            assert set(figures) == {"0-50", "100+"}
            assert figures["0-50"]["samples"] == 3
            assert figures["0-50"]["prompt_mass"] == pytest.approx((2 / 4 + 2 / 6 + 1) / 3, rel=1e-6)
            assert figures["100+"]["prompt_mass"] == pytest.approx(2 / 8, rel=1e-6)
            for bucket in figures.values():
                assert bucket["gini"] == pytest.approx(0, abs=1e-6)
                assert bucket["entropy"] == pytest.approx(1, abs=1e-6)

    def test_what_no_row_has_is_left_out(self, tmp_path: Path) -> None:
        found = attention_by_bucket(make_model(), batches_of(tmp_path, [Row(2, 1, 0)]), [(0, 50)])
        assert found["long"]["0-50"] == {"samples": 1.0, "prompt_mass": 0.0}

    @pytest.mark.parametrize("name", list(BACKBONES))
    def test_every_backbone_tells(self, name: str, tmp_path: Path) -> None:
        rows = [Row(0, 1, end, length=end) for end in range(7)]
        found = attention_by_bucket(make_model(name, "lain"), batches_of(tmp_path, rows), [(0, None)])
        assert found
        for figures in found.values():
            assert 0 <= figures["0+"]["gini"] < 1
            assert 0 < figures["0+"]["entropy"] <= 1
            assert 0 <= figures["0+"]["prompt_mass"] < 1


class TestGradientCosine:
    SHORT, LONG = Row(0, 3, 5, 1, 5, 7), Row(0, 3, 5, 1, 500, 7)

    def ask(self, folder: Path, rows: list[Row], model: CTRModel | None = None) -> dict[str, float]:
        return gradient_cosine(make_model() if model is None else model, batches_of(folder, rows))

    @pytest.mark.parametrize("sparse", [False, True])
    def test_same_rows_pull_together(self, tmp_path: Path, sparse: bool) -> None:
        """The base model does not hear of the length: gradients are the same."""
        found = self.ask(tmp_path, [self.SHORT, self.LONG], make_model(sparse=sparse))
        assert set(found) == {"all", "items", "context", "backbone", "head"}
        assert list(found.values()) == pytest.approx([1.0] * 5, abs=1e-6)

    def test_opposite_labels_pull_apart(self, tmp_path: Path) -> None:
        found = self.ask(tmp_path, [self.SHORT, replace(self.LONG, label=0)])
        assert list(found.values()) == pytest.approx([-1.0] * 5, abs=1e-6)

    def test_against_two_backward_passes(self, tmp_path: Path) -> None:
        """Rows of several lengths: those between the two kinds are left out."""
        lengths = [5, 99, 100, 150, 199, 200, 900]
        rows = [Row(0, 1 + n % 7, n % 7, n % 2, length, n) for n, length in enumerate(lengths)]
        model, batches = make_model("dien", "lain").double(), batches_of(tmp_path, rows)
        sides = []
        for chosen in ([0, 1], [5, 6]):
            model.zero_grad()
            batch = batches[np.array(chosen)]
            batch = replace(batch, label=batch.label.double())
            p = torch.sigmoid(model(batch).logit)
            loss = -(batch.label * p.log() + (1 - batch.label) * (1 - p).log()).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            sides.append(torch.cat([gradient.flatten() for gradient in gradients]))
        a, b = sides
        model.zero_grad()
        found = gradient_cosine(model, batches)
        assert found["all"] == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-9)
        assert all(p.grad is None for p in model.parameters())

    def test_one_kind_missing(self, tmp_path: Path) -> None:
        assert self.ask(tmp_path, [self.SHORT]) == {}

    def test_leaves_the_model_alone(self, tmp_path: Path) -> None:
        model = make_model("din")
        before = {k: v.clone() for k, v in model.state_dict().items()}
        model.train()
        self.ask(tmp_path, [self.SHORT, self.LONG], model)
        assert model.training
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
