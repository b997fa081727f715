"""One side of the speed comparison, in a process of its own, so that its peak memory is its own.

``bench_retrieval.py`` starts it. A request is one JSON line on standard input, and every request is
answered by one JSON line:

``{"do": "open", "side": name, ...}``    read texts and weights, take a small step to warm up
``{"do": "measure", "seconds": s, "arm": name}``    steps until the time is up; what they took
``{"do": "rate", "size": n}``    operations per second of a float32 matrix product
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from answers import answer_requests, matrix_rate

TESTS = Path(__file__).resolve().parents[2] / "tests"


class Side(ABC):
    """Something that does one kind of work, step by step."""

    @abstractmethod
    def step(self, arm: str) -> dict[str, float]:
        """One step: ``units`` of work done, ``flops`` that it needed, ``extra`` seconds to add, if any."""

    def warm(self) -> None:
        """Something small, for what happens only the first time."""
        return

    def sample(self) -> list[float]:
        """Some numbers that both sides must agree on: the same texts, the same weights."""
        return []

    def measure(self, seconds: float, arm: str = "") -> list[dict[str, float]]:
        """Steps until ``seconds`` are over, at least one."""
        done: list[dict[str, float]] = []
        begin = time.perf_counter()
        while not done or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            found = self.step(arm)
            took = time.perf_counter() - start + found.pop("extra", 0.0)
            done.append(found | {"seconds": took})
        return done


def read(path: str | Path) -> Any:
    """What a JSON file holds."""
    return json.loads(Path(path).read_text())


def layer_flops(lengths: Sequence[int], *, width: int, inner: int, layers: int) -> float:
    """Operations of the matrix products of a transformer that reads texts of these lengths once.

    ``layers * sum over texts of (2 n (4 w^2 + 2 w m) + 4 n^2 w)`` for n tokens, width w, inner width m: the
    four projections, the two products of the inner layer, scores and weighted values.
    """
    n = np.asarray(lengths, dtype=np.float64)
    return float(layers * (2 * n * (4 * width**2 + 2 * width * inner) + 4 * n**2 * width).sum())


def model_flops(config: Any, lengths: Sequence[int]) -> float:
    """The same of a model's configuration."""
    return layer_flops(
        lengths,
        width=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
    )


class Blocks:
    """Consecutive blocks of rows, over and over; the last, where it would be short, is left out."""

    def __init__(self, rows: int, size: int) -> None:
        self._starts, self._size, self._next = list(range(0, rows - size + 1, size)), size, 0

    def __call__(self) -> np.ndarray:
        """The next block."""
        start = self._starts[self._next % len(self._starts)]
        self._next += 1
        return np.arange(start, start + self._size)


class TrainOwn(Side):
    """Training steps of this repository, as Lightning would run them, without Lightning around them.

    Tokenising the whole set once is charged to the steps in equal shares.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        from causalneg.data.schema import Example, Negative, Passage, Query
        from causalneg.encoders import load_encoder
        from causalneg.training.data import TrainingSet
        from causalneg.training.module import RetrievalModule

        data = read(request["data"])
        examples = [
            Example(
                query=Query(id=str(number), text=one["query"]),
                positives=[Passage(text=one["positive"])],
                negatives=[
                    Negative(text=text, source="mined", backend="generated text") for text in one["negatives"]
                ],
            )
            for number, one in enumerate(data)
        ]
        encoder: Any = load_encoder(request["encoder"])
        self._config = encoder.core.config
        start = time.perf_counter()
        self._set = TrainingSet(examples, encoder, None)
        self._tokenising = (time.perf_counter() - start) / len(examples)
        self._blocks = Blocks(len(examples), request["batch_size"])
        self._module = RetrievalModule(
            encoder, temperature=0.05, in_batch="documents", cached=request["cached"]
        )
        self._optimizer = encoder.optimizer(lr=5e-5)
        self._passes = 4 if request["cached"] else 3
        encoder.train()

    def _train(self, rows: np.ndarray) -> float:
        batch = self._set[rows]
        self._optimizer.zero_grad()
        terms, _, _ = self._module.losses(batch)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step()
        loss.item()
        lengths = torch.cat([batch.query_offsets.diff(), batch.document_offsets.diff()])
        return self._passes * model_flops(self._config, lengths.tolist())

    def warm(self) -> None:
        """A step on two queries."""
        self._train(np.arange(2))

    def sample(self) -> list[float]:
        """Ends of the vectors of the first texts."""
        from causalneg.encoders import encode

        vectors = encode(self._module.encoder, self._set.queries.gather(np.arange(2)), query=True)
        return [float(x) for x in vectors[:, :4].ravel()]

    def step(self, arm: str) -> dict[str, float]:
        """One step."""
        rows = self._blocks()
        flops = self._train(rows)
        return {"units": len(rows), "flops": flops, "extra": self._tokenising * len(rows)}


def columns(examples: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Queries, positives, and all negatives dealt out in columns of one for each query."""
    negatives = [text for one in examples for text in one["negatives"]]
    each = len(negatives) // len(examples)
    dealt = [negatives[place::each][: len(examples)] for place in range(each)]
    return [[one["query"] for one in examples], [one["positive"] for one in examples], *dealt]


