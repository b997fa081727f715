"""The prompts: text files with versions, put together so that what many requests share comes first.

``templates/*.txt`` hold what is said to a model, ``profiles/*.txt`` what is peculiar to a corpus: what counts
as relevant there, and how its passages read. A new corpus needs a new profile and no code. Such a file is::

    version: 1
    === section
    Text with $placeholders ...

The two calls for a pair are one conversation. The system message, equal for all pairs of a corpus, holds both
tasks; the second call continues the first. A server with prefix caching therefore reads the system message
once, and query, passage and analysis of a pair once instead of twice.
Source: CausalNeg (arXiv 2606.01304), the two-call generation. The wording is this project's.

Over 400 lines: prompts, their schemas and what reads the answers must agree.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import BaseModel, model_validator

from causalneg.data.schema import Analysis, Disruption, Document, Query, Requirement, StrategyKind
from causalneg.generation.writers.base import MAX_NEGATIVES
from causalneg.llm.chat import Message
from causalneg.llm.schema import bounded_schema
from common.config import Positive, checked
from common.errors import ConfigError, DataError, suggest


class Draft(BaseModel):
    """One negative as a model writes it.

    Args:
        passage: Number of the passage shown that it was rewritten from; 0 for none.
        change: What breaks the requirement.
        title: Its title; empty where the corpus has none.
        text: Its text; empty if the order could not be carried out.
    """

    passage: int = 0
    change: str = ""
    title: str = ""
    text: str


class Drafts(BaseModel):
    """The answer to the second call: a draft for each order."""

    negative_1: Draft | None = None
    negative_2: Draft | None = None
    negative_3: Draft | None = None

    @model_validator(mode="after")
    def _has_one(self) -> Drafts:
        if not any(self.in_order()):
            raise ValueError("there is no negative")
        return self

    def in_order(self) -> list[Draft | None]:
        """The drafts by number of their order; None where the answer has none."""
        return [self.negative_1, self.negative_2, self.negative_3]


class Rewritten(BaseModel):
    """A passage in the model's own voice."""

    text: str


