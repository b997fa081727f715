"""What an encoder knows, and uses, of where a negative comes from: Z, mined or generated.

Presence and use are different things. A probe on the embedding sees a writer's style even in an encoder that
was never trained; the score alone can be blind to a shortcut (a harder text with a fingerprint cancels) and
can show one where there is none (text that is simply easy). What a shortcut does to a ranking is the
same-document style shift. So all of them are measured, each to be read beside its value for the encoder
before training, on queries that were not trained on.

s is a negative's cosine with its own query throughout. Pure functions: numpy where figures are made once,
torch where they are followed through training.

Over 400 lines: a dozen measures, each short, that share their notation.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from causalneg.losses import hardness_gap, own_similarity
from common.errors import DataError
from common.metrics.ctr import user_auc

NAN = math.nan


def style_shift(
    plain: Float[np.ndarray, " documents"],
    styled: Float[np.ndarray, " documents"],
    mined: Float[np.ndarray, " negatives"],
) -> float:
    """Same-document style shift: what a writer's style alone does to a score.

    ``(mean over documents of s(q, styled(d)) - s(q, d)) / standard deviation of s of the mined negatives``.
    The document says the same in both versions, so its relevance does not change: 0 is no shortcut, below 0
    the style is held against a text.

    Source: this project; an intervention on the style with the content held fixed.

    Args:
        plain: s(q, d) of documents as they are, each with a query.
        styled: s(q, styled(d)) of the same documents with the same queries.
        mined: s of mined negatives, the scale.

    Returns:
        The shift; NaN without documents, or where the mined scores do not vary.
    """
    deviation = float(np.std(np.asarray(mined, dtype=np.float64))) if len(mined) else 0.0
    if not len(plain) or not deviation > 0:
        return NAN
    return float(np.mean(np.asarray(styled, np.float64) - np.asarray(plain, np.float64))) / deviation


def score_auc(
    similarity: Float[np.ndarray, " negatives"],
    generated: Bool[np.ndarray, " negatives"],
    row: Int[np.ndarray, " negatives"] | None = None,
) -> float:
    """Source AUC from the score alone: how well s tells generated from mined negatives.

    ``P(s_g > s_m) + P(s_g = s_m) / 2`` over a generated and a mined negative: of the whole set, or with
    ``row`` of the same query, averaged over the queries that have both. 1/2: the score does not tell; above,
    the generated ones are nearer to the query. Queries differ in how near everything is to them; that blurs
    the first and not the second.

    Args:
        similarity: s of each negative.
        generated: Whether each was generated.
        row: Query of each, to compare within queries only.

    Returns:
        The AUC; NaN where no generated can be compared with a mined one.
    """
    user = np.zeros(len(similarity), dtype=np.int64) if row is None else row
    auc = user_auc(user=user, label=generated, score=np.asarray(similarity, dtype=np.float64))[1]
    return float(np.nanmean(auc)) if np.isfinite(auc).any() else NAN


def embedding_auc(
    embeddings: Float[np.ndarray, "negatives dim"],
    generated: Bool[np.ndarray, " negatives"],
    row: Int[np.ndarray, " negatives"],
    *,
    folds: int = 3,
    seed: int = 0,
) -> float:
    """Source AUC from the embedding: how well a linear probe tells generated from mined negatives.

    Logistic regression (standardised features, L2 with C = 1) is fitted on the negatives of all queries but
    a fold and ranks those of the fold; AUC averaged over the folds. A text that was also fitted on, as the
    mined negative of two queries, is left out of the test: it would be known by heart, and only mined ones
    recur.

    Source: Alain and Bengio, Understanding intermediate layers using linear classifier probes (2016).

    Args:
        embeddings: Embedding of each negative.
        generated: Whether each was generated.
        row: Query of each; no query is on both sides.
        folds: Parts that the queries are dealt into.
        seed: Decides which query falls into which part.

    Returns:
        The AUC; NaN where no fold has both sources on both sides.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    queries, place = np.unique(row, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(queries)) % folds)[place]
    whole = np.dtype((np.void, embeddings.itemsize * embeddings.shape[1]))
    text = np.unique(np.ascontiguousarray(embeddings).view(whole)[:, 0], return_inverse=True)[1]
    found = []
    for part in range(folds):
        fitted = fold != part
        tested = ~fitted & ~np.isin(text, text[fitted])
        if len(set(generated[fitted])) < 2 or len(set(generated[tested])) < 2:
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        probe.fit(embeddings[fitted], generated[fitted])
        found.append(score_auc(probe.decision_function(embeddings[tested]), generated[tested]))
    return float(np.mean(found)) if found else NAN