class TrainPeer(Side):
    """Training steps of sentence-transformers: its preprocessing, its loss, its trainer's optimiser.

    It wants as many negatives for every query, so the negatives of a block are dealt out again.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses

        self._data = read(request["data"])
        self._model = SentenceTransformer(request["encoder"], device="cpu")
        self._blocks = Blocks(len(self._data), request["batch_size"])
        name = "CachedMultipleNegativesRankingLoss" if request["cached"] else "MultipleNegativesRankingLoss"
        self._loss = getattr(losses, name)(self._model, scale=20.0)
        self._optimizer = torch.optim.AdamW(
            [p for p in self._model.parameters() if p.requires_grad], lr=5e-5, weight_decay=0.0, fused=True
        )

    def _train(self, rows: np.ndarray) -> None:
        self._model.train()  # ``encode`` leaves it in evaluation mode
        dealt = columns([self._data[row] for row in rows])
        features = [self._model.preprocess(column) for column in dealt]
        self._optimizer.zero_grad()
        loss = self._loss(features, None)
        loss.backward()
        self._optimizer.step()
        loss.item()

    def warm(self) -> None:
        """A step on two queries."""
        self._train(np.arange(2))

    def sample(self) -> list[float]:
        """Ends of the vectors of the first texts."""
        vectors = self._model.encode([one["query"] for one in self._data[:2]], show_progress_bar=False)
        return [float(x) for x in vectors[:, :4].ravel()]

    def step(self, arm: str) -> dict[str, float]:
        """One step."""
        rows = self._blocks()
        self._train(rows)
        return {"units": len(rows)}


class EncodeOwn(Side):
    """Texts to vectors, tokenised anew in every step."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        from causalneg.encoders import load_encoder

        encoder: Any = load_encoder(request["encoder"])
        self._encoder = encoder
        self._texts = read(request["data"])
        lengths = encoder.tokenize(self._texts, query=False).lengths
        self._flops = model_flops(encoder.core.config, lengths.tolist())

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        from causalneg.encoders import encode

        return np.asarray(encode(self._encoder, self._encoder.tokenize(texts, query=False), query=False))

    def warm(self) -> None:
        """A few texts."""
        self._encode(self._texts[:4])

    def sample(self) -> list[float]:
        """Ends of the vectors of the first texts."""
        return [float(x) for x in self._encode(self._texts[:2])[:, :4].ravel()]

    def step(self, arm: str) -> dict[str, float]:
        """All texts."""
        self._encode(self._texts)
        return {"units": len(self._texts), "flops": self._flops}


