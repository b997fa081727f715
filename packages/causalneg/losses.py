"""What is minimised: InfoNCE, the query-view entropy, and matching of the sources' similarities.

Pure functions on embeddings. The negatives of all queries stand one after the other in one table, any number
of them for each query, zero included; ``negative_row`` says whose each one is. Nothing is padded, no query
is looped over, and without in-batch candidates the cost follows the number of negatives.

Similarity is the dot product: the cosine, given the L2-normalised embeddings that every encoder here makes.
Sums run in float32 at least, also under autocast.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.errors import DataError

with warnings.catch_warnings():  # torch says once per process that CSR support is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))

Gradient = Literal["generated", "both", "all"]
"""Who feels a regulariser: generated negatives only, generated and mined ones, or the queries too."""

Candidates = Literal["positives", "documents"]
"""Which of the other queries' texts are candidates: their positives, or their negatives as well."""


def own_similarity(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
) -> Float[Tensor, " negatives"]:
    """Similarity of every negative to its own query: ``s_j = query[negative_row[j]] . negatives[j]``.

    Args:
        query: L2-normalised embeddings of the queries.
        negatives: L2-normalised embeddings of all their negatives.
        negative_row: Query of each negative, in any order.

    Raises:
        DataError: A negative belongs to no query.
    """
    return _similarity(query, negatives, _rows(negative_row, len(query)))


def info_nce(
    query: Float[Tensor, "queries dim"],
    positive: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    temperature: float | int = 0.05,
    in_batch: bool | Candidates = False,
    *,
    known_positive: Bool[Tensor, "queries candidates"] | None = None,
    positive_id: Int[Tensor, " queries"] | None = None,
    negative_id: Int[Tensor, " negatives"] | None = None,
    known_row: Int[Tensor, " known"] | None = None,
    known_id: Int[Tensor, " known"] | None = None,
    gather: bool = False,
    reduction: Literal["mean", "none"] = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " queries"]:
    """Cross-entropy of finding each query's positive among its candidates.

    ``L_b = -log( exp(s(q_b, d_b+) / tau) / sum over candidates d of b of exp(s(q_b, d) / tau) )``, averaged
    over the queries. Candidates of b are its positive, its own negatives, and with ``in_batch`` texts of the
    other queries. Candidates that are known positives of b, or the very document that is its positive, are
    taken out; the positive itself stays.

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding (2018), eq. 4;
    CausalNeg, training loss. The authors' plugin always compares with the documents of the whole local batch
    and divides this term, but not the entropy, by the number of processes; here the candidates are chosen and
    nothing is divided. A text that is a candidate twice, as two queries' negative, counts twice, as usual.

    Args:
        query: L2-normalised embeddings of the queries.
        positive: Embedding of each query's positive.
        negatives: Embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        temperature: tau.
        in_batch: False: only a query's own texts. True or ``"positives"``: the other queries' positives too.
            ``"documents"``: the other queries' positives and negatives.
        known_positive: For in-batch candidates without ``gather``: whether the text of a column is a known
            positive of the query of a row. Columns are the positives, with ``"documents"`` followed by the
            negatives. A query's own column may say what it likes.
        positive_id: Number of each positive's document, instead of ``known_positive``; the same number is the
            same document, in all processes if they gather.
        negative_id: Number of each negative's document.
        known_row: Query of each pair (query, document that is known to answer it).
        known_id: Number of the document of each such pair.
        gather: Whether candidates also come from the other processes of torch.distributed, with gradients
            back to them. Batches may differ in size. Every process must call; without processes it does
            nothing. Each one's loss stays the mean over its own queries: averaging gradients over processes,
            as DDP does, then gives the gradient of the mean of their losses.
        reduction: ``"none"`` returns the loss of each query.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: There is no query, ``temperature`` is not positive, the options contradict each other, or
            shapes do not fit.
    """
    _check(temperature)
    if not len(query):
        raise ValueError("a loss needs at least one query")
    if gather and not in_batch:
        raise ValueError("gather takes candidates from other queries, so it needs in_batch")
    if known_positive is not None and (gather or not in_batch):
        raise ValueError(
            "known_positive is about in-batch candidates of one process; give positive_id instead"
        )
    known = _Known(positive_id, negative_id, known_row, known_id)
    row = _rows(negative_row, len(query))
    width = "documents" if in_batch == "documents" else "positives"
    with torch.autocast(query.device.type, enabled=False):
        query, positive, negatives = _full(query), _full(positive), _full(negatives)
        target = (query * positive).sum(-1) / temperature
        total = target
        if in_batch:
            others, before = _gather(positive) if gather else (positive, 0)
            if width == "documents":
                others = torch.cat([others, _gather(negatives)[0] if gather else negatives])
            own = torch.arange(len(query), device=query.device)
            masked = known.columns(width, gather) if known_positive is None else known_positive.clone()
            logits = query @ others.T / temperature
            if masked is not None:
                if masked.shape != logits.shape:
                    raise ValueError(
                        f"known_positive must be {list(logits.shape)} for {width}, got {list(masked.shape)}"
                    )
                masked[own, own + before] = False
                logits = logits.masked_fill(masked, -math.inf)
            total = torch.logsumexp(logits, 1)
        if width == "positives" and len(negatives):
            logits = _similarity(query, negatives, row) / temperature
            own_known = known.own(row)
            if own_known is not None:
                logits = logits.masked_fill(own_known, -math.inf)
            total = torch.logaddexp(total, _segment_logsumexp(logits, row, len(query)))
        loss = total - target
    return loss if reduction == "none" else loss.mean()