@checked
@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a model is shown and asked for.

    Args:
        least_requirements: Fewest requirements of an analysis.
        most_requirements: Most requirements of an analysis.
        least_disruptions: Fewest ways to break a critical requirement.
        most_disruptions: Most ways to break a critical requirement.
        candidates: Mined passages shown, at most.
        sentence_characters: Longest sentence of an analysis, in characters.
        passage_characters: Longest passage written, in characters.
        analysis_tokens: Longest answer to the first call.
        negatives_tokens: Longest answer to the second call.
        rewrite_tokens: Longest answer to the third call.

    Raises:
        ConfigError: One is not positive, or a range is empty.
    """

    least_requirements: Positive = 4
    most_requirements: Positive = 8
    least_disruptions: Positive = 2
    most_disruptions: Positive = 3
    candidates: Annotated[int, Ge(0)] = 5
    sentence_characters: Positive = 400
    passage_characters: Positive = 4000
    analysis_tokens: Positive = 2048
    negatives_tokens: Positive = 2048
    rewrite_tokens: Positive = 1024

    def __post_init__(self) -> None:
        """Refuse empty ranges."""
        found = []
        for what in ("requirements", "disruptions"):
            low, high = getattr(self, f"least_{what}"), getattr(self, f"most_{what}")
            if low > high:
                found.append(f"least_{what}: {low} is more than most_{what}, {high}")
        ConfigError.raise_if(found)


@dataclass(frozen=True)
class Order:
    """What one negative has to break.

    Args:
        requirement: The requirement.
        disruption: How it is broken.
    """

    requirement: Requirement
    disruption: Disruption


@dataclass(frozen=True)
class TextFile:
    """A versioned text file of named sections.

    Args:
        name: Name of the file without ending.
        version: Its version.
        sections: Text by name.
    """

    name: str
    version: int
    sections: dict[str, str]

    @classmethod
    def read(cls, name: str, content: str, wanted: Sequence[str]) -> TextFile:
        """Parse a file.

        Args:
            name: Where it comes from, for errors.
            content: What it holds.
            wanted: Sections that it must have.

        Raises:
            DataError: It has no version, or a section is missing or empty.
        """
        head, *parts = re.split(r"(?m)^=== *(.*)\n?", content)
        version = re.fullmatch(r"\s*version: *(\d+)\s*", head)
        if version is None:
            raise DataError(f"{name}: must begin with a line like 'version: 1'")
        sections = {parts[i].strip(): parts[i + 1].strip() for i in range(0, len(parts), 2)}
        missing = [section for section in wanted if not sections.get(section)]
        DataError.raise_if(f"{name}: the section '=== {section}' is missing or empty" for section in missing)
        return cls(Path(name).stem, int(version.group(1)), sections)


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    folder = files("causalneg.generation") / "profiles"
    return sorted(
        entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt")
    )


def load_profile(profile: str) -> TextFile:
    """Read a corpus profile.

    Args:
        profile: Name of one that comes with the package, or path of a text file.

    Raises:
        ConfigError: There is no such profile.
        DataError: The file is not a profile.
    """
    names = profile_names()
    if profile in names:
        content = (files("causalneg.generation") / "profiles" / f"{profile}.txt").read_text(encoding="utf-8")
    else:
        try:
            content = Path(profile).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError, ValueError):
            raise ConfigError(
                f"profile '{profile}': neither a text file nor one of {', '.join(names)}"
                f"{suggest(profile, names)}"
            ) from None
    return TextFile.read(profile, content, ("relevance", "style"))


def load_template(name: str, wanted: Sequence[str]) -> TextFile:
    """Read a template that comes with the package.

    Args:
        name: Its name.
        wanted: Sections that it must have.
    """
    content = (files("causalneg.generation") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
    return TextFile.read(name, content, wanted)


class Prompts:
    """All prompts for one corpus.

    Args:
        profile: Name of a corpus profile, or path of one.
        limits: How much is shown and asked for.

    Raises:
        ConfigError: There is no such profile.
        DataError: The profile cannot be read.
    """

    def __init__(self, profile: str = "generic", limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.profile = load_profile(profile)
        self._negatives = load_template(
            "negatives", ("system", "analyse", "write", "order", "no_candidates", "pending")
        )
        self._rewrite = load_template("rewrite", ("system", "rewrite"))
        self._systems = {t.name: self._system(t) for t in (self._negatives, self._rewrite)}

    @property
    def version(self) -> str:
        """Version of templates and profile; a change of a single letter changes it."""
        used = (self._negatives, self._rewrite, self.profile)
        digest = hashlib.sha256(repr([(f.version, sorted(f.sections.items())) for f in used]).encode())
        return f"{self._negatives.version}-{self.profile.name}{self.profile.version}-{digest.hexdigest()[:8]}"

    def _system(self, template: TextFile) -> Message:
        limits = self.limits
        text = Template(template.sections["system"]).substitute(
            relevance=self.profile.sections["relevance"],
            style=self.profile.sections["style"],
            least=limits.least_requirements,
            most=limits.most_requirements,
            fewest=limits.least_disruptions,
            at_most=limits.most_disruptions,
        )
        return Message("system", text)

    def analysis(self, query: Query, positive: Document) -> tuple[Message, ...]:
        """The first call: why the positive answers the query.

        Args:
            query: The query.
            positive: A passage that answers it.
        """
        text = Template(self._negatives.sections["analyse"]).substitute(
            query=query.text, positive=_shown(positive)
        )
        return (self._systems["negatives"], Message("user", text))

    def negatives(
        self,
        query: Query,
        positive: Document,
        analysis: Analysis,
        candidates: Sequence[Document],
        orders: Sequence[Order],
    ) -> tuple[Message, ...]:
        """The second call, which continues the first: a negative for each order.

        Args:
            query: The query.
            positive: A passage that answers it.
            analysis: The answer to the first call.
            candidates: Mined passages to rewrite or to take the style from.
            orders: What to break.
        """
        answer = json.dumps(analysis.model_dump(), ensure_ascii=False)
        order = Template(self._negatives.sections["order"])
        shown = [f"[{number}] {_shown(c)}" for number, c in enumerate(candidates, start=1)]
        return self._second_call(
            (*self.analysis(query, positive), Message("assistant", answer)),
            candidates="\n\n".join(shown) or self._negatives.sections["no_candidates"],
            orders="\n".join(
                order.substitute(
                    number=number,
                    requirement=o.requirement.text,
                    kind=o.disruption.kind,
                    instruction=o.disruption.instruction,
                )
                for number, o in enumerate(orders, start=1)
            ),
            length=_length([d.text for d in (*candidates, positive)]),
        )

    def _second_call(self, before: tuple[Message, ...], **values: Any) -> tuple[Message, ...]:
        return (*before, Message("user", Template(self._negatives.sections["write"]).substitute(values)))

    def preview(self, query: Query, positive: Document, candidates: Sequence[Document]) -> str:
        """Both calls for a pair, for readers; what only the model can say is left open.

        Args:
            query: The query.
            positive: A passage that answers it.
            candidates: Mined passages.
        """
        pending = self._negatives.sections["pending"]
        shown = "\n\n".join(f"[{number}] {_shown(c)}" for number, c in enumerate(candidates, start=1))
        messages = self._second_call(
            (*self.analysis(query, positive), Message("assistant", pending)),
            candidates=shown or self._negatives.sections["no_candidates"],
            orders=pending,
            length=_length([d.text for d in (*candidates, positive)]),
        )
        return "\n\n".join(f"--- {message.role} ---\n{message.content}" for message in messages) + "\n"

    def rewrite(self, text: str) -> tuple[Message, ...]:
        """The third call: a passage in the model's own voice.

        Args:
            text: The passage.
        """
        content = Template(self._rewrite.sections["rewrite"]).substitute(passage=text)
        return (self._systems["rewrite"], Message("user", content))

    @cached_property
    def analysis_schema(self) -> dict[str, Any]:
        """JSON schema of the first call's answer."""
        limits = self.limits
        return bounded_schema(
            Analysis,
            characters=limits.sentence_characters,
            items={
                "requirements": (limits.least_requirements, limits.most_requirements),
                # Those that are not critical have none.
                "disruptions": (0, limits.most_disruptions),
            },
        )

    @cached_property
    def negatives_schemas(self) -> tuple[dict[str, Any], ...]:
        """JSON schemas of the second call's answer, for one order, for two, for three."""
        limits = self.limits
        schema = bounded_schema(
            Draft,
            characters=limits.sentence_characters,
            longer={"text": limits.passage_characters},
            largest={"passage": limits.candidates},
        )
        names = [f"negative_{number}" for number in range(1, MAX_NEGATIVES + 1)]
        return tuple(
            {
                "$defs": {"Draft": schema},
                "type": "object",
                "properties": {name: {"$ref": "#/$defs/Draft"} for name in names[:count]},
                "required": names[:count],
                "additionalProperties": False,
            }
            for count in range(1, MAX_NEGATIVES + 1)
        )

    @cached_property
    def rewrite_schema(self) -> dict[str, Any]:
        """JSON schema of the third call's answer."""
        return bounded_schema(Rewritten, characters=self.limits.passage_characters)

    @property
    def schema_version(self) -> str:
        """A few signs that change when the shape of an answer does."""
        schemas = [
            self.analysis_schema,
            *self.negatives_schemas,
            self.rewrite_schema,
        ]
        return hashlib.sha256(json.dumps(schemas, sort_keys=True).encode()).hexdigest()[:8]


