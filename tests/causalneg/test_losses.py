"""The losses by hand arithmetic, against loops over queries, and against what is known of their optima."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference_retrieval as reference
from causalneg.losses import (
    distribution_matching,
    easy_negatives,
    hardness_gap,
    info_nce,
    own_similarity,
    query_view_entropy,
)
from common.errors import DataError

log = math.log
DISTANCES: tuple[Literal["wasserstein", "wasserstein2", "energy"], ...] = (
    "wasserstein",
    "wasserstein2",
    "energy",
)


def column(*values: float) -> Tensor:
    """Embeddings of one dimension, so that similarities are products of these numbers."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


@dataclass
class Case:
    """A random batch.

    Args:
        query: Queries.
        positive: Their positives.
        negatives: Their negatives, in no order.
        row: Query of each negative.
        generated: Whether each was generated.
        positive_id: Documents of the positives; several queries may share one.
        negative_id: Documents of the negatives, some of them positives.
        known_row: Query of each known pair.
        known_id: Document of each known pair.
    """

    query: Tensor
    positive: Tensor
    negatives: Tensor
    row: Tensor
    generated: Tensor
    positive_id: Tensor
    negative_id: Tensor
    known_row: Tensor
    known_id: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.positive, self.negatives

    @property
    def sources(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.query, self.negatives, self.row, self.generated

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves, materialize_grads=True))


def case(counts: list[int], seed: int, *, dim: int = 4) -> Case:
    draw = torch.Generator().manual_seed(seed)

    def unit(rows: int) -> Tensor:
        x = torch.randn(rows, dim, generator=draw, dtype=torch.float64)
        return torch.nn.functional.normalize(x, dim=1).requires_grad_()

    def number(rows: int, below: int) -> Tensor:
        return torch.randint(below, (rows,), generator=draw)

    queries, negatives = len(counts), sum(counts)
    row = torch.repeat_interleave(torch.arange(queries), torch.tensor(counts))
    return Case(
        query=unit(queries),
        positive=unit(queries),
        negatives=unit(negatives),
        row=row[torch.randperm(negatives, generator=draw)],
        generated=number(negatives, 3) == 0,
        positive_id=number(queries, 6),
        negative_id=number(negatives, 12),
        known_row=number(4, queries),
        known_id=number(4, 12),
    )


cases = st.builds(case, st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 10_000))