def query_view_entropy(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    generated: Bool[Tensor, " negatives"],
    temperature: float | int = 0.1,
    *,
    scope: Literal["own", "batch"] = "own",
    gradient: Gradient = "generated",
) -> Float[Tensor, ""]:
    """Makes a query's generated negatives equally similar, and as probable as their number says.

    ``p = softmax(s / tau_e)`` over the query's N_m mined and N_g generated negatives, ``p~ = p`` renormalised
    over the generated ones: ``L = -H(p~) + (sum over generated of p - N_g / (N_m + N_g))^2``, H in nats,
    averaged over the queries that have generated negatives. Zero, with a way for gradients, if none has.

    Source: CausalNeg, query-view entropy; the authors add 1e-10 inside the logarithm, here it is exact.

    What it can and cannot do: at its optimum the generated similarities all equal ``tau_e`` times the log of
    the mean of ``exp(s / tau_e)`` of the mined ones. One generated negative has no entropy to gain. The
    balance term's gradient vanishes for generated negatives far below the mined ones.

    Args:
        query: L2-normalised embeddings of the queries.
        negatives: L2-normalised embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        generated: Whether each negative was generated.
        temperature: tau_e.
        scope: Negatives that a query's softmax runs over: its ``"own"`` (published), or all of the
            ``"batch"`` (ours; costs queries x negatives).
        gradient: Who feels it; published is ``"generated"``, queries and mined negatives are constants.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: ``temperature`` is not positive.
    """
    _check(temperature)
    queries, row = len(query), _rows(negative_row, len(query))
    written, mined = torch.nonzero(generated)[:, 0], torch.nonzero(~generated)[:, 0]
    if not len(written):
        return _zero(query, negatives)
    row_written, row_mined = row[written], row[mined]
    count = torch.bincount(row_written, minlength=queries)
    active = torch.nonzero(count)[:, 0]
    with torch.autocast(query.device.type, enabled=False):
        if scope == "batch":
            of_query = (query if gradient == "all" else query.detach()).index_select(0, active)
            of_mined = negatives.index_select(0, mined)
            of_mined = of_mined.detach() if gradient == "generated" else of_mined
            ours = _full(of_query) @ _full(negatives.index_select(0, written)).T / temperature
            theirs = _full(of_query) @ _full(of_mined).T / temperature
            of_ours, of_theirs = torch.logsumexp(ours, 1), torch.logsumexp(theirs, 1)
            log_p = ours - of_ours[:, None]
            entropy = -(log_p.exp() * log_p).sum(1)
            share = of_ours.new_tensor(len(written) / len(negatives))
        else:
            ours, theirs = _by_source(query, negatives, row, written, mined, gradient)
            of_ours = _segment_logsumexp(ours / temperature, row_written, queries)
            log_p = ours / temperature - of_ours.index_select(0, row_written)
            entropy = -_segment_sum(log_p.exp() * log_p, row_written, queries).index_select(0, active)
            of_ours = of_ours.index_select(0, active)
            of_theirs = _segment_logsumexp(theirs / temperature, row_mined, queries).index_select(0, active)
            share = (count.to(ours) / torch.bincount(row, minlength=queries)).index_select(0, active)
        balance = (torch.sigmoid(of_ours - of_theirs) - share) ** 2
        return (balance - entropy).mean()