class EncodePeer(Side):
    """The same by ``SentenceTransformer.encode`` with its defaults."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        from sentence_transformers import SentenceTransformer

        self._texts = read(request["data"])
        self._model = SentenceTransformer(request["encoder"], device="cpu")

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False))

    def warm(self) -> None:
        """A few texts."""
        self._encode(self._texts[:4])

    def sample(self) -> list[float]:
        """Ends of the vectors of the first texts."""
        return [float(x) for x in self._encode(self._texts[:2])[:, :4].ravel()]

    def step(self, arm: str) -> dict[str, float]:
        """All texts."""
        self._encode(self._texts)
        return {"units": len(self._texts)}


class MineOwn(Side):
    """Mining from texts to examples: by BM25, or by an encoder and an exact search."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        from causalneg.data import read_dataset
        from causalneg.encoders import load_encoder

        self._dataset = read_dataset(Path(request["data"]), splits=["train"])
        self._encoder = load_encoder(request["encoder"]) if request["encoder"] else None
        self._depth, self._count = request["depth"], request["count"]

    def step(self, arm: str) -> dict[str, float]:
        """All queries."""
        from causalneg.mining import MiningRules, find_candidates, mine
        from causalneg.search import SEARCHERS, Collection

        dataset, encoder, depth = self._dataset, self._encoder, self._depth
        queries = dataset.split_queries("train")
        rules = MiningRules(
            count=self._count,
            depth=depth,
            first_rank=min(11, depth),
            relative_margin=0.95,
            near_duplicate=0.6,
        )
        flops = 0.0
        collection = Collection.encoded([d.content for d in dataset.documents], encoder)
        searcher = SEARCHERS["bm25" if encoder is None else "exact"](collection)
        found = find_candidates(searcher, dataset, "train", depth)
        if encoder is not None:
            flops = 2.0 * len(queries) * collection.embeddings.size
        examples, _ = mine(dataset, "train", found, rules)
        return {
            "units": len(queries),
            "flops": flops,
            "negatives": sum(len(example.negatives) for example in examples),
        }

    def sample(self) -> list[float]:
        """Ends of the vectors of the first queries."""
        from causalneg.encoders import encode

        if self._encoder is None:
            return []
        texts = [query.text for query in self._dataset.split_queries("train")[:2]]
        tokens = self._encoder.tokenize(texts, query=True)
        return [float(x) for x in encode(self._encoder, tokens, query=True)[:, :4].ravel()]


class Table:
    """What ``mine_hard_negatives`` asks of ``datasets.Dataset``, where that library is not installed."""

    def __init__(self, columns: Mapping[str, list[Any]]) -> None:
        self._columns = dict(columns)

    @classmethod
    def from_dict(cls, columns: Mapping[str, list[Any]]) -> Table:
        """A table of columns."""
        return cls(columns)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._columns)

    def __getitem__(self, name: str) -> list[Any]:
        """A column."""
        return self._columns[name]

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self._columns.values())))

    def to_pandas(self) -> Any:
        """The same as a data frame."""
        import pandas

        return pandas.DataFrame(self._columns)


