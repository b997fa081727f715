"""Diagnostics where the answer is known: by hand, by a known channel, or by a second way to compute it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import mutual_info_score, roc_auc_score

from causalneg.evaluation.diagnostics import (
    SourceReport,
    diagnose_sources,
    embedding_auc,
    gradient_signals,
    score_auc,
    similarity_histogram,
    source_information,
    style_shift,
)
from causalneg.losses import info_nce
from common.errors import DataError


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    x = normal(*shape, seed=seed).astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return x


class TestStyleShift:
    def test_by_hand(self) -> None:
        """Scores fall by .1 and .3, on average .2; the mined ones, 0 and .2, have deviation .1."""
        shift = style_shift(np.array([0.5, 0.9]), np.array([0.4, 0.6]), np.array([0.0, 0.2]))
        assert shift == pytest.approx(-2)

    def test_not_defined(self) -> None:
        one = np.ones(1)
        assert math.isnan(style_shift(one, one, one))
        assert math.isnan(style_shift(one[:0], one[:0], np.array([0.0, 1.0])))


class TestScoreAUC:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
    def test_equals_scikit_learn(self, table: list[tuple[int, bool, int]]) -> None:
        score, generated, row = (np.array(column) for column in zip(*table, strict=True))
        score = score / 4
        within = [
            roc_auc_score(generated[row == one], score[row == one])
            for one in np.unique(row)
            if len(set(generated[row == one])) == 2
        ]
        whole = score_auc(score, generated)
        if len(set(generated)) == 2:
            assert whole == pytest.approx(roc_auc_score(generated, score))
        else:
            assert math.isnan(whole)
        found = score_auc(score, generated, row)
        assert found == pytest.approx(np.mean(within)) if within else math.isnan(found)

    def test_two_normal_distributions(self) -> None:
        """One deviation apart: Phi(1 / sqrt(2)) = .760."""
        generated = np.arange(40_000) % 2 == 0
        score = normal(40_000) - generated
        assert score_auc(score, generated) == pytest.approx(norm.cdf(-1 / math.sqrt(2)), abs=0.01)

    def test_levels_of_queries_hide_the_source(self) -> None:
        """The generated one always scores .1 more, beside levels that differ by 10."""
        row = np.repeat(np.arange(200), 2)
        generated = np.tile([True, False], 200)
        score = 10.0 * row + 0.1 * generated
        assert score_auc(score, generated, row) == 1
        # Of 200 x 200 pairs a generated one loses to the later queries only: (200 * 201 / 2) / 200^2.
        assert score_auc(score, generated) == pytest.approx(0.5025)


class TestEmbeddingAUC:
    def test_noise_tells_nothing(self) -> None:
        row, generated = np.repeat(np.arange(300), 4), np.tile([True, False, False, False], 300)
        # Three folds of 100 against 300: the standard error of the mean AUC is about .02.
        assert embedding_auc(normal(1200, 8), generated, row) == pytest.approx(0.5, abs=0.06)

    def test_a_direction_tells_all(self) -> None:
        row, generated = np.repeat(np.arange(60), 4), np.tile([True, False, False, False], 60)
        embeddings = normal(240, 8)
        embeddings[:, 3] += 20 * generated
        assert embedding_auc(embeddings, generated, row) == 1

    def test_agrees_with_the_best_possible_probe(self) -> None:
        """Two normal clouds a deviation apart: no probe beats Phi(1 / sqrt(2)), a linear one reaches it."""
        row, generated = np.repeat(np.arange(1500), 2), np.tile([True, False], 1500)
        embeddings = normal(3000, 4)
        embeddings[:, 0] += generated
        found = embedding_auc(embeddings, generated, row)
        assert found == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.03)

    def test_texts_known_by_heart_do_not_count(self) -> None:
        """40 mined texts recur, 120 do not; no vector tells anything of its source."""
        draw = np.random.default_rng(1)
        recurring, once, written = normal(40, 60, seed=2), normal(120, 60, seed=3), normal(120, 60, seed=4)
        mined = np.concatenate([recurring[draw.integers(0, 40, 360)], once])[draw.permutation(480)]
        embeddings = np.concatenate([mined, written])
        generated = np.arange(600) >= 480
        row = np.concatenate([np.repeat(np.arange(120), 4), np.arange(120)])
        # Some 40 of each source are tested in each of three folds: standard error .04.
        assert embedding_auc(embeddings, generated, row) == pytest.approx(0.5, abs=0.1)
        # Each vector made new by a digit that no probe sees: now those that recur are known by heart.
        fresh = embeddings + 1e-9 * normal(600, 60, seed=5)
        assert embedding_auc(fresh, generated, row) > 0.62

    def test_not_defined(self) -> None:
        row, one = np.arange(6), np.ones(6, dtype=bool)
        assert math.isnan(embedding_auc(normal(6, 2), one, row))
        with pytest.raises(ValueError, match="at least 2, got 1"):
            embedding_auc(normal(6, 2), one, row, folds=1)


class TestSourceInformation:
    def test_by_hand(self) -> None:
        """Four bins of two. Generated 2, 1, 1, 0 of them: I = H(Z) - H(Z | bin) = 1 - (0 + 1 + 1 + 0) / 4."""
        generated = np.array([True, True, True, False, False, True, False, False])
        assert source_information(np.arange(8.0), generated, bins=4).raw == pytest.approx(0.5)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=2, max_size=40))
    def test_equals_scikit_learn_on_two_scores(self, table: list[tuple[int, bool]]) -> None:
        score, generated = (np.array(column) for column in zip(*table, strict=True))
        found = source_information(score.astype(float), generated, bins=len(table), permutations=1)
        if len(set(generated)) == 2:
            expected = mutual_info_score(score, generated) / math.log(2)
            assert found.raw == pytest.approx(expected, abs=1e-9)
        else:
            assert math.isnan(found.raw)

    def test_independent_is_about_nothing(self) -> None:
        """Forty sets of 600: raw is too high by about (8 - 1) / (2 * 600 * ln 2) = .0084, corrected not."""
        found = []
        for seed in range(40):
            generated = np.random.default_rng(100 + seed).random(600) < 1 / 3
            found.append(source_information(normal(600, seed=seed), generated, permutations=50))
        raw, corrected = np.array([(f.raw, f.corrected) for f in found]).T
        assert raw.mean() == pytest.approx(7 / (1200 * math.log(2)), rel=0.25)
        assert abs(corrected.mean()) < 3 * corrected.std(ddof=1) / math.sqrt(40)
        p = np.array([f.p for f in found])
        assert 0.3 < p.mean() < 0.7  # uniform; its mean of 40 has standard error .046
        assert (p < 0.1).sum() <= 10  # binomial(40, .1): more than 10 has chance .001

    def test_deterministic_is_the_entropy_of_the_source(self) -> None:
        score = normal(8000)
        found = source_information(score, score > np.median(score), permutations=20)
        assert found.raw == pytest.approx(1, abs=1e-6)
        assert found.corrected == pytest.approx(1, abs=0.003)
        assert found.p == pytest.approx(1 / 21)

    @pytest.mark.parametrize("flip", [0.0, 0.11, 0.3, 0.5])
    def test_binary_symmetric_channel(self, flip: float) -> None:
        """The score is Z, turned round with chance e: I = 1 - h(e); .11 gives half a bit."""
        draw = np.random.default_rng(6)
        source = draw.random(40_000) < 0.5
        score = (source ^ (draw.random(40_000) < flip)).astype(float)
        h = -sum(p * math.log2(p) for p in (flip, 1 - flip) if p)
        # Standard deviation of the estimate: |log2(e / (1 - e))| sqrt(e (1 - e) / n), .0047 at .11.
        found = source_information(score, source, permutations=20)
        assert found.corrected == pytest.approx(1 - h, abs=0.015 if 0 < flip < 0.5 else 1e-3)

    def test_only_ranks_matter(self) -> None:
        score, generated = normal(500), normal(500, seed=1) + normal(500) > 0
        assert source_information(np.exp(3 * score), generated) == source_information(score, generated)

    def test_null_is_within_queries(self) -> None:
        """Queries with high scores have more generated ones; within a query nothing tells them apart."""
        draw = np.random.default_rng(7)
        row = np.repeat(np.arange(200), 10)
        many = row % 2 == 0
        generated = draw.random(2000) < np.where(many, 0.6, 0.2)
        score = many + 0.1 * draw.normal(size=2000)
        whole = source_information(score, generated)
        within = source_information(score, generated, row)
        assert whole.raw == within.raw
        assert whole.p == pytest.approx(1 / 201)
        assert within.p > 0.02
        assert whole.corrected > 0.1 > 0.01 > abs(within.corrected)

    def test_not_defined(self) -> None:
        assert math.isnan(source_information(np.ones(3), np.ones(3, dtype=bool)).corrected)
        with pytest.raises(ValueError, match="at least 1 and bins 2, got 0 and None"):
            source_information(np.ones(3), np.ones(3, dtype=bool), permutations=0)

    def test_equal_similarities_tell_the_source_where_equal_distributions_do_not(self) -> None:
        """The optimum of the query-view entropy against that of matching the distributions."""
        draw = np.random.default_rng(8)
        mined = draw.normal(0.3, 0.1, (400, 15))
        row = np.repeat(np.arange(400), 18)
        generated = np.tile(np.arange(18) >= 15, 400)
        level = 0.1 * np.log(np.exp(mined / 0.1).mean(axis=1, keepdims=True))
        balanced = np.concatenate([mined, np.repeat(level, 3, axis=1)], axis=1).reshape(-1)
        matched = np.concatenate([mined, draw.choice(mined.reshape(-1), (400, 3))], axis=1).reshape(-1)
        assert score_auc(balanced, generated) > 0.6
        told, silent = (source_information(s, generated, row, permutations=50) for s in (balanced, matched))
        assert told.corrected > 0.1
        assert score_auc(matched, generated) == pytest.approx(0.5, abs=0.03)
        assert abs(silent.corrected) < 0.003


def tensors(queries: int, counts: list[int], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Queries, positives, negatives in no order, their queries, and which were generated."""
    order = np.random.default_rng(seed).permutation(sum(counts))
    row = np.repeat(np.arange(queries), counts)[order]
    tables = [torch.from_numpy(unit(n, 6, seed=seed + i)) for i, n in enumerate((queries, queries, len(row)))]
    return *tables, torch.from_numpy(row), torch.from_numpy(order % 3 == 0)


