"""Training data: which negatives each query is trained with, and batches that hold every text once."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from causalneg.data import Dataset as Retrieval
from causalneg.data import passage_key, resolve_passage
from causalneg.data.dataset import PassageKey as Key
from causalneg.data.dataset import text_key
from causalneg.data.schema import Example, Negative, Passage, Query
from causalneg.encoders import Encoder
from common.errors import DataError
from common.ragged import Ragged
from common.training.fit import position


def combine(
    sets: Sequence[tuple[Sequence[Example], int]], *, candidates: int = 0, exact: bool = True
) -> list[Example]:
    """Put the negatives of several sets together, query by query, the same number for every query.

    Every set gives its first ``count`` negatives. Where that makes fewer than ``candidates``, the sets are
    gone through again in the same order and fill up with what they have left. So all arms that ask for the
    same ``candidates`` compare the positive with as many negatives.

    Args:
        sets: Examples and how many negatives to take of each. The queries are those of the first set.
        candidates: Negatives per query; 0 takes what the counts give, however many.
        exact: Whether a query with fewer than ``candidates`` is an error.

    Returns:
        Examples in the order of the first set.

    Raises:
        DataError: A query falls short of ``candidates`` or stands in a set twice, or the first set is empty.
    """
    if not sets or not sets[0][0]:
        raise DataError("there are no training examples: the first set is empty")
    for number, (examples, _) in enumerate(sets, start=1):
        often = [id for id, count in Counter(e.query.id for e in examples).items() if count > 1]
        if often:
            raise DataError(
                f"set {number} has {len(often)} queries more than once ({often[0]} is the first); "
                "put the negatives of a query into one line"
            )
    by_query = [{e.query.id: e for e in examples} for examples, _ in sets]
    out, short = [], []
    for query_id, first in by_query[0].items():
        found = [own[query_id] for own in by_query if query_id in own]
        chosen: dict[Key, Negative] = {}
        rest: list[Negative] = []
        for own, (_, count) in zip(by_query, sets, strict=True):
            negatives = own[query_id].negatives if query_id in own else []
            fresh = list({k: n for n in negatives if (k := passage_key(n)) not in chosen}.items())
            chosen.update(fresh[:count])
            rest += [n for _, n in fresh[count:]]
        for negative in rest if candidates else []:
            if len(chosen) >= candidates:
                break
            chosen.setdefault(passage_key(negative), negative)
        if candidates and len(chosen) != candidates:
            short.append(query_id)
        positives = {passage_key(p): p for e in found for p in e.positives if p.voice is None}
        out.append(
            Example(query=first.query, positives=list(positives.values()), negatives=list(chosen.values()))
        )
    if short and exact:
        raise DataError(
            f"{len(short)} of {len(out)} queries do not have exactly {candidates} negatives ({short[0]} is "
            "the first), so arms could not be compared; mine deeper, lower candidates, or set exact=false"
        )
    return out


def held_out(query_id: str, share: float) -> bool:
    """Whether a query is kept from training for diagnosis; the same on every machine and in every arm."""
    return zlib.crc32(query_id.encode()) % 10_000 < share * 10_000


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries with their positives and ragged negatives; every text once.

    Args:
        query_ids: Token ids of the queries, one after the other.
        query_offsets: Where each query begins, and the end of the last.
        document_ids: Token ids of the batch's distinct documents.
        document_offsets: Where each document begins, and the end of the last.
        positive: Document of each query's positive.
        negative: Document of each negative.
        negative_row: Query of each negative, ascending.
        generated: Whether each negative was generated.
        positive_id: Number of each positive's text in the training set, the same in all processes.
        negative_id: Number of each negative's text.
        known_row: Query of each pair (query, text that is known to answer it).
        known_id: Number of the text of each such pair.
        positive_teacher: Teacher's score of each query's positive; NaN for none.
        negative_teacher: Teacher's score of each negative; NaN for none.
    """

    query_ids: Int[Tensor, " query_tokens"]
    query_offsets: Int[Tensor, " queries_plus_one"]
    document_ids: Int[Tensor, " document_tokens"]
    document_offsets: Int[Tensor, " documents_plus_one"]
    positive: Int[Tensor, " queries"]
    negative: Int[Tensor, " negatives"]
    negative_row: Int[Tensor, " negatives"]
    generated: Bool[Tensor, " negatives"]
    positive_id: Int[Tensor, " queries"]
    negative_id: Int[Tensor, " negatives"]
    known_row: Int[Tensor, " known"]
    known_id: Int[Tensor, " known"]
    positive_teacher: Float[Tensor, " queries"]
    negative_teacher: Float[Tensor, " negatives"]

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.positive)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on a device."""
        moved = {k: v.to(device, non_blocking=non_blocking) for k, v in vars(self).items()}
        return Batch(**moved)


class TrainingSet(Dataset[Batch]):
    """Examples with their texts as token ids, each text once; item = the batch of the given rows.

    One positive is drawn per query and epoch. A passage that has a rewritten version (both voices) is
    replaced by it with probability ``voice_share``, drawn anew each epoch. A query whose metadata has a
    ``prompt`` (sets of FlagEmbedding and ms-swift) is read behind it.

    Args:
        examples: The training examples.
        encoder: Whose tokenizer.
        dataset: The corpus that passages without a text of their own are read from.
        known: All known positives per query id, as document ids, for masking them among in-batch candidates.
        voices: Rewritten passages by the key of the passage that they were made of.
        voice_share: Probability that a rewritten version stands in for its passage.
        corpus: Token ids of all documents of ``dataset``, where they are known already.
        seed: Decides the draws.

    Raises:
        DataError: A passage refers to a document that is not in the corpus.
        ValueError: ``voice_share`` is not in [0, 1].
    """

    def __init__(
        self,
        examples: Sequence[Example],
        encoder: Encoder,
        dataset: Retrieval | None,
        *,
        known: Mapping[str, Sequence[str]] | None = None,
        voices: Mapping[Key, Passage] | None = None,
        voice_share: float = 0.5,
        corpus: Ragged | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= voice_share <= 1:
            raise ValueError(f"voice_share must lie in [0, 1], got {voice_share}")
        self.examples, self.seed, self.voice_share = list(examples), seed, voice_share
        pool: dict[Key, int] = {}
        passages: list[Passage] = []

        def row(passage: Passage) -> int:
            key = passage_key(passage)
            if key not in pool:
                pool[key] = len(passages)
                passages.append(passage)
            return pool[key]

        positives = [[row(p) for p in e.positives] for e in self.examples]
        negatives = [[row(n) for n in e.negatives] for e in self.examples]
        generated = [n.source == "generated" for e in self.examples for n in e.negatives]
        sources = list(range(len(passages)))
        rewritten = {
            i: row(v) for i in sources if (v := (voices or {}).get(passage_key(passages[i]))) is not None
        }
        self.positives = Ragged.from_lists(positives)
        self.negatives = Ragged.from_lists(negatives)
        self.generated = np.array(generated, dtype=bool)
        self.positive_teacher = _scores(p for e in self.examples for p in e.positives)
        self.negative_teacher = _scores(n for e in self.examples for n in e.negatives)
        self.voice = np.full(len(passages), -1, dtype=np.int64)
        self.voice[list(rewritten)] = list(rewritten.values())
        self.texts = [resolve_passage(p, dataset) for p in passages]
        # The same text is the same answer, under whatever document id it stands.
        number: dict[str, int] = {}
        self.number = np.array([number.setdefault(text_key(t), len(number)) for t in self.texts], np.int64)
        self.known = Ragged.from_lists(
            _known_numbers(self.examples, positives, self.number, number, rewritten, known or {}, dataset)
        )
        self.documents = _tokens(passages, self.texts, encoder, dataset, corpus)
        self.queries = encoder.tokenize([_asked(e.query) for e in self.examples], query=True)
        self.epoch = 0

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.examples)

    def __getitem__(self, rows: Int[np.ndarray, " chosen"]) -> Batch:
        """The batch of the chosen rows, in their order."""
        rng = np.random.default_rng((self.seed, self.epoch, int(rows[0]), len(rows)))
        choices = self.positives.lengths[rows]
        picked = np.minimum((rng.random(len(rows)) * choices).astype(np.int64), choices - 1)
        drawn = self.positives.offsets[:-1][rows] + picked
        positive = self.positives.values[drawn]
        negatives = self.negatives.gather(rows)
        known = self.known.gather(rows)
        places = Ragged(np.arange(len(self.generated)), self.negatives.offsets).gather(rows).values
        used = np.concatenate([positive, negatives.values])
        swapped = (self.voice[used] >= 0) & (rng.random(len(used)) < self.voice_share)
        used = np.where(swapped, self.voice[used], used)
        distinct, where = np.unique(used, return_inverse=True)
        queries, documents = self.queries.gather(rows), self.documents.gather(distinct)
        return Batch(
            query_ids=_tensor(queries.values),
            query_offsets=_tensor(queries.offsets),
            document_ids=_tensor(documents.values),
            document_offsets=_tensor(documents.offsets),
            positive=_tensor(where[: len(rows)]),
            negative=_tensor(where[len(rows) :]),
            negative_row=_tensor(np.repeat(np.arange(len(rows)), negatives.lengths)),
            generated=torch.from_numpy(self.generated[places]),
            positive_id=_tensor(self.number[used[: len(rows)]]),
            negative_id=_tensor(self.number[used[len(rows) :]]),
            known_row=_tensor(np.repeat(np.arange(len(rows)), known.lengths)),
            known_id=_tensor(known.values),
            positive_teacher=torch.from_numpy(self.positive_teacher[drawn]),
            negative_teacher=torch.from_numpy(self.negative_teacher[places]),
        )


def no_negatives(dataset: Retrieval, split: str) -> dict[str, list[str]]:
    """Documents by query that are never among its candidates: those that answer, and the query itself.

    Args:
        dataset: The data set.
        split: Its judgements; queries without a positive are left out.
    """
    queries = dataset.split_queries(split)
    themselves = zip(queries, dataset.identical(split, queries), strict=True)
    known = dataset.positives(split)
    return {q.id: [*known[q.id], *(dataset.documents[row].id for row in rows)] for q, rows in themselves}


def _asked(query: Query) -> str:
    """A query as its set has it: behind the set's own prompt, where FlagEmbedding or ms-swift left one."""
    prompt = query.metadata.get("prompt")
    return f"{prompt}{query.text}" if isinstance(prompt, str) else query.text


