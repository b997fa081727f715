"""A trained run as a function: histories into memories, memories and candidates into click probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from common.errors import DataError
from lain.backbones import Memory
from lain.model import CTRModel
from lain.ops.products import FEWEST_ROWS
from lain.ops.spans import Spans
from lain.serving.catalog import Catalog, Ids, open_catalog
from lain.training.config import TrainConfig
from lain.training.run import load_model, model_features


@dataclass(frozen=True, eq=False)
class UserMemory:
    """What a run keeps of one user: all that can be known before a candidate is.

    Args:
        memory: Of the history.
        length: True length of the history, in behaviours.
        features: Encoded features of the user, one row.
    """

    memory: Memory
    length: int
    features: Mapping[str, Num[np.ndarray, "one ..."]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        spans = self.memory.spans
        return sum(t.nbytes for t in (*self.memory.rows.values(), spans.index, spans.offsets))


class Scorer:
    """Scores candidates with a trained run, whose data are not needed.

    p = sigmoid(logit(history, candidate, context)), in two steps: :meth:`encode` reads a user's history once,
    :meth:`score` asks about any number of candidates. Items, users and values are the raw ones of the log
    that the run was trained on; those that are new score as unknown. A run on other data knows items and
    users by their indices, and takes encoded numbers.

    Equal to ``lain predict`` to the last bit where the same rows are asked about together; other company of a
    row may change the last digit, since matrix products of other sizes add in another order.
    Holds nothing but weights and tables: any number of threads may use one scorer.

    Args:
        run: The run folder.
        data: The prepared data set; needed only for runs that do not keep their items' features.

    Raises:
        ConfigError: The run's config.yaml is not one.
        DataError: The folder is no run, or keeps too little and no data set is given.
    """

    def __init__(self, run: Path | str, *, data: Path | str | None = None) -> None:
        run = Path(run)
        config, model, _ = load_model(run)
        catalog = open_catalog(run, model_features(run), None if data is None else Path(data))
        self._set(config, model, catalog)

    @classmethod
    def of(cls, config: TrainConfig, model: CTRModel, catalog: Catalog) -> Scorer:
        """A scorer of a model in memory.

        Args:
            config: What it was built from.
            model: The model; from now on its weights take no gradient.
            catalog: What turns requests into its numbers.
        """
        scorer = cls.__new__(cls)
        scorer._set(config, model, catalog)
        return scorer

    def _set(self, config: TrainConfig, model: CTRModel, catalog: Catalog) -> None:
        self.config, self.catalog = config, catalog
        self.model = model.eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(
        self,
        history: Ids,
        *,
        user: Any = None,
        length: int | None = None,
        columns: Mapping[str, Any] | None = None,
    ) -> UserMemory:
        """Read a user's history.

        Args:
            history: The items, oldest first; the last ``history.max_length`` of them are read.
            user: The user, whose features the run may know; None: one that it does not know.
            length: True length of the history in behaviours, if ``history`` is cut off; by default its own.
            columns: What else is known of each behaviour, by name, where the run reads columns.

        Raises:
            DataError: An item, the user or a value is not one.
        """
        items = self.catalog.items(history)
        length = len(items) if length is None else length
        if length < len(items):
            raise DataError(f"length: {length}, but the history has {len(items)} behaviours")
        if length > np.iinfo(np.int32).max:
            raise DataError(f"length: at most {np.iinfo(np.int32).max}, got {length}")
        names = self.config.history.columns
        values = self.catalog.columns(names, columns or {}, len(items)) if names or columns else {}
        kept = min(len(items), self.config.history.max_length)
        begin = len(items) - kept
        # One row more than behaviours: the products of pairs then never take the path of repeated items.
        extra = max(FEWEST_ROWS - kept, 1)
        index = np.concatenate([items[begin:], np.zeros(extra, np.int64)])
        padded = {n: _tensor(_pad(np.asarray(v)[begin:], extra)) for n, v in values.items()}
        table = self._vectors(index, padded)
        # Beside the user some without a history, so that products of the length have enough rows, too.
        lengths = torch.tensor([length] + [0] * (FEWEST_ROWS - 1))
        spans = Spans(torch.tensor([0] + [kept] * FEWEST_ROWS), torch.arange(kept))
        state = self.model.length(lengths, table.dtype)
        memory = self.model.backbone.encode(table, spans, state).take(torch.zeros(1, dtype=torch.long))
        return UserMemory(memory, length, self.catalog.user(user))

    def score(
        self, memory: UserMemory, candidates: Ids, context: Mapping[str, Any] | None = None
    ) -> Float[np.ndarray, " candidates"]:
        """Click probabilities of candidates for one user.

        Args:
            memory: What :meth:`encode` gave.
            candidates: The items.
            context: Features of the moment by name: one value for all candidates, or one for each.

        Raises:
            DataError: An item or a value is not one.
        """
        return self.score_many([memory], [candidates], [context or {}])[0]

    @torch.inference_mode()
    def score_many(
        self,
        memories: Sequence[UserMemory],
        candidates: Sequence[Ids],
        contexts: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Float[np.ndarray, " candidates"]]:
        """Click probabilities of candidates for several users at once.

        Args:
            memories: What :meth:`encode` gave, user by user; the same memory may come several times.
            candidates: The items that each is asked about.
            contexts: The context of each; see :meth:`score`.

        Raises:
            DataError: An item or a value is not one, or the lists are not of one length.
        """
        contexts = [{}] * len(memories) if contexts is None else contexts
        if not len(memories) == len(candidates) == len(contexts):
            raise DataError(
                f"score: {len(memories)} memories, {len(candidates)} lists of candidates, "
                f"{len(contexts)} contexts; give one of each per user"
            )
        counts = [len(c) for c in candidates]
        if not sum(counts):
            return [np.zeros(0) for _ in counts]
        index = np.concatenate([self.catalog.items(c) for c in candidates])
        distinct = list({id(m): m for m in memories}.values())
        place = {id(m): n for n, m in enumerate(distinct)}
        repeat = torch.tensor(counts)
        which = torch.tensor([place[id(m)] for m in memories]).repeat_interleave(repeat)
        length = torch.tensor([m.length for m in memories]).repeat_interleave(repeat)
        features = self._features(memories, counts, contexts)
        memory = type(distinct[0].memory).join([m.memory for m in distinct]).take(which)
        target = self._vectors(_pad(index, max(FEWEST_ROWS - len(index), 0)))[: len(index)]
        state = self.model.length(length, target.dtype)
        logit = self.model.score(memory, target, features, state).logit
        probability = torch.sigmoid(logit.double()).numpy()
        return np.split(probability, np.cumsum(counts)[:-1])

    def _features(
        self,
        memories: Sequence[UserMemory],
        counts: Sequence[int],
        contexts: Sequence[Mapping[str, Any]],
    ) -> dict[str, Num[Tensor, "samples ..."]]:
        parts = []
        for memory, count, context in zip(memories, counts, contexts, strict=True):
            own = {name: np.repeat(row, count, axis=0) for name, row in memory.features.items()}
            parts.append(own | dict(self.catalog.context(context, count)))
        return {name: _tensor(np.concatenate([part[name] for part in parts])) for name in parts[0]}

    def _vectors(
        self,
        index: Int[np.ndarray, " rows"],
        columns: Mapping[str, Num[Tensor, "rows ..."]] | None = None,
    ) -> Float[Tensor, "rows width"]:
        values = {name: _tensor(value) for name, value in self.catalog.item_values(index).items()}
        return self.model.vectors(torch.from_numpy(index), values, columns)


def _pad(values: Shaped[np.ndarray, "rows ..."], extra: int) -> Shaped[np.ndarray, "padded ..."]:
    return np.concatenate([values, np.zeros((extra, *values.shape[1:]), values.dtype)])


def _tensor(values: Num[np.ndarray, "rows ..."]) -> Num[Tensor, "rows ..."]:
    kind = np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))
