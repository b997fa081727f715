"""The shapes that cross file borders: queries, documents, negatives with where they come from, analyses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Facet = Literal["information need", "entity", "attribute", "constraint", "relation", "reasoning", "style"]
"""What a requirement is about (METHODS of CausalNeg, analysis)."""

StrategyKind = Literal[
    "entity shift",
    "intent drift",
    "constraint violation",
    "attribute shift",
    "relation break",
    "upstream/downstream",
]
"""How one requirement is broken while the others hold."""

Source = Literal["mined", "generated"]
"""Z: whether a negative's content was found in the corpus or written for the query."""

Reason = Literal[
    "valid",
    "equals positive",
    "near positive",
    "requirement kept",
    "answers",
    "partly answers",
    "wrong answer",
    "off topic",
    "about the task",
    "too short",
    "too long",
    "wrong language",
    "duplicate",
    "empty",
    "not judged",
]
"""What verifier and judge found; everything but ``"valid"`` keeps a negative out of training."""


class _Shape(BaseModel):
    """Frozen, and strict about keys that do not exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Query(_Shape):
    """A query.

    Args:
        id: Its id in queries.jsonl.
        text: Its text.
        metadata: Whatever its file says besides.
    """

    id: str
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)


class Document(_Shape):
    """A document of a corpus.

    Args:
        id: Its id in corpus.jsonl.
        text: Its text, without the title.
        title: Its title; may be empty.
        metadata: Whatever its file says besides.
    """

    id: str
    text: str
    title: str = ""
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def content(self) -> str:
        """What is searched and encoded: title and text."""
        return f"{self.title} {self.text}".strip()


class Verdict(_Shape):
    """The verdict of a judge on a negative.

    Args:
        reason: ``"valid"``, or why it must not be trained on.
        judge: Which judge: ``"truth"``, ``"heuristics"``, ``"llm"``, ``"cross-encoder"``.
        detail: In words, for readers of a rejected set.
    """

    reason: Reason
    judge: str
    detail: str = ""

    @property
    def valid(self) -> bool:
        """Whether the negative may be trained on."""
        return self.reason == "valid"


class Passage(_Shape):
    """A text in a training set: a document of the corpus by id, or its own text, or both.

    Args:
        document_id: Id of the document it is, or was rewritten from; None for a text from nowhere.
        text: Its text; None to read it from the corpus by ``document_id``.
        title: Its title; used only with ``text``.
        voice: Name of the writer that rewrote it without changing what it says; None if nobody did.
        teacher: Score for the query by a model that reads both together; None if nobody gave one.
    """

    document_id: str | None = None
    text: str | None = None
    title: str = ""
    voice: str | None = None
    teacher: float | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Passage:
        if self.document_id is None and not (self.text or "").strip():
            raise ValueError("a passage needs a text or a document_id")
        return self


class Negative(Passage):
    """A text that does not answer its query, and where it comes from.

    Args:
        source: Z of the method: mined or generated.
        backend: What found or wrote it: ``bm25``, ``dense``, ``rules``, ``naive``, ``vllm``, ...
        requirement: The one requirement that it violates; empty for mined ones.
        facet: What that requirement is about; None for mined ones.
        strategy: How it violates it; None for mined ones.
        model: Name of the model behind the backend; empty without one.
        prompt_version: Version of prompts and profile; empty without a model.
        seed: Seed it was found or written with.
        rank: 1-based rank in the search that found it; None for generated ones.
        score: Score in that search.
        tokens: Tokens read and written to make it; 0 without a model.
        verdict: What the verifier found; None before it looked.
    """

    source: Source
    backend: str
    requirement: str = ""
    facet: Facet | None = None
    strategy: StrategyKind | None = None
    model: str = ""
    prompt_version: str = ""
    seed: int = 0
    rank: int | None = None
    score: float | None = None
    tokens: int = 0
    verdict: Verdict | None = None


class Example(_Shape):
    """One query of a training set, with any number of negatives, none included.

    Args:
        query: The query.
        positives: Passages that answer it, at least one.
        negatives: Passages that do not.
    """

    query: Query
    positives: list[Passage] = Field(min_length=1)
    negatives: list[Negative] = Field(default_factory=list)


class Disruption(_Shape):
    """One way to break one requirement and no other.

    Args:
        kind: What kind of break.
        instruction: What to do, in one sentence.
    """

    kind: StrategyKind
    instruction: str


class Requirement(_Shape):
    """One concrete thing, falsifiable in a text, that a passage must do to answer the query.

    Args:
        text: The requirement in one sentence.
        facet: What it is about.
        critical: Whether a passage without it fails to answer.
        disruptions: Two or three ways to break it, for critical ones.
    """

    text: str
    facet: Facet
    critical: bool
    disruptions: list[Disruption] = Field(default_factory=list)


class Analysis(_Shape):
    """Why a positive answers a query; the first of the two calls.

    Args:
        core_need: What the query needs, in one sentence.
        how_met: How the positive meets it.
        answer_boundary: What still counts as an answer and what does not.
        requirements: Four to eight where a model writes them; rules may find fewer.
    """

    core_need: str
    how_met: str
    answer_boundary: str
    requirements: list[Requirement]
