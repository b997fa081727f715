"""Writers by name."""

from __future__ import annotations

from causalneg.data import Dataset
from causalneg.generation.writers.base import Writer
from causalneg.generation.writers.naive import NaiveWriter
from causalneg.generation.writers.rules import RulesWriter
from causalneg.text.corpus import Corpus
from causalneg.world import World
from common.errors import ConfigError, suggest

BACKENDS = ("rules", "naive")
"""Names of all writers."""


def make_writer(
    name: str, dataset: Dataset, *, world: World | None = None, artifact: float = 0.0, seed: int = 0
) -> Writer:
    """Make a writer for a data set.

    Args:
        name: ``"rules"``: counterfactual edits, by the world's grammar where there is a world; ``"naive"``:
            on-topic text without a view of the need.
        dataset: Its corpus is where words and sentences come from.
        world: The world that the data set was made from; None for real text.
        artifact: Strength of the simulated writer's manner, 0 to 1.
        seed: Decides every draw.

    Raises:
        ConfigError: There is no such writer, or a value is out of range.
    """
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ConfigError(f"backend: must be one of {known}, got '{name}'{suggest(name, BACKENDS)}")
    corpus = Corpus.of(dataset)
    if name == "naive":
        return NaiveWriter(corpus, artifact=artifact, seed=seed)
    return RulesWriter(corpus, world=world, artifact=artifact, seed=seed)