def _scores(passages: Iterable[Passage]) -> Float[np.ndarray, " passages"]:
    """Teacher's scores; a rewritten version has that of its passage."""
    return np.array([np.nan if p.teacher is None else p.teacher for p in passages], dtype=np.float32)


def _known_numbers(
    examples: Sequence[Example],
    positives: Sequence[Sequence[int]],
    number_of: Int[np.ndarray, " passages"],
    number: Mapping[str, int],
    rewritten: Mapping[int, int],
    known: Mapping[str, Sequence[str]],
    dataset: Retrieval | None,
) -> list[list[int]]:
    """Numbers of the texts that answer each query: positives, judged documents, their rewritten versions."""
    versions: dict[int, set[int]] = {}
    for passage, version in rewritten.items():
        versions.setdefault(int(number_of[passage]), set()).add(int(number_of[version]))
    judged = {id for e in examples for id in known.get(e.query.id, ())}
    there = [] if dataset is None else [dataset.document(id) for id in judged if id in dataset.index]
    of_document = {d.id: number[key] for d in there if (key := text_key(d.content)) in number}
    out = []
    for example, own in zip(examples, positives, strict=True):
        found = {int(number_of[passage]) for passage in own}
        found |= {of_document[id] for id in known.get(example.query.id, ()) if id in of_document}
        out.append(sorted(found.union(*(versions[n] for n in found if n in versions))))
    return out