@dataclass(frozen=True)
class Information:
    """An estimate of I(Z; s) in bits.

    Args:
        raw: Plug-in estimate; never below 0, and too high by about (bins - 1) / (2 n ln 2).
        null: Mean of the same estimate with the sources permuted: its bias.
        corrected: ``raw - null``; about 0, of either sign, where the score says nothing.
        p: Share of permutations that reach ``raw``, the set itself counted in.
    """

    raw: float
    null: float
    corrected: float
    p: float


def source_information(
    similarity: Float[np.ndarray, " negatives"],
    generated: Bool[np.ndarray, " negatives"],
    row: Int[np.ndarray, " negatives"] | None = None,
    *,
    bins: int | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> Information:
    """Mutual information of source and score, ``I(Z; s)`` in bits, with a permutation null.

    ``I = sum over z, b of p(z, b) log2( p(z, b) / (p(z) p(b)) )``, b being the bin of s among equally filled
    ones. Such bins depend on ranks only, so encoders that spread their scores differently are comparable, and
    equal scores share a bin; nearest-neighbour estimates lose both. Binning can only lose information, its
    upward bias is what permuted sources show, and is subtracted.

    With ``row`` sources are permuted within each query: the null is that a query's own negatives cannot be
    separated, however many of each it has.

    Source: Cover and Thomas, Elements of Information Theory, section 2.3; the bias Miller (1955); the
    permutation test Phipson and Smyth (2010).

    Args:
        similarity: s of each negative.
        generated: Whether each was generated.
        row: Query of each; None permutes over all.
        bins: Number of bins; by default the cube root of the number of negatives, from 2 to 32.
        permutations: Number of permutations.
        seed: Decides them.

    Returns:
        The estimate; all NaN where a source is missing.
    """
    if permutations < 1 or (bins is not None and bins < 2):
        raise ValueError(f"permutations must be at least 1 and bins 2, got {permutations} and {bins}")
    n = len(similarity)
    if not generated.any() or generated.all():
        return Information(NAN, NAN, NAN, NAN)
    count = bins or int(np.clip(round(n ** (1 / 3)), 2, 32))
    inner = np.quantile(similarity, np.arange(1, count) / count, method="inverted_cdf")
    place = np.searchsorted(np.unique(inner), similarity, side="left")
    size = np.bincount(place, minlength=count)
    rows = np.zeros(n, dtype=np.int64) if row is None else row
    by_row = np.argsort(rows, kind="stable")
    draw = np.random.default_rng(seed)
    written = np.empty((permutations + 1, count))
    written[0] = np.bincount(place[generated], minlength=count)
    for number in range(1, permutations + 1):
        shuffled = np.lexsort((draw.random(n), rows))  # the same rows, each one's members in a new order
        written[number] = np.bincount(place[shuffled][generated[by_row]], minlength=count)
    bits = _bits(written, size - written)
    raw, null = float(bits[0]), float(bits[1:].mean())
    reached = bits[1:] >= raw * (1 - 1e-12)
    return Information(raw, null, raw - null, float((1 + reached.sum()) / (1 + permutations)))


def _bits(
    written: Float[np.ndarray, "tables bins"], mined: Float[np.ndarray, "tables bins"]
) -> Float[np.ndarray, " tables"]:
    """I = H(Z) + H(bin) - H(Z, bin) of tables of counts."""

    def entropy(counts: Float[np.ndarray, "tables cells"]) -> Float[np.ndarray, " tables"]:
        p = counts / counts.sum(1, keepdims=True)
        out: Float[np.ndarray, " tables"] = -(p * np.log2(np.where(p > 0, p, 1))).sum(1)
        return out

    sources = np.stack([written.sum(1), mined.sum(1)], axis=1)
    bits = entropy(sources) + entropy(written + mined) - entropy(np.concatenate([written, mined], axis=1))
    above: Float[np.ndarray, " tables"] = np.maximum(bits, 0)  # rounding
    return above


def gradient_signals(
    query: Float[Tensor, "queries dim"],
    positive: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    generated: Bool[Tensor, " negatives"],
    temperature: float | int = 0.05,
) -> dict[str, float]:
    """What the generated negatives still teach: their part of InfoNCE's gradient, and its direction.

    With p the softmax of s / tau over a query's positive and its own negatives, ``dL/ds_j = p_j / tau``:

    - ``gradient_share``: ``(mean of p over generated) / (mean of p over mined negatives)``. 1: a generated
      negative weighs as much as a mined one; near 0: it is ignored.
    - ``gradient_cosine``: cosine of ``d+``, the gradient of the positive's score by the query, and of
      ``sum over generated j of p_j d_j``, that of the generated ones' scores as the loss weighs them. The
      loss follows the first and flees the second; near 1 little is left to tell them apart by: hard
      negatives; near 0 they lie elsewhere: easy ones. Averaged over the queries that have some.
    - ``gradient_cosine_mined``: the same of the mined ones, to compare.

    Source: CausalNeg, the problem it names (1.34 falling to 0.08, and 0.73 to 0.24, second-hand); definitions
    this project's where those are silent. In-batch candidates would divide all p of a query by one number.

    Args:
        query: L2-normalised embeddings of the queries.
        positive: Embedding of each query's positive.
        negatives: Embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        generated: Whether each negative was generated.
        temperature: tau.

    Returns:
        The figures by name; NaN where a source is missing.
    """
    with torch.no_grad():
        row, queries = negative_row.long(), len(query)
        of_positive = own_similarity(query, positive, torch.arange(queries, device=query.device)).double()
        of_negative = own_similarity(query, negatives, row).double()
        peak = of_positive.scatter_reduce(0, row, of_negative, "amax")
        power = torch.exp((of_negative - peak[row]) / temperature)
        total = torch.exp((of_positive - peak) / temperature).index_add(0, row, power)
        p = power / total[row]
        share = p[generated].mean() / p[~generated].mean() if len(p) else p.new_tensor(NAN)
        cosines = [
            _pull_cosine(positive, negatives[kept], row[kept], of_negative[kept] / temperature)
            for kept in (generated, ~generated)
        ]
        found = torch.stack([share, *cosines]).tolist()
    return dict(zip(("gradient_share", "gradient_cosine", "gradient_cosine_mined"), found, strict=True))


def _pull_cosine(
    positive: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    row: Int[Tensor, " negatives"],
    logits: Float[Tensor, " negatives"],
) -> Float[Tensor, ""]:
    """Mean over queries with negatives of cos(d+, sum_j exp(logit_j) d_j)."""
    peak = logits.new_full((len(positive),), -math.inf).scatter_reduce(0, row, logits, "amax")
    weighted = torch.exp(logits - peak[row]).float()[:, None] * negatives.float()
    pull = weighted.new_zeros(positive.shape).index_add(0, row, weighted)
    cosine = torch.nn.functional.cosine_similarity(positive.float(), pull, dim=1).double()
    return cosine[~torch.isneginf(peak)].mean()


@dataclass(frozen=True)
class Histogram:
    """Similarities by source, in bins that are the same for every encoder.

    Args:
        edges: Ends of the bins, rising.
        counts: Similarities in each bin, by source.
    """

    edges: list[float]
    counts: dict[str, list[int]]


def similarity_histogram(similarities: dict[str, Float[np.ndarray, " _"]], *, bins: int = 100) -> Histogram:
    """Count cosines in ``bins`` equal bins over [-1, 1]; what rounding put outside counts at the end.

    Args:
        similarities: Similarities by source: ``positive``, ``mined``, ``generated``.
        bins: Number of bins.
    """
    edges = np.linspace(-1, 1, bins + 1)
    return Histogram(
        edges.tolist(),
        {k: np.histogram(np.clip(v, -1, 1), edges)[0].tolist() for k, v in similarities.items()},
    )


@dataclass(frozen=True)
class SourceReport:
    """Everything measured about the source of negatives, for one encoder; NaN where it cannot be.

    Args:
        queries: Queries with negatives.
        mined: Mined negatives.
        generated: Generated negatives.
        style_shift: See :func:`style_shift`.
        source_auc: See :func:`score_auc`, over all negatives.
        source_auc_within: See :func:`score_auc`, within queries.
        embedding_auc: See :func:`embedding_auc`.
        information: See :func:`source_information`, permuted within queries.
        hardness_gap: Mean s of generated minus mined negatives, in standard deviations of the mined ones.
        gradient_share: See :func:`gradient_signals`.
        gradient_cosine: See :func:`gradient_signals`.
        gradient_cosine_mined: See :func:`gradient_signals`.
        histogram: Similarities of positives, mined and generated negatives.
    """

    queries: int
    mined: int
    generated: int
    style_shift: float
    source_auc: float
    source_auc_within: float
    embedding_auc: float
    information: Information
    hardness_gap: float
    gradient_share: float
    gradient_cosine: float
    gradient_cosine_mined: float
    histogram: Histogram = field(repr=False)

    def figures(self) -> dict[str, float]:
        """All single numbers under the names that records and tables use."""
        own = {k: v for k, v in vars(self).items() if isinstance(v, float)}
        bits = self.information
        return own | {
            "mutual_information": bits.corrected,
            "mutual_information_raw": bits.raw,
            "mutual_information_null": bits.null,
            "mutual_information_p": bits.p,
        }

    def to_json(self) -> str:
        """The report as JSON; null is NaN."""
        return json.dumps(_without_nan(asdict(self)), indent=1)

    @classmethod
    def from_json(cls, text: str) -> SourceReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: It is something else.
        """
        try:
            found: dict[str, Any] = json.loads(text, object_hook=_with_nan)
            information = Information(**found.pop("information"))
            return cls(information=information, histogram=Histogram(**found.pop("histogram")), **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"this is no report about the sources of negatives: {error}") from error


def _with_nan(found: dict[str, Any]) -> dict[str, Any]:
    return {k: NAN if v is None else v for k, v in found.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def diagnose_sources(
    query: Float[np.ndarray, "queries dim"],
    negatives: Float[np.ndarray, "negatives dim"],
    row: Int[np.ndarray, " negatives"],
    generated: Bool[np.ndarray, " negatives"],
    *,
    positive: Float[np.ndarray, "queries dim"] | None = None,
    plain: Float[np.ndarray, "documents dim"] | None = None,
    styled: Float[np.ndarray, "documents dim"] | None = None,
    document_row: Int[np.ndarray, " documents"] | None = None,
    temperature: float | int = 0.05,
    probe: bool = True,
    folds: int = 3,
    permutations: int = 200,
    seed: int = 0,
) -> SourceReport:
    """Measure everything this module knows on the embeddings of held-out queries.

    Args:
        query: L2-normalised embeddings of queries that were not trained on.
        negatives: Embeddings of all their negatives.
        row: Query of each negative.
        generated: Whether each negative was generated.
        positive: Embedding of each query's positive; None leaves out the gradients.
        plain: Embeddings of documents as they are; None leaves out the style shift.
        styled: Embeddings of the same documents in the writer's style.
        document_row: Query that each of these documents is compared with.
        temperature: tau of the training loss.
        probe: Whether to fit the probe on the embeddings, the slow part.
        folds: See :func:`embedding_auc`.
        permutations: See :func:`source_information`.
        seed: Decides folds and permutations.

    Raises:
        DataError: An embedding is not finite, or a negative or document belongs to no query.
        ValueError: Only some of ``plain``, ``styled`` and ``document_row`` are given.
    """
    given = {"query": query, "negative": negatives, "positive": positive, "plain": plain, "styled": styled}
    for name, embeddings in given.items():
        bad = [] if embeddings is None else np.flatnonzero(~np.isfinite(embeddings).all(1)).tolist()
        if bad:
            raise DataError(f"the {name} embedding in row {bad[0]} is not finite; encode it again")
    if len({plain is None, styled is None, document_row is None}) > 1:
        raise ValueError("plain, styled and document_row go together")
    queries, texts = torch.from_numpy(query), torch.from_numpy(negatives)
    rows, written = torch.from_numpy(row), torch.from_numpy(generated)
    similarity = own_similarity(queries, texts, rows)
    s = similarity.numpy()
    by_source = {"mined": s[~generated], "generated": s[generated]}
    signals: dict[str, float] = {}
    if positive is not None:
        of_positive = torch.from_numpy(positive)
        own = own_similarity(queries, of_positive, torch.arange(len(query)))
        by_source = {"positive": own.numpy(), **by_source}
        signals = gradient_signals(queries, of_positive, texts, rows, written, temperature)
    shift = NAN
    if plain is not None and styled is not None and document_row is not None:
        documents = torch.from_numpy(document_row)
        versions = [own_similarity(queries, torch.from_numpy(x), documents).numpy() for x in (plain, styled)]
        shift = style_shift(versions[0], versions[1], by_source["mined"])
    return SourceReport(
        queries=len(np.unique(row)),
        mined=int((~generated).sum()),
        generated=int(generated.sum()),
        style_shift=shift,
        source_auc=score_auc(s, generated),
        source_auc_within=score_auc(s, generated, row),
        embedding_auc=embedding_auc(negatives, generated, row, folds=folds, seed=seed) if probe else NAN,
        information=source_information(s, generated, row, permutations=permutations, seed=seed),
        hardness_gap=hardness_gap(similarity, written),
        histogram=similarity_histogram(by_source),
        gradient_share=signals.get("gradient_share", NAN),
        gradient_cosine=signals.get("gradient_cosine", NAN),
        gradient_cosine_mined=signals.get("gradient_cosine_mined", NAN),
    )