def _shown(document: Document) -> str:
    return f"{document.title}\n{document.text}" if document.title else document.text


def _length(texts: Sequence[str]) -> str:
    """Usual length of texts in words, or in signs for a script without spaces."""
    whole = "".join(texts)
    wide = sum(1 for c in whole if ord(c) > 0x2E7F)
    unit, total = (
        ("characters", len(whole)) if 2 * wide > len(whole) else ("words", len(" ".join(texts).split()))
    )
    return f"{max(5, round(total / len(texts) / 5) * 5)} {unit}"


_SENTENCE_END = re.compile(
    "(?<=[.!?\u2026])[\"'\u201d\u2019)\\]]*\\s+"  # Latin: white space follows
    "|(?<=[\u3002\uff01\uff1f])[\u201d\u2019\u300d\u300f\uff09]*"  # Chinese and Japanese: nothing does
    "|\n+"
)


def cut_document(document: Document, tokens: int, count: Callable[[str], int]) -> tuple[Document, bool]:
    """Shorten a text to a number of tokens, at the end of a sentence.

    A first sentence that is too long by itself is cut between words, or between signs in a script without
    spaces.

    Args:
        document: What may be too long.
        tokens: Tokens that its title and text may have, at least 1.
        count: Tokens of a text.

    Returns:
        The document, and whether it was cut.
    """
    if count(_shown(document)) <= tokens:
        return document, False
    text = document.text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    fitting = _last_fitting(ends, lambda end: count(_shown(_with(document, text[:end]))) <= tokens)
    if fitting is None:
        ends = [m.end() for m in re.finditer(r"\S+|[\u3040-\u30ff\u3400-\u9fff]", text)]
        fitting = _last_fitting(ends, lambda end: count(_shown(_with(document, text[:end]))) <= tokens)
    return _with(document, text[: fitting or 0].rstrip()), True