def _tokens(
    passages: Sequence[Passage],
    texts: Sequence[str],
    encoder: Encoder,
    dataset: Retrieval | None,
    corpus: Ragged | None,
) -> Ragged:
    """Token ids of passages; those of whole documents are taken from the corpus's where these are known."""
    if dataset is None or corpus is None:
        return encoder.tokenize(texts, query=False)
    own = np.array([passage.text is not None for passage in passages], dtype=bool)
    rows = [dataset.index[str(passage.document_id)] for passage in passages if passage.text is None]
    made = encoder.tokenize([texts[at] for at in np.flatnonzero(own).tolist()], query=False)
    both = Ragged.concatenate([made, corpus.gather(np.array(rows, dtype=np.int64))])
    place = np.empty(len(passages), dtype=np.int64)
    place[np.concatenate([np.flatnonzero(own), np.flatnonzero(~own)])] = np.arange(len(passages))
    return both.gather(place)


def _tensor(values: Int[np.ndarray, " n"]) -> Int[Tensor, " n"]:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


class Shuffled(Sampler[Int[np.ndarray, " chosen"]]):
    """Batches of rows in a new random order every epoch; all of the same size.

    The rows left over at the end of an epoch, fewer than a batch, sit it out: in-batch candidates would be
    fewer for them.

    Args:
        rows: Number of rows.
        batch_size: Rows per batch and process.
        seed: With the epoch, decides the order.
        rank: Number of this process.
        processes: Number of processes; batches are dealt to them in turn.
        on_epoch: Called with the epoch before its first batch.

    Raises:
        DataError: There are fewer rows than one batch of every process.
    """

    def __init__(
        self,
        rows: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        on_epoch: Callable[[int], None] = lambda epoch: None,
    ) -> None:
        if rows < batch_size * processes:
            raise DataError(
                f"{rows} training queries do not fill a batch of {batch_size * processes}; "
                "lower train.batch_size"
            )
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.processes, self.on_epoch = rank, processes, on_epoch
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (Lightning calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of one epoch, of this process."""
        return self.rows // (self.batch_size * self.processes)

    def __iter__(self) -> Iterator[Int[np.ndarray, " chosen"]]:
        """The batches of the current epoch; the first ``skip`` of them are left out, once."""
        skip, self.skip = self.skip, 0
        self.on_epoch(self.epoch)
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.rows)
        for number in range(skip, len(self)):
            at = (number * self.processes + self.rank) * self.batch_size
            yield order[at : at + self.batch_size]


class RetrievalData(L.LightningDataModule):
    """Batches of a training set, and the place reached in an epoch.

    Args:
        training: The training set.
        batch_size: Queries per step and process.
        seed: Decides the order of the queries.
    """

    def __init__(self, training: TrainingSet, *, batch_size: int, seed: int = 0) -> None:
        super().__init__()
        self.training, self.batch_size, self.seed = training, batch_size, seed
        self._resume = (0, 0)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; after a resume the first epoch goes on where it stopped."""

        def begin(epoch: int) -> None:
            self.training.epoch = epoch

        trainer = self.trainer
        sampler = Shuffled(
            len(self.training),
            batch_size=self.batch_size,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            processes=trainer.world_size if trainer else 1,
            on_epoch=begin,
        )
        sampler.epoch, sampler.skip = self._resume
        self._resume = (0, 0)
        return DataLoader(self.training, sampler=sampler, batch_size=None)

    def transfer_batch_to_device(
        self, batch: Batch | Tensor, device: Any, dataloader_idx: int
    ) -> Batch | Tensor:
        """Move a batch, asynchronously where its memory is pinned."""
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches are done."""
        assert self.trainer is not None
        epoch, batches = position(self.trainer)
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batches that are done."""
        self._resume = (state["epoch"], state["batches"])


class _Nothing(Dataset[Tensor]):
    """One empty tensor."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> Tensor:
        return torch.zeros(0)


class ValidatedData(RetrievalData):
    """The same with a validation after every epoch, which evaluates a whole corpus and needs no batches."""

    def val_dataloader(self) -> DataLoader[Tensor]:
        """One empty batch, so that Lightning calls the module."""
        return DataLoader(_Nothing(), batch_size=None)
