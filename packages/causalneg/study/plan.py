"""A study file of retrieval: the matrix of runs, and the training sets that its arms use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from causalneg.generation.writers.taught import Lesson
from common import config
from common.errors import ConfigError, suggest
from common.study.plan import Study, nested

TAUGHT = "world-lm"
"""The writer that is a language model taught by the study."""


@dataclass
class RetrievalStudy(Study):
    """A study file of retrieval: what the base class holds, and the sets that arms use.

    An arm names its sets by their names here (``sets: [{path: bm25, count: 15}]``). Sets are made once, with
    one seed, and shared by all seeds of all arms.

    Args:
        sets: How each training set is made: ``{mine: bm25 or dense, ...rules}``, ``{take: queries, from: a
            set}`` (drawn at random), ``{write: rules or naive, artifact: 0..1, from: a mined set, voices:
            rewritten mined negatives per query}``, ``{write: world-lm, from: a mined set,
            temperature: 0.7, batch: 64, engine: an environment with vLLM; without one transformers writes}``.
        teach: The language model that ``world-lm`` writes with, taught the world by the rules: ``{from: a
            mined set, minutes: 20, ...}``, whatever
            :class:`~causalneg.generation.writers.taught.Lesson` knows.
        start: Training of the encoder that all arms start from, by dotted key; empty starts from scratch.
        train_split: Split that is mined and trained on.
        truth_split: Split with every true positive of the training queries, where that is known.
        reference: The arm that others are tested against; beside the main matrix, the first arm of a tag
            that lacks it.
        mixed_share: Share of the corpus in the writer's style in the mixed twin; 0 makes none.
    """

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    teach: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    train_split: str = "train"
    truth_split: str | None = None
    reference: str = "bm25"
    mixed_share: float = 0.5

    def __post_init__(self) -> None:
        """Check that every set that is used is defined, and before it is used."""
        super().__post_init__()
        mistakes: list[str] = []
        seen: list[str] = []
        for name, options in self.sets.items():
            kinds = [k for k in ("mine", "take", "write") if k in options]
            if len(kinds) != 1:
                mistakes.append(f"sets.{name}: needs one of mine, take and write")
            if "mine" not in options and options.get("from") not in seen:
                word = f"sets.{name}.from: {options.get('from')!r} is not a set before it"
                mistakes.append(word + suggest(str(options.get("from")), seen))
            if options.get("write") == TAUGHT and not self.teach:
                mistakes.append(
                    f"sets.{name}: {TAUGHT} writes with a model that is taught; give the study teach"
                )
            elif options.get("write") == TAUGHT and self.teach.get("from") not in seen:
                mistakes.append(
                    f"sets.{name}: must come after {self.teach.get('from')!r}, which is learnt from"
                )
            seen.append(name)
        if self.teach:
            learned = self.sets.get(str(self.teach.get("from")), {})
            if "mine" not in learned:
                mistakes.append(f"teach.from: {self.teach.get('from')!r} is not a mined set")
            if self.data.get("format") != "world":
                mistakes.append("teach: what the model learns from is only known of a world")
            try:
                self.lesson()
            except ConfigError as error:
                mistakes += [f"teach.{line}" for line in error.messages]
        for arm, settings in self.arms.items():
            own = nested(self.base, settings)
            used = [str(entry.get("path")) for entry in own.get("sets", [])]
            used += [str(own["voices"])] if own.get("voices") else []
            mistakes += [f"arms.{arm}: no set {u!r}{suggest(u, seen)}" for u in used if u not in seen]
        if self.reference not in self.arms:
            mistakes.append(f"reference: no arm {self.reference!r}{suggest(self.reference, self.arms)}")
        ConfigError.raise_if(mistakes)

    def lesson(self) -> Lesson:
        """How the language model is taught.

        Raises:
            ConfigError: A setting is unknown or out of range.
        """
        return config.load(Lesson, None, base={k: v for k, v in self.teach.items() if k != "from"})