class TestGradientSignals:
    def test_by_hand(self) -> None:
        """exp(s / tau): positive 4, mined 2 and 1, generated 1, of 8: (1/8) / ((2/8 + 1/8) / 2)."""
        query, positive = torch.tensor([[1.0]]), torch.tensor([[math.log(2)]])
        negatives = torch.tensor([[math.log(2) / 2], [0.0], [0.0]])
        row, generated = torch.zeros(3, dtype=torch.long), torch.tensor([False, False, True])
        found = gradient_signals(query, positive, negatives, row, generated, 0.5)
        assert found["gradient_share"] == pytest.approx(2 / 3)

    def test_cosine_by_hand(self) -> None:
        """Generated (3, 4) / 5 and mined (1, 0), weights equal as all scores are; the positive is (0, 1)."""
        query, positive = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        negatives = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.6, -0.8]])
        row, generated = torch.zeros(3, dtype=torch.long), torch.tensor([True, False, False])
        found = gradient_signals(query, positive, negatives, row, generated)
        assert found["gradient_share"] == 1
        assert found["gradient_cosine"] == pytest.approx(0.8)
        # (1, 0) + (.6, -.8) = (1.6, -.8), of length sqrt(3.2).
        assert found["gradient_cosine_mined"] == pytest.approx(-0.8 / math.sqrt(3.2))

    def test_equals_the_gradients_of_the_loss(self) -> None:
        """The share and the directions from autograd, negative by negative."""
        query, positive, negatives, row, generated = tensors(5, [4, 0, 7, 3, 6])
        found = gradient_signals(query, positive, negatives, row, generated, 0.2)
        negatives = negatives.double().requires_grad_()
        queries = query.double()
        loss = info_nce(queries, positive.double(), negatives, row, 0.2, False)
        gradient = torch.autograd.grad(loss, negatives)[0]
        pull = (gradient * queries[row]).sum(1)  # dL / ds_j, as ds_j / dd_j = q and |q| = 1
        share = (pull[generated].mean() / pull[~generated].mean()).item()
        assert found["gradient_share"] == pytest.approx(share, rel=1e-5)
        for name, kept in (("gradient_cosine", generated), ("gradient_cosine_mined", ~generated)):
            cosines = []
            for b in range(5):
                mine = (row == b) & kept
                if mine.any():
                    direction = (pull[mine, None] * negatives.detach()[mine]).sum(0)
                    cosines.append(torch.cosine_similarity(direction, positive[b].double(), dim=0).item())
            assert found[name] == pytest.approx(np.mean(cosines), rel=1e-5)

    def test_ignored_negatives_still_have_a_direction(self) -> None:
        """Two hundred times tau below the rest, where exp is 0 in single precision."""
        query, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
        negatives = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
        row, generated = torch.zeros(2, dtype=torch.long), torch.tensor([True, False])
        found = gradient_signals(query, positive, negatives, row, generated, 0.01)
        assert found["gradient_share"] == pytest.approx(math.exp(-200), rel=1e-6)
        assert found["gradient_cosine"] == -1

    def test_a_missing_source_is_nan(self) -> None:
        query, positive, negatives, row, generated = tensors(2, [2, 1])
        found = gradient_signals(query, positive, negatives, row, torch.zeros_like(generated))
        assert math.isnan(found["gradient_share"])
        assert math.isnan(found["gradient_cosine"])
        assert math.isfinite(found["gradient_cosine_mined"])
        found = gradient_signals(query, positive, negatives[:0], row[:0], generated[:0])
        assert all(math.isnan(value) for value in found.values())