def distribution_matching(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    negative_row: Int[Tensor, " negatives"],
    generated: Bool[Tensor, " negatives"],
    *,
    distance: Literal["wasserstein", "wasserstein2", "energy"] = "wasserstein",
    gradient: Gradient = "generated",
    bands: int = 0,
) -> Float[Tensor, ""]:
    """Distance between the similarities of the batch's generated and of its mined negatives.

    With F_g and F_m the empirical distribution functions of a negative's similarity to its own query:

    - ``"wasserstein"``: ``integral over u in (0, 1) of |F_g^-1(u) - F_m^-1(u)|``
    - ``"wasserstein2"``: ``integral over u of (F_g^-1(u) - F_m^-1(u))^2``, the square of W2
    - ``"energy"``: ``2 integral over x of (F_g(x) - F_m(x))^2 = 2 E|g - m| - E|g - g'| - E|m - m'|``

    Exact for any two sizes, by one sort. Zero, with a way for gradients, where a source is missing.

    Source: ours, experimental. Unlike the query-view entropy its optimum leaves nothing of the source in the
    score. It also forces up negatives that are easy because they are off topic: see :func:`easy_negatives`.
    Inside ``bands`` it leaves those alone.

    Args:
        query: L2-normalised embeddings of the queries.
        negatives: L2-normalised embeddings of all negatives.
        negative_row: Query of each negative, in any order.
        generated: Whether each negative was generated.
        distance: Which distance.
        gradient: Who feels it.
        bands: Hardness bands: the mined similarities cut at this many equal shares. Sources are then matched
            band by band, each band weighted by its share of the generated negatives; generated ones outside
            the range of the mined ones, and bands without one source, are left alone. 0 matches everything.

    Raises:
        DataError: A negative belongs to no query.
        ValueError: ``bands`` is negative.
    """
    if bands < 0:
        raise ValueError(f"bands must not be negative, got {bands}")
    row = _rows(negative_row, len(query))
    written, mined = torch.nonzero(generated)[:, 0], torch.nonzero(~generated)[:, 0]
    if not len(written) or not len(mined):
        return _zero(query, negatives)
    ours, theirs = _by_source(query, negatives, row, written, mined, gradient)
    if not bands:
        return _distance(ours, theirs, distance)
    edges = torch.quantile(theirs.detach(), torch.linspace(0, 1, bands + 1).to(theirs))
    inside = (ours >= edges[0]) & (ours <= edges[-1])
    of_ours = torch.bucketize(ours.detach(), edges[1:-1]).masked_fill(~inside, -1)
    of_theirs = torch.bucketize(theirs.detach(), edges[1:-1])
    terms = [ours.sum() * 0]
    for band in range(bands):
        a, b = ours[of_ours == band], theirs[of_theirs == band]
        if len(a) and len(b):
            terms.append(_distance(a, b, distance) * (len(a) / len(ours)))
    return torch.stack(terms).sum()


def hardness_gap(similarity: Float[Tensor, " negatives"], generated: Bool[Tensor, " negatives"]) -> float:
    """``(mean similarity of generated - of mined negatives) / standard deviation of the mined ones``.

    Below 0 the generated negatives are the easier ones. NaN where a source is missing or the mined ones do
    not vary.

    Args:
        similarity: Similarity of each negative to its own query.
        generated: Whether each negative was generated.
    """
    similarity = similarity.detach().double()
    ours, theirs = similarity[generated], similarity[~generated]
    if not len(ours) or not len(theirs):
        return math.nan
    deviation = float(theirs.std(unbiased=False))
    return float(ours.mean() - theirs.mean()) / deviation if deviation > 0 else math.nan


def easy_negatives(gap: float, *, threshold: float = 1.0) -> str | None:
    """A line for the user when generated negatives are much easier than mined ones, else None.

    Matching distributions then teaches the encoder that texts off the topic are near it.

    Args:
        gap: What :func:`hardness_gap` found.
        threshold: Gap from which it is said, in standard deviations of the mined similarities.
    """
    if not gap < -threshold:
        return None
    return (
        f"generated negatives are {-gap:.1f} standard deviations easier than mined ones: matching their "
        "similarities would pull texts off the topic towards the query; write harder ones, or match in bands"
    )


def _by_source(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    row: Int[Tensor, " negatives"],
    written: Int[Tensor, " written"],
    mined: Int[Tensor, " mined"],
    gradient: Gradient,
) -> tuple[Float[Tensor, " written"], Float[Tensor, " mined"]]:
    """Similarities of the generated and of the mined negatives, through which gradients reach those named."""
    if gradient == "generated":
        similarity = _similarity(query.detach(), negatives, row, written)
        return similarity[written], similarity.detach()[mined]
    similarity = _similarity(query if gradient == "all" else query.detach(), negatives, row)
    return similarity[written], similarity[mined]