def assert_same(found: Case, ours: Tensor, theirs: Tensor) -> None:
    """Equal values, and equal gradients of everything."""
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    for a, b in zip(found.gradients(ours), found.gradients(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


class TestInfoNCE:
    def test_by_hand(self) -> None:
        """exp(s) of query 0: positive 2, negative 5; of query 1, whose vector is 2: positive 3^2, none."""
        query, positive, negatives = column(1, 2), column(log(2), log(3)), column(log(5))
        row = torch.tensor([0])

        def loss(in_batch: Any) -> list[float]:
            out = info_nce(query, positive, negatives, row, 1.0, in_batch, reduction="none")
            assert info_nce(query, positive, negatives, row, 1.0, in_batch).item() == pytest.approx(
                out.mean().item()
            )
            return [math.exp(-x) for x in out.tolist()]

        assert loss(False) == pytest.approx([2 / 7, 1])
        assert loss(True) == loss("positives") == pytest.approx([2 / (2 + 3 + 5), 9 / (9 + 4)])
        assert loss("documents") == pytest.approx([2 / (2 + 3 + 5), 9 / (9 + 4 + 25)])

    def test_temperature_by_hand(self) -> None:
        """s = log 2 and log 3; at tau = 1/2 they count 4 and 9."""
        loss = info_nce(column(1), column(log(2)), column(log(3)), torch.tensor([0]), 0.5, False)
        assert math.exp(-loss.item()) == pytest.approx(4 / 13)

    def test_known_positives_by_hand(self) -> None:
        """Three queries of vector 1; positives weigh 2, 3, 5; the positive of 1 answers 0 as well."""
        query, positive = column(1, 1, 1), column(log(2), log(3), log(5))
        known = torch.zeros(3, 3, dtype=torch.bool)
        known[0, 1] = known[2, 2] = True
        nothing, nobody = column(), torch.zeros(0, dtype=torch.long)
        loss = info_nce(
            query, positive, nothing, nobody, 1.0, True, known_positive=known, reduction="none"
        ).tolist()
        assert [math.exp(-x) for x in loss] == pytest.approx([2 / 7, 3 / 10, 5 / 10])

    def test_the_same_document_is_no_negative_of_itself(self) -> None:
        """Both queries have document 7 as positive, and query 1 has mined it: nothing is left to compare."""
        loss = info_nce(
            column(1, 1),
            column(log(2), log(2)),
            column(log(2)),
            torch.tensor([1]),
            1.0,
            True,
            positive_id=torch.tensor([7, 7]),
            negative_id=torch.tensor([7]),
        )
        assert loss.item() == 0

    @settings(max_examples=30, deadline=None)
    @given(cases, st.sampled_from(["", "positives", "documents"]), st.booleans())
    def test_equals_the_loop(self, x: Case, in_batch: Any, ids: bool) -> None:
        documents: dict[str, Any] = (
            {"positive_id": x.positive_id, "negative_id": x.negative_id} if ids else {}
        )
        pairs: dict[str, Any] = {"known_row": x.known_row, "known_id": x.known_id} if ids else {}
        known = set(zip(x.known_row.tolist(), x.known_id.tolist(), strict=True))
        ours = info_nce(
            x.query, x.positive, x.negatives, x.row, 0.05, in_batch or False, **documents, **pairs
        )
        theirs = reference.info_nce(*x.leaves, x.row, 0.05, in_batch, **documents, known=known)
        assert_same(x, ours, theirs)

    @settings(max_examples=15, deadline=None)
    @given(cases, st.sampled_from(["positives", "documents"]))
    def test_mask_and_ids_say_the_same(self, x: Case, in_batch: Any) -> None:
        ids = torch.cat([x.positive_id, x.negative_id if in_batch == "documents" else x.negative_id[:0]])
        mask = ids == x.positive_id[:, None]
        for query, document in zip(x.known_row.tolist(), x.known_id.tolist(), strict=True):
            mask[query] |= ids == document
        own = x.negative_id if in_batch == "documents" else torch.full_like(x.negative_id, -1)
        arguments = (x.query, x.positive, x.negatives, x.row, 0.05, in_batch)
        by_ids = info_nce(
            *arguments,
            positive_id=x.positive_id,
            negative_id=own,
            known_row=x.known_row,
            known_id=x.known_id,
        )
        before = mask.clone()
        assert_same(x, info_nce(*arguments, known_positive=mask), by_ids)
        assert torch.equal(mask, before)

    def test_nothing_to_compare_with(self) -> None:
        """One query without negatives: loss 0 and gradient 0, in every mode."""
        x = case([0], 0)
        for in_batch in (False, True, "documents"):
            loss = info_nce(x.query, x.positive, x.negatives, x.row, 0.05, in_batch)
            assert loss.item() == 0
            assert all(not g.any() for g in x.gradients(loss))

    def test_every_negative_belongs_to_one_query(self) -> None:
        x = case([0, 7, 0], 1)
        loss = info_nce(*x.leaves, x.row, 0.05, False, reduction="none")
        assert loss[0].item() == loss[2].item() == 0
        assert_same(x, loss.mean(), reference.info_nce(*x.leaves, x.row, 0.05))

    def test_extreme_scores_stay_finite(self) -> None:
        """Similarities of +-1000 at tau .05, where exp overflows float64."""
        query, positive = column(1, 1).requires_grad_(), column(-1000, 1000).requires_grad_()
        negatives = column(1000, -1000).requires_grad_()
        row = torch.tensor([0, 1])
        # Of query 0 the best score stands twice from "positives" on; of query 1 in "documents" only.
        modes: list[tuple[Any, tuple[int, int]]] = [(False, (0, 0)), (True, (1, 0)), ("documents", (1, 1))]
        for in_batch, twice in modes:
            loss = info_nce(query, positive, negatives, row, 0.05, in_batch, reduction="none")
            assert loss.tolist() == pytest.approx([40_000 + twice[0] * log(2), twice[1] * log(2)], rel=1e-9)
            for gradient in torch.autograd.grad(loss.sum(), (query, positive, negatives)):
                assert gradient.isfinite().all()

    def test_half_precision_is_summed_in_single(self) -> None:
        x = case([3, 2], 2)
        half = [leaf.detach().bfloat16() for leaf in x.leaves]
        exact = [leaf.float() for leaf in half]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = info_nce(half[0], half[1], half[2], x.row, 0.05, "documents")
        assert loss.dtype == torch.float32
        assert torch.equal(loss, info_nce(exact[0], exact[1], exact[2], x.row, 0.05, "documents"))

    def test_contradictions_are_refused(self) -> None:
        x = case([1, 1], 3)
        mask = torch.zeros(2, 2, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"temperature must be positive, got 0"):
            info_nce(*x.leaves, x.row, 0.0)
        with pytest.raises(ValueError, match="at least one query"):
            info_nce(column(), column(), column(), torch.zeros(0, dtype=torch.long))
        with pytest.raises(ValueError, match="needs in_batch"):
            info_nce(*x.leaves, x.row, gather=True)
        with pytest.raises(ValueError, match="one process"):
            info_nce(*x.leaves, x.row, known_positive=mask)
        with pytest.raises(ValueError, match=r"\[2, 4\] for documents, got \[2, 2\]"):
            info_nce(*x.leaves, x.row, in_batch="documents", known_positive=mask)
        with pytest.raises(ValueError, match="go together"):
            info_nce(*x.leaves, x.row, positive_id=x.positive_id, known_row=x.known_row)
        with pytest.raises(ValueError, match="need positive_id"):
            info_nce(*x.leaves, x.row, negative_id=x.negative_id)
        with pytest.raises(ValueError, match="needs negative_id too"):
            info_nce(*x.leaves, x.row, in_batch="documents", positive_id=x.positive_id)
        with pytest.raises(DataError, match="names query 2, but there are 2"):
            info_nce(*x.leaves, x.row + 1)


class TestQueryViewEntropy:
    def test_by_hand(self) -> None:
        """exp(s): mined 2 and 4, generated 1 and 3, of 10: p~ is 1/4, 3/4; their share .4 instead of .5."""
        negatives = column(log(2), log(1), log(4), log(3))
        generated = torch.tensor([False, True, False, True])
        loss = query_view_entropy(column(1), negatives, torch.zeros(4, dtype=torch.long), generated, 1.0)
        assert loss.item() == pytest.approx(log(1 / 4) / 4 + log(3 / 4) * 3 / 4 + 0.01)

    def test_mean_over_queries_that_have_generated_negatives(self) -> None:
        """Query 0 as above without mined ones (share 1, as expected); 1 has none generated, 2 nothing."""
        negatives, generated = column(log(1), log(3), 5), torch.tensor([True, True, False])
        loss = query_view_entropy(column(1, 1, 1), negatives, torch.tensor([0, 0, 1]), generated, 1.0)
        assert loss.item() == pytest.approx(log(1 / 4) / 4 + log(3 / 4) * 3 / 4)

    @settings(max_examples=30, deadline=None)
    @given(cases, st.sampled_from(["own", "batch"]))
    def test_equals_the_loop(self, x: Case, scope: Any) -> None:
        ours = query_view_entropy(*x.sources, 0.1, scope=scope)
        assert_same(x, ours, reference.query_view_entropy(*x.sources, 0.1, scope=scope))

    @settings(max_examples=15, deadline=None)
    @given(cases, st.sampled_from(["own", "batch"]))
    def test_who_feels_it(self, x: Case, scope: Any) -> None:
        """The value is the same; published only generated negatives move."""
        loss = {
            g: query_view_entropy(*x.sources, scope=scope, gradient=g) for g in ("generated", "both", "all")
        }
        assert loss["generated"].item() == loss["both"].item() == loss["all"].item()
        gradient = {g: x.gradients(value) for g, value in loss.items()}
        assert not gradient["generated"][0].any()
        assert not gradient["generated"][2][~x.generated].any()
        assert not gradient["both"][0].any()
        torch.testing.assert_close(gradient["generated"][2][x.generated], gradient["both"][2][x.generated])
        torch.testing.assert_close(gradient["both"][2], gradient["all"][2])
        mixed = scope == "batch" or any(
            len(set(x.generated[x.row == b].tolist())) == 2 for b in range(len(x.query))
        )
        if x.generated.any() and not x.generated.all() and mixed:
            assert gradient["both"][2][~x.generated].any()
            assert gradient["all"][0].any()

    def test_gradients_of_all_against_differences(self) -> None:
        x = case([3, 0, 4], 4)
        assert set(x.generated.tolist()) == {True, False}
        for scope in ("own", "batch"):
            assert torch.autograd.gradcheck(
                lambda q, n, scope=scope: query_view_entropy(
                    q, n, x.row, x.generated, 0.3, scope=scope, gradient="all"
                ),
                (x.query, x.negatives),
            )

    def test_none_generated_is_zero_with_a_way_for_gradients(self) -> None:
        x = case([2, 3], 5)
        for rows in (slice(None), slice(0, 0)):
            loss = query_view_entropy(
                x.query, x.negatives[rows], x.row[rows], torch.zeros_like(x.generated[rows])
            )
            assert loss.item() == 0
            assert all(not g.any() for g in torch.autograd.grad(loss, (x.query, x.negatives)))

    def test_one_generated_negative_has_no_entropy_to_gain(self) -> None:
        """The loss is the balance term alone, its slope 2 (share - 1/3) share (1 - share) / tau."""
        negatives = column(0.3, 0.1, 0.2).requires_grad_()
        row, generated = torch.zeros(3, dtype=torch.long), torch.tensor([False, False, True])
        loss = query_view_entropy(column(1), negatives, row, generated, 0.1)
        share = math.exp(2) / (math.exp(3) + math.exp(1) + math.exp(2))
        assert loss.item() == pytest.approx((share - 1 / 3) ** 2)
        (gradient,) = torch.autograd.grad(loss, negatives)
        slope = 2 * (share - 1 / 3) * share * (1 - share) / 0.1
        assert gradient[:, 0].tolist() == pytest.approx([0, 0, slope])
        # Without mined negatives the balance is 0 as well: exactly nothing is left.
        alone = column(0.2).requires_grad_()
        loss = query_view_entropy(column(1), alone, row[:1], generated[2:], 0.1)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, alone)[0].item() == 0

    def test_optimum_is_the_log_mean_exp_of_the_mined_ones(self) -> None:
        mined = torch.tensor([0.1, 0.5, 0.35, 0.2, 0.3], dtype=torch.float64)
        free = torch.tensor([0.15, 0.3, 0.45], dtype=torch.float64, requires_grad=True)
        row, generated = torch.zeros(8, dtype=torch.long), torch.arange(8) >= 5
        solver: Any = torch.optim.LBFGS(
            [free], max_iter=300, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            solver.zero_grad()
            loss = query_view_entropy(column(1), torch.cat([mined, free])[:, None], row, generated, 0.1)
            free.grad = torch.autograd.grad(loss, free)[0]
            return loss.item()

        solver.step(closure)
        level = 0.1 * log((mined / 0.1).exp().mean().item())
        assert free.tolist() == pytest.approx([level] * 3, abs=1e-5)
        assert closure() == pytest.approx(-log(3))

    def test_balance_vanishes_where_it_is_needed(self) -> None:
        """15 mined, 3 equal generated ones .4 or .6 below: a tenth, a hundredth of the strongest pull."""
        generated = torch.arange(18) >= 15

        def pull(gap: float) -> float:
            negatives = column(*[0.7] * 15, *[0.7 - gap] * 3).requires_grad_()
            loss = query_view_entropy(column(1), negatives, torch.zeros(18, dtype=torch.long), generated)
            gradient = torch.autograd.grad(loss, negatives)[0][generated, 0]
            share = 3 / (3 + 15 * math.exp(gap / 0.1))
            slope = 2 * (share - 3 / 18) * share * (1 - share) / 0.1 / 3
            assert gradient.tolist() == pytest.approx([slope] * 3, rel=1e-9)
            return -gradient.sum().item()

        peak = max(pull(gap / 100) for gap in range(0, 61, 5))
        assert pull(0.0) == pytest.approx(0, abs=1e-12)
        assert 0.05 < pull(0.4) / peak < 0.15
        assert 0.005 < pull(0.6) / peak < 0.015

    def test_extreme_scores_stay_finite(self) -> None:
        negatives = column(1000, -1000, 1000, -1000).requires_grad_()
        row, generated = torch.zeros(4, dtype=torch.long), torch.tensor([True, True, False, False])
        for scope in ("own", "batch"):
            loss = query_view_entropy(column(1), negatives, row, generated, scope=scope, gradient="all")
            assert loss.item() == pytest.approx(0)  # one generated holds all of p~, and half of p
            assert torch.autograd.grad(loss, negatives)[0].isfinite().all()

    def test_temperature_is_checked(self) -> None:
        with pytest.raises(ValueError, match=r"temperature must be positive, got -1"):
            query_view_entropy(*case([1], 6).sources, -1.0)


def batch_of(ours: list[float], theirs: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of one query whose negatives have these similarities."""
    negatives = column(*ours, *theirs).requires_grad_()
    return (
        column(1),
        negatives,
        torch.zeros(len(negatives), dtype=torch.long),
        torch.arange(len(negatives)) < len(ours),
    )


class TestDistributionMatching:
    def test_by_hand(self) -> None:
        """{0, 6} against {0, 0, 3}: quantiles differ by 6 over (1/2, 2/3) and by 3 over (2/3, 1)."""
        batch = batch_of([6, 0], [0, 3, 0])
        assert distribution_matching(*batch).item() == pytest.approx(6 / 6 + 3 / 3)
        assert distribution_matching(*batch, distance="wasserstein2").item() == pytest.approx(36 / 6 + 9 / 3)
        # 2 E|g - m| = 2 * 18/6; E|g - g'| = 12/4; E|m - m'| = 12/9.
        assert distribution_matching(*batch, distance="energy").item() == pytest.approx(6 - 3 - 4 / 3)

    @settings(max_examples=30, deadline=None)
    @given(cases, st.sampled_from(DISTANCES))
    def test_equals_the_loop(self, x: Case, distance: Any) -> None:
        ours = distribution_matching(*x.sources, distance=distance, gradient="all")
        assert_same(x, ours, reference.distribution_matching(*x.sources, distance=distance))

    @settings(max_examples=15, deadline=None)
    @given(cases, st.sampled_from(DISTANCES))
    def test_who_feels_it(self, x: Case, distance: Any) -> None:
        gradient = {}
        for who in ("generated", "both", "all"):
            loss = distribution_matching(*x.sources, distance=distance, gradient=who)
            gradient[who] = x.gradients(loss)
        assert not gradient["generated"][0].any()
        assert not gradient["generated"][2][~x.generated].any()
        assert not gradient["both"][0].any()
        torch.testing.assert_close(gradient["generated"][2][x.generated], gradient["both"][2][x.generated])
        torch.testing.assert_close(gradient["both"][2], gradient["all"][2])
        if x.generated.any() and not x.generated.all():
            # A mined score between two generated ones may be as far from both, whichever way it moves.
            score = (x.query[x.row] * x.negatives).sum(-1)
            ends = [
                int(of.nonzero()[score[of].argmin()])
                for of in x.row == torch.arange(len(x.query))[:, None]
                if of.any()
            ]
            if distance == "wasserstein2" or not x.generated[ends].all():
                assert gradient["both"][2][~x.generated].any()
            assert gradient["all"][0].any()

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.integers(-9, 9), min_size=1, max_size=6), st.integers(1, 3), st.sampled_from(DISTANCES)
    )
    def test_a_sample_repeated_is_the_same_distribution(
        self, values: list[int], times: int, distance: Any
    ) -> None:
        batch = batch_of([float(v) for v in values], [float(v) for v in values * times])
        assert distribution_matching(*batch, distance=distance).item() == pytest.approx(0, abs=1e-12)

    def test_optimum_leaves_nothing_in_the_score(self) -> None:
        """Descending the squared W2 puts every generated similarity on its quantile of the mined ones."""
        query, start, row, generated = batch_of([-0.5, 0.9, 0.8, 0.2], [0.1, 0.5, 0.35, 0.2])
        free, mined = start.detach()[:4].requires_grad_(), start.detach()[4:]
        for _ in range(60):
            loss = distribution_matching(
                query, torch.cat([free, mined]), row, generated, distance="wasserstein2"
            )
            (gradient,) = torch.autograd.grad(loss, free)
            free = (free - gradient).detach().requires_grad_()
        assert free[:, 0].tolist() == pytest.approx([0.1, 0.5, 0.35, 0.2])

    def test_bands_by_hand(self) -> None:
        """Mined 0 1 2 3 make the bands [0, 1.5] and (1.5, 3]; -5 and 4 lie outside; weights are 1/4 and 1/4.

        Band 0: {1} against {0, 1}, on average .5. Band 1: {2} against {2, 3}, on average .5.
        """
        batch = batch_of([-5, 1, 2, 4], [0, 1, 2, 3])
        loss = distribution_matching(*batch, bands=2)
        assert loss.item() == pytest.approx(0.5 / 4 + 0.5 / 4)
        gradient = torch.autograd.grad(loss, batch[1])[0][:, 0]
        assert gradient.tolist() == pytest.approx([0, 1 / 8, -1 / 8, 0, 0, 0, 0, 0])

    def test_one_band_without_outsiders_matches_everything(self) -> None:
        batch = batch_of([0.5, 2.5], [0, 1, 3])
        for distance in DISTANCES:
            assert distribution_matching(*batch, distance=distance, bands=1).item() == pytest.approx(
                distribution_matching(*batch, distance=distance).item()
            )

    def test_a_missing_source_is_zero_with_a_way_for_gradients(self) -> None:
        for ours, theirs in (([], [1.0, 2.0]), ([1.0, 2.0], []), ([], [])):
            batch = batch_of(list(ours), list(theirs))
            loss = distribution_matching(*batch)
            assert loss.item() == 0
            assert not torch.autograd.grad(loss, batch[1])[0].any()
        outside = batch_of([5.0], [0.0, 1.0])
        assert not torch.autograd.grad(distribution_matching(*outside, bands=2), outside[1])[0].any()
        with pytest.raises(ValueError, match="bands must not be negative, got -1"):
            distribution_matching(*outside, bands=-1)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, n, row, written: info_nce(x.query, x.positive, n, row, 0.05, "documents"),
        lambda x, n, row, written: info_nce(x.query, x.positive, n, row, 0.05, True),
        lambda x, n, row, written: query_view_entropy(x.query, n, row, written),
        lambda x, n, row, written: query_view_entropy(x.query, n, row, written, scope="batch"),
        lambda x, n, row, written: distribution_matching(x.query, n, row, written),
        lambda x, n, row, written: distribution_matching(
            x.query, n, row, written, distance="energy", bands=2
        ),
    ],
)
def test_order_of_negatives_does_not_matter(
    loss: Callable[[Case, Tensor, Tensor, Tensor], Tensor],
) -> None:
    x = case([4, 0, 3, 5], 7)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(8))
    moved = x.negatives[order]
    ours = loss(x, x.negatives, x.row, x.generated)
    theirs = loss(x, moved, x.row[order], x.generated[order])
    assert ours.item() != 0
    assert_same(x, ours, theirs)


def test_hardness_gap_and_its_warning() -> None:
    """Mined 0 and 2 have mean 1 and deviation 1; generated -2 and -1 lie 2.5 deviations below."""
    similarity = torch.tensor([0.0, -2, 2, -1])
    generated = torch.tensor([False, True, False, True])
    assert hardness_gap(similarity, generated) == -2.5
    gap = hardness_gap(similarity, generated)
    assert "2.5 standard deviations easier" in (easy_negatives(gap) or "")
    assert easy_negatives(gap, threshold=2.5) is None
    assert easy_negatives(-gap) is None  # harder ones are welcome
    assert math.isnan(hardness_gap(similarity, torch.zeros(4, dtype=torch.bool)))
    assert easy_negatives(hardness_gap(similarity, torch.ones(4, dtype=torch.bool))) is None


def test_own_similarity_by_hand() -> None:
    found = own_similarity(column(2, 3), column(1, 10, 100), torch.tensor([1, 0, 1], dtype=torch.int32))
    assert found.tolist() == [3, 20, 300]


WORKER = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from causalneg.losses import info_nce

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
given = {k: torch.from_numpy(v) for k, v in np.load(f"{folder}/{rank}.npz").items()}
leaves = [given.pop(name).requires_grad_() for name in ("query", "positive", "negatives")]
out = {}
for in_batch in ("positives", "documents"):
    loss = info_nce(*leaves, given["negative_row"], 0.05, in_batch, gather=True,
                    **{k: v for k, v in given.items() if k != "negative_row"})
    gradients = torch.autograd.grad(loss, leaves)
    out |= {f"{in_batch}-{i}": g.numpy() for i, g in enumerate((loss.detach(), *gradients))}
np.savez(f"{folder}/out{rank}.npz", **out)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_candidates_of_two_processes_are_those_of_one_big_batch(tmp_path: Path, repo: Path) -> None:
    """Batches of 2 and 3 queries on two processes against the 5 on one: loss, masks, gradients."""
    x = case([2, 0, 3, 1, 4], 9)
    x.row, order = x.row.sort()  # the first two queries' negatives stand first
    x.generated = x.generated[order]
    cut = int((x.row < 2).sum())
    queries, negatives = (slice(0, 2), slice(2, 5)), (slice(0, cut), slice(cut, None))
    for rank in range(2):
        q, n, own = queries[rank], negatives[rank], (x.known_row >= 2) == bool(rank)
        arrays = {
            "query": x.query[q],
            "positive": x.positive[q],
            "negatives": x.negatives[n],
            "negative_row": x.row[n] - 2 * rank,
            "positive_id": x.positive_id[q],
            "negative_id": x.negative_id[n],
            "known_row": x.known_row[own] - 2 * rank,
            "known_id": x.known_id[own],
        }
        saved: dict[str, Any] = {k: v.detach().numpy() for k, v in arrays.items()}
        np.savez(tmp_path / f"{rank}.npz", **saved)
    environment = {**os.environ, "PYTHONPATH": str(repo / "packages")}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    found = [np.load(tmp_path / f"out{rank}.npz") for rank in range(2)]
    for in_batch in ("positives", "documents"):
        mode: Any = in_batch
        loss = info_nce(
            *x.leaves,
            x.row,
            0.05,
            mode,
            positive_id=x.positive_id,
            negative_id=x.negative_id,
            known_row=x.known_row,
            known_id=x.known_id,
            reduction="none",
        )
        means = [loss[q].mean() for q in queries]
        assert [float(f[f"{in_batch}-0"]) for f in found] == pytest.approx([m.item() for m in means])
        whole = x.gradients(means[0] + means[1])
        for place, gradient in enumerate(whole, start=1):
            both = np.concatenate([f[f"{in_batch}-{place}"] for f in found])
            if place == 1:  # a query is nobody's candidate: it feels its own process's loss only
                assert both.shape == gradient.shape
            np.testing.assert_allclose(both, gradient.numpy(), rtol=1e-9, atol=1e-12)