class MinePeer(Side):
    """The same by ``mine_hard_negatives``, with the same window, margin and number of negatives."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        from sentence_transformers import SentenceTransformer

        miner: Any = importlib.import_module("sentence_transformers.util.hard_negatives")
        try:
            make = importlib.import_module("datasets").Dataset
        except ImportError:
            make = Table
            stand_in = types.ModuleType("datasets")
            stand_in.Dataset = Table  # type: ignore[attr-defined]  # it is the point that it is not there
            sys.modules["datasets"] = stand_in
            miner.is_datasets_available = lambda: True
        folder = Path(request["data"])
        documents, queries = (
            {one["_id"]: one["text"] for one in map(json.loads, (folder / name).read_text().splitlines())}
            for name in ("corpus.jsonl", "queries.jsonl")
        )
        pairs = [line.split("\t") for line in (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]]
        self._corpus = list(documents.values())
        self._pairs: Any = make.from_dict(
            {"query": [queries[p[0]] for p in pairs], "positive": [documents[p[1]] for p in pairs]}
        )
        self._model = SentenceTransformer(request["encoder"], device="cpu")
        self._mine: Callable[..., Any] = miner.mine_hard_negatives
        self._options = {
            "range_min": min(10, request["depth"] - request["count"] - 1),
            "range_max": request["depth"],
            "num_negatives": request["count"],
            "use_faiss": request["faiss"],
        }

    def step(self, arm: str) -> dict[str, float]:
        """All queries."""
        found = self._mine(
            self._pairs,
            self._model,
            corpus=self._corpus,
            relative_margin=0.05,
            output_format="n-tuple",
            verbose=False,
            **self._options,
        )
        return {"units": len(self._pairs), "negatives": len(found) * (len(found.column_names) - 2)}

    def sample(self) -> list[float]:
        """Ends of the vectors of the first queries."""
        vectors = self._model.encode_query(self._pairs["query"][:2], show_progress_bar=False)
        return [float(x) for x in vectors[:, :4].ravel()]


class Regularisers(Side):
    """Forward and backward pass of a regulariser: ``NAME/batched`` as trained, ``NAME/loop`` query by query.

    The loops are those that the tests hold the losses to. For the matching, whose two sources are equally
    large here, only its loop over the queries is taken: the reference then copies every similarity as often
    as there are others, which one sort replaces in both.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        from causalneg import losses

        sys.path.insert(0, str(TESTS))
        import reference_retrieval as reference

        queries, each, width = request["queries"], request["negatives"], request["width"]
        draw = torch.Generator().manual_seed(0)
        half = torch.randint(-each // 3, each // 3 + 1, (queries // 2,), generator=draw)
        counts = torch.stack([each + half, each - half], 1).reshape(-1)
        total = int(counts.sum())
        row = torch.repeat_interleave(torch.arange(queries), counts)
        generated = torch.zeros(total, dtype=torch.bool)
        generated[torch.randperm(total, generator=draw)[: total // 2]] = True
        query, negatives = (
            torch.nn.functional.normalize(torch.randn(n, width, generator=draw), dim=-1).requires_grad_()
            for n in (queries, total)
        )
        self._leaves = (query, negatives)

        def matching_loop() -> Tensor:
            of_generated, of_mined = [], []
            for b in range(queries):
                own = row == b
                of_generated.append(negatives[own & generated] @ query[b])
                of_mined.append(negatives[own & ~generated] @ query[b])
            return (torch.cat(of_generated).sort().values - torch.cat(of_mined).sort().values).abs().mean()

        given = (query, negatives, row, generated)
        self._arms: dict[str, Callable[[], Tensor]] = {
            "query_view_entropy/batched": lambda: losses.query_view_entropy(*given),
            "query_view_entropy/loop": lambda: reference.query_view_entropy(*given),
            "distribution_matching/batched": lambda: losses.distribution_matching(*given, gradient="all"),
            "distribution_matching/loop": matching_loop,
        }

    def warm(self) -> None:
        """Every arm once; both of a pair must agree.

        Raises:
            RuntimeError: They do not.
        """
        for name in ("query_view_entropy", "distribution_matching"):
            found = []
            for arm in ("batched", "loop"):
                self.step(f"{name}/{arm}")
                found.append([self._arms[f"{name}/{arm}"]().detach(), *(x.grad for x in self._leaves)])
            for batched, looped in zip(*found, strict=True):
                zero = torch.zeros(())
                torch.testing.assert_close(
                    zero if batched is None else batched,
                    zero if looped is None else looped,
                    rtol=1e-3,
                    atol=1e-6,
                    check_stride=False,
                )

    def step(self, arm: str) -> dict[str, float]:
        """One call."""
        for leaf in self._leaves:
            leaf.grad = None
        self._arms[arm]().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return {"units": 1}


SIDES: dict[str, Callable[[Mapping[str, Any]], Side]] = {
    "train own": TrainOwn,
    "train peer": TrainPeer,
    "encode own": EncodeOwn,
    "encode peer": EncodePeer,
    "mine own": MineOwn,
    "mine peer": MinePeer,
    "regularisers": Regularisers,
}


class Answers:
    """Answers requests, one after the other."""

    def __init__(self) -> None:
        self._side: Side | None = None

    def __call__(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        if request["do"] == "rate":
            return {"rate": matrix_rate(request["size"])}
        if request["do"] == "open":
            torch.set_num_threads(request["threads"])
            torch.manual_seed(0)
            self._side = SIDES[request["side"]](request)
            found = self._side.sample()
            self._side.warm()
            return {"sample": found}
        assert self._side is not None
        steps = self._side.measure(request["seconds"], request["arm"])
        return {"steps": steps}


if __name__ == "__main__":
    answer_requests(Answers())