def _with(document: Document, text: str) -> Document:
    return document.model_copy(update={"text": text})


def _last_fitting(ends: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending values that fits, if the smaller ones do."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high) // 2
        if fits(ends[middle]):
            low = middle + 1
        else:
            high = middle
    return ends[low - 1] if low else None


def choose_orders(
    analysis: Analysis, kinds: Sequence[StrategyKind], count: int = MAX_NEGATIVES
) -> list[Order]:
    """Choose what the negatives of a pair break: other requirements and other kinds of break first.

    Models like some kinds of disruption better than others and list them first. So the kinds are gone through
    in an order drawn for each pair: over many pairs each comes first equally often.
    If the analysis calls nothing critical, or says no way to break what is, the gap is filled: every
    requirement with a disruption counts, then every requirement by the kind that goes with its facet.

    Args:
        analysis: The requirements, the most decisive first.
        kinds: All kinds of disruption, in the order of this pair.
        count: Orders at most.

    Returns:
        Orders, the most decisive requirement first.
    """
    numbered = list(enumerate(analysis.requirements))
    options = [(i, r, d) for i, r in numbered if r.critical for d in r.disruptions]
    options = options or [(i, r, d) for i, r in numbered for d in r.disruptions]
    options = options or [(i, r, _by_facet(r)) for i, r in numbered]
    chosen: list[tuple[int, Requirement, Disruption]] = []
    while options and len(chosen) < count:
        used = {i for i, _, _ in chosen}
        taken = {d.kind for _, _, d in chosen}
        best = min(options, key=lambda o: (o[0] in used, o[2].kind in taken, kinds.index(o[2].kind), o[0]))
        options.remove(best)
        chosen.append(best)
    return [Order(r, d) for _, r, d in sorted(chosen, key=lambda o: o[0])]


def _by_facet(requirement: Requirement) -> Disruption:
    kind, instruction = _FACETS.get(requirement.facet, _FACETS["information need"])
    return Disruption.model_validate({"kind": kind, "instruction": instruction})


_FACETS = {
    "entity": ("entity shift", "Let the passage be about another entity of the same type."),
    "attribute": ("attribute shift", "Let it speak of another property of the same entity."),
    "constraint": ("constraint violation", "Let the condition not hold: another date, number or place."),
    "relation": ("relation break", "Put the same participants into another relation."),
    "reasoning": ("upstream/downstream", "Speak of what leads to it or follows from it instead."),
    "information need": ("intent drift", "Keep the subject and serve another purpose."),
}


def with_limits(limits: Limits, context: int | None) -> Limits:
    """Shorten the answers so that prompt, first and second answer fit into a small context.

    Args:
        limits: What was asked for.
        context: Tokens of the model's context; None if unknown.
    """
    if context is None:
        return limits
    quarter = context // 4
    return replace(
        limits,
        analysis_tokens=min(limits.analysis_tokens, quarter),
        negatives_tokens=min(limits.negatives_tokens, quarter),
        rewrite_tokens=min(limits.rewrite_tokens, quarter),
    )