def test_histogram_counts_everything() -> None:
    found = similarity_histogram(
        {"mined": np.array([-1.0, -0.1, 0.1, 1.0000001]), "generated": np.array([0.6])}, bins=4
    )
    assert found.edges == [-1, -0.5, 0, 0.5, 1]
    assert found.counts == {"mined": [1, 1, 1, 1], "generated": [0, 0, 0, 1]}


class TestSourceReport:
    def arguments(self) -> dict[str, Any]:
        query, positive, negatives, row, generated = (t.numpy() for t in tensors(60, [6] * 60))
        plain = unit(20, 6, seed=9)
        return {
            "query": query,
            "negatives": negatives,
            "row": row,
            "generated": generated,
            "positive": positive,
            "plain": plain,
            "styled": plain,
            "document_row": np.arange(20),
        }

    def test_gathers_what_the_functions_say(self) -> None:
        given = self.arguments()
        found = diagnose_sources(**given, permutations=20)
        s = (given["query"][given["row"]] * given["negatives"]).sum(1)
        written = given["generated"]
        assert (found.queries, found.mined, found.generated) == (60, (~written).sum(), written.sum())
        assert found.style_shift == 0  # styled as they are
        assert found.source_auc == pytest.approx(score_auc(s, written))
        assert found.source_auc_within == pytest.approx(score_auc(s, written, given["row"]))
        assert found.embedding_auc == embedding_auc(given["negatives"], written, given["row"])
        assert found.information.raw == pytest.approx(source_information(s, written, given["row"]).raw)
        gap = (s[written].mean() - s[~written].mean()) / s[~written].std()
        assert found.hardness_gap == pytest.approx(gap, rel=1e-4)
        assert {k: sum(v) for k, v in found.histogram.counts.items()} == {
            "positive": 60,
            "mined": found.mined,
            "generated": found.generated,
        }
        figures = found.figures()
        assert figures["mutual_information"] == found.information.corrected
        assert figures["mutual_information_p"] == found.information.p
        assert figures["gradient_share"] == found.gradient_share
        assert not {"queries", "histogram", "information"} & set(figures)

    def test_style_shift_of_embeddings(self) -> None:
        """Styled documents are moved against their own query by .5, in units of the mined scores' spread."""
        given = self.arguments()
        own = given["query"][given["document_row"]]
        styled = (given["plain"] - 0.5 * own).astype(np.float32)
        found = diagnose_sources(**{**given, "styled": styled}, probe=False, permutations=1)
        s = (given["query"][given["row"]] * given["negatives"]).sum(1)[~given["generated"]]
        assert found.style_shift == pytest.approx(-0.5 / s.std(), rel=1e-4)
        assert math.isnan(found.embedding_auc)

    def test_json_both_ways(self) -> None:
        given = self.arguments()
        whole = diagnose_sources(**given, permutations=5)
        assert SourceReport.from_json(whole.to_json()) == whole
        few = {k: given[k] for k in ("query", "negatives", "row")}
        bare = diagnose_sources(**few, generated=np.zeros(360, dtype=bool), probe=False)
        text = bare.to_json()
        assert "NaN" not in text
        assert SourceReport.from_json(text).to_json() == text
        back = SourceReport.from_json(text)
        assert math.isnan(back.source_auc)
        assert math.isnan(back.information.p)
        for broken in ("", "[]", "{}", json.dumps({**json.loads(text), "more": 1})):
            with pytest.raises(DataError, match="no report about the sources"):
                SourceReport.from_json(broken)

    def test_the_same_numbers_for_the_same_seed(self) -> None:
        given = self.arguments()
        one, same, other = (diagnose_sources(**given, permutations=20, seed=seed) for seed in (1, 1, 2))
        assert one == same
        assert replace(one, information=other.information, embedding_auc=other.embedding_auc) == other
        assert one.information.null != other.information.null

    def test_what_cannot_be_measured_is_refused(self) -> None:
        given = self.arguments()
        broken = given["negatives"].copy()
        broken[3, 1] = np.inf
        with pytest.raises(DataError, match="the negative embedding in row 3 is not finite"):
            diagnose_sources(**{**given, "negatives": broken})
        with pytest.raises(ValueError, match="go together"):
            diagnose_sources(**{**given, "styled": None})
        with pytest.raises(DataError, match="names query 60, but there are 60"):
            diagnose_sources(**{**given, "row": given["row"] + 1})