def _similarity(
    query: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "negatives dim"],
    row: Int[Tensor, " negatives"],
    felt: Int[Tensor, " felt"] | None = None,
) -> Float[Tensor, " negatives"]:
    """Similarities to the own query; with ``felt`` only these negatives can have gradients to feel."""
    apply: Any = _OwnSimilarity.apply
    with torch.autocast(query.device.type, enabled=False):
        similarity: Tensor = apply(_full(query), _full(negatives), row, felt)
    return similarity


class _OwnSimilarity(torch.autograd.Function):
    """Products at the cells (query of j, j) of a sparse matrix: no array of negatives x dim comes of it.

    Memory traffic is what these losses cost. Gathering each negative's query and multiplying writes two such
    arrays; here the only one is the gradient of the negatives.
    """

    @staticmethod
    def matrix(row: Tensor, values: Tensor, queries: int) -> tuple[Tensor, Tensor | None]:
        """Values at their cells in CSR form, and the order that they had to be put in, if any."""
        order = None if bool((row[1:] >= row[:-1]).all()) else torch.argsort(row, stable=True)
        offsets = torch.zeros(queries + 1, dtype=torch.long, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=queries), 0, out=offsets[1:])
        columns = torch.arange(len(row), device=row.device) if order is None else order
        values = values if order is None else values[order]
        return torch.sparse_csr_tensor(
            offsets, columns, values, (queries, len(row)), check_invariants=False
        ), order

    @staticmethod
    def forward(ctx: Any, query: Tensor, negatives: Tensor, row: Tensor, felt: Tensor | None) -> Tensor:
        """Sampled product."""
        ctx.save_for_backward(query, negatives, row, felt)
        out = query.new_zeros(len(row))
        if not len(row):
            return out
        cells, order = _OwnSimilarity.matrix(row, out, len(query))
        found: Tensor = torch.sparse.sampled_addmm(
            cells, query.contiguous(), negatives.contiguous().T, beta=0.0
        ).values()
        return found if order is None else out.index_copy_(0, order, found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """To a query the weighted sum of its negatives, to a negative its weighted query."""
        query, negatives, row, felt = ctx.saved_tensors
        of_query = of_negatives = None
        if ctx.needs_input_grad[0]:
            of_query = torch.zeros_like(query)
            if len(row):
                of_query = _OwnSimilarity.matrix(row, gradient, len(query))[0] @ negatives.contiguous()
        if ctx.needs_input_grad[1] and felt is None:
            of_negatives = query.index_select(0, row).mul_(gradient[:, None])
        elif ctx.needs_input_grad[1]:
            of_felt = query.index_select(0, row[felt]).mul_(gradient[felt, None])
            of_negatives = torch.zeros_like(negatives).index_copy_(0, felt, of_felt)
        return of_query, of_negatives, None, None


def _distance(ours: Float[Tensor, " m"], theirs: Float[Tensor, " n"], distance: str) -> Float[Tensor, ""]:
    """A distance between two samples, each of at least one number."""
    m, n = len(ours), len(theirs)
    if distance == "energy":
        values, order = torch.cat([ours, theirs]).sort()
        step = torch.cat([ours.new_full((m,), 1 / m), theirs.new_full((n,), -1 / n)])[order]
        return 2 * (step.cumsum(0)[:-1] ** 2 * (values[1:] - values[:-1])).sum()
    # Both quantile functions are constant between the levels i / m and j / n; in whole numbers of 1 / (m n).
    a, b = torch.arange(1, m + 1, device=ours.device), torch.arange(1, n + 1, device=ours.device)
    levels = torch.cat([a * n, b * m]).sort().values
    width = torch.diff(levels, prepend=levels.new_zeros(1)).to(ours.dtype) / (m * n)
    apart = ours.sort().values[(levels - 1) // n] - theirs.sort().values[(levels - 1) // m]
    return (width * (apart.abs() if distance == "wasserstein" else apart**2)).sum()


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _rows(row: Int[Tensor, " n"], queries: int) -> Int[Tensor, " n"]:
    """Row numbers as torch indexes with them; checked where that costs no wait for a device."""
    if row.device.type == "cpu" and len(row):
        low, high = (int(end) for end in row.aminmax())
        if low < 0 or high >= queries:
            wrong = low if low < 0 else high
            raise DataError(f"negative_row names query {wrong}, but there are {queries} queries")
    return row.long()


def _full(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return x if x.dtype == torch.float64 else x.float()


def _zero(
    query: Float[Tensor, "queries dim"], negatives: Float[Tensor, "negatives dim"]
) -> Float[Tensor, ""]:
    """Zero, through which gradients (of zero) reach all embeddings."""
    return _full(query).sum() * 0 + _full(negatives).sum() * 0


def _segment_sum(values: Float[Tensor, " n"], row: Int[Tensor, " n"], rows: int) -> Float[Tensor, " rows"]:
    return values.new_zeros(rows).index_add(0, row, values)


def _segment_logsumexp(
    logits: Float[Tensor, " n"], row: Int[Tensor, " n"], rows: int
) -> Float[Tensor, " rows"]:
    """``log sum exp`` of every row's logits, stable; -inf, without a gradient, for rows that have none."""
    with torch.no_grad():
        peak = logits.new_full((rows,), -math.inf).scatter_reduce(0, row, logits, "amax")
        empty = torch.isneginf(peak)
        peak = peak.masked_fill(empty, 0)
    total = _segment_sum(torch.exp(logits - peak.index_select(0, row)), row, rows)
    return (total.masked_fill(empty, 1).log() + peak).masked_fill(empty, -math.inf)


class _Known:
    """Which candidates are documents that answer a query, by the documents' numbers.

    Args:
        positive: Number of each query's positive; None knows nothing.
        negative: Number of each negative.
        row: Query of each known pair.
        known: Document of each known pair.

    Raises:
        ValueError: Some of the numbers are missing.
    """

    def __init__(
        self,
        positive: Int[Tensor, " queries"] | None,
        negative: Int[Tensor, " negatives"] | None,
        row: Int[Tensor, " known"] | None,
        known: Int[Tensor, " known"] | None,
    ) -> None:
        if (row is None) != (known is None):
            raise ValueError("known_row and known_id go together")
        if positive is None and (negative is not None or known is not None):
            raise ValueError("negative_id and known_id need positive_id")
        self.positive, self.negative = positive, negative
        if positive is not None:
            own = torch.arange(len(positive), device=positive.device)
            self.row = own if row is None else torch.cat([own, row.long()])
            self.document = positive.long() if known is None else torch.cat([positive.long(), known.long()])

    def columns(self, width: str, gather: bool) -> Bool[Tensor, "queries candidates"] | None:
        """Whether each in-batch candidate answers each query."""
        if self.positive is None:
            return None
        ids = _gather(self.positive.long())[0] if gather else self.positive.long()
        if width == "documents":
            if self.negative is None:
                raise ValueError('in_batch="documents" with positive_id needs negative_id too')
            ids = torch.cat([ids, _gather(self.negative.long())[0] if gather else self.negative.long()])
        distinct, place = torch.unique(torch.cat([ids, self.document]), return_inverse=True)
        answers = torch.zeros(len(self.positive), len(distinct), dtype=torch.bool, device=ids.device)
        answers[self.row, place[len(ids) :]] = True
        return answers[:, place[: len(ids)]]

    def own(self, row: Int[Tensor, " negatives"]) -> Bool[Tensor, " negatives"] | None:
        """Whether each negative answers its own query."""
        if self.positive is None or self.negative is None:
            return None
        ids = torch.cat([self.negative.long(), self.document])
        distinct, place = torch.unique(ids, return_inverse=True)
        pairs = torch.cat([row, self.row]) * len(distinct) + place
        return torch.isin(pairs[: len(row)], pairs[len(row) :])


class _AllGather(torch.autograd.Function):
    """Rows of all processes; backward sums what all processes' losses have to say about one's own rows."""

    @staticmethod
    def forward(ctx: Any, x: Shaped[Tensor, "rows *rest"], sizes: list[int]) -> Shaped[Tensor, "all *rest"]:
        """Pad to the longest, exchange, cut."""
        rank = dist.get_rank()
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "all *rest"]) -> tuple[Float[Tensor, "rows *rest"], None]:
        """The sum over the processes, of one's own rows."""
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own], None


def _gather(x: Shaped[Tensor, "rows *rest"]) -> tuple[Shaped[Tensor, "all *rest"], int]:
    """The rows of all processes in the order of their numbers, and how many stand before one's own."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x, 0
    counts = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = [int(count) for count in counts]
    gather: Any = _AllGather.apply
    return gather(x, sizes), sum(sizes[: dist.get_rank()])
