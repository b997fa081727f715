"""What every feature of a log and every column of its behaviours can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Shaped

from lain.data.schema import Feature, Source
from lain.formats.log.values import Place
from lain.formats.log.vocabulary import Vocabulary

Weight = Int[np.ndarray, " rows"] | None


class Encoder(ABC):
    """One feature, or one column of the behaviours.

    Args:
        name: Its name.
        source: Whose it is.
        column: Its column.
    """

    kind: str
    raw_type: Any = pl.String()
    fixed: bool = False
    """Whether nothing more is to be learned of scales: it grows from an earlier preparation."""

    def __init__(self, name: str, source: Source, column: str) -> None:
        self.name, self.source, self.column = name, source, column

    @abstractmethod
    def raw(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """The column of a piece, checked, as the spool keeps it."""

    @abstractmethod
    def add(self, raw: pl.Series, weight: Weight = None) -> None:
        """Learn from rows, each counted so often."""

    @abstractmethod
    def finish(self) -> None:
        """Nothing more will be learned."""

    @abstractmethod
    def encode(self, raw: pl.Series) -> Shaped[np.ndarray, "rows ..."]:
        """The numbers of rows."""

    @property
    @abstractmethod
    def feature(self) -> Feature:
        """The feature of the prepared set."""

    def state(self) -> dict[str, Any]:
        """What was learned, as far as it fits into JSON."""
        return {}

    @abstractmethod
    def restore(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Take over what another preparation learned."""

    def grow(self, state: dict[str, Any], vocabulary: Path) -> None:
        """Take over what another preparation learned; only values that are new to it are learned, behind."""
        self.restore(state, vocabulary)
        self.fixed = True

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary, if it has one."""
        return None
