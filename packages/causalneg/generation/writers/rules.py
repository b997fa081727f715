"""The writer without a model: exact on the embedded world, by shared words on any English text."""

from __future__ import annotations

import random
from collections.abc import Sequence

from causalneg.data.schema import Analysis, Disruption, Document, Negative, Passage, Requirement, StrategyKind
from causalneg.generation.writers.base import MAX_NEGATIVES, Failure, Pair, draws
from causalneg.generation.writers.english import Draft, EnglishRules
from causalneg.text.corpus import Corpus
from causalneg.text.style import has_style, style_share, stylise
from causalneg.world import World
from common.errors import ConfigError

VERSION = 1
"""Goes into a writer's settings: texts of two versions must not be mixed unnoticed."""

_WAYS: dict[str, tuple[StrategyKind, ...]] = {
    "entity": ("entity shift",),
    "relation": ("relation break",),
    "year": ("constraint violation",),
    "stated": ("attribute shift", "upstream/downstream"),
}
_INSTRUCTIONS: dict[StrategyKind, str] = {
    "entity shift": "Speak of another one of the same kind throughout.",
    "relation break": "Let another relation hold, or the same one the other way round.",
    "constraint violation": "Let it hold under another condition.",
    "attribute shift": "Tell another fact in place of the one that is asked for.",
    "upstream/downstream": "Tell what came right before or after instead.",
}


class WorldRules:
    """Edits passages of the embedded world by its grammar, every edit checked against its truth.

    Args:
        world: The world that queries and passages are of.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def analyse(self, pair: Pair) -> Analysis | Failure:
        """List the requirements of the need behind a query.

        Args:
            pair: What to analyse.
        """
        id, text = pair.query.id, pair.positive.text
        if not self.world.answers(id, text):
            return Failure("no answer", f"document {pair.positive.id} does not answer query {id}")
        requirements = []
        for requirement in self.world.requirements(id):
            kinds = _WAYS.get(requirement.key.split(":")[0], ())
            ways = [Disruption(kind=kind, instruction=_INSTRUCTIONS[kind]) for kind in kinds]
            requirements.append(
                Requirement(text=requirement.text, facet=requirement.facet, critical=True, disruptions=ways)
            )
        need = self.world.need(id)
        return Analysis(
            core_need=f"To learn: {pair.query.text}",
            how_met=f"It states all that is asked for; the answer is {' or '.join(need.answers)}.",
            answer_boundary="A passage answers if it states all of it itself, with a true answer.",
            requirements=requirements,
        )

    def write(self, pair: Pair, analysis: Analysis, rng: random.Random) -> list[Draft] | Failure:
        """Edit the positive, or a candidate that answers as well, by up to three strategies.

        Args:
            pair: What to write for.
            analysis: Its analysis.
            rng: Source of the draws.
        """
        bases = [c for c in pair.candidates if self.world.answers(pair.query.id, c.text)]
        bases = bases or [pair.positive]
        known = {r.text: r for r in analysis.requirements}
        kinds = list(dict.fromkeys(d.kind for r in analysis.requirements for d in r.disruptions))
        rng.shuffle(kinds)
        found: list[Draft] = []
        impossible: set[StrategyKind] = set()
        # A second round fills up with other edits of kinds that were there, where one was not possible.
        for kind in (*kinds, *kinds):
            if len(found) == MAX_NEGATIVES:
                break
            if kind in impossible:
                continue
            base = rng.choice(bases)
            edit = self.world.edit(pair.query.id, base.text, kind, rng)  # type: ignore[arg-type]
            if edit is None:
                impossible.add(kind)
                continue
            if any(edit.text == d.text for d in found):
                continue
            requirement = known.get(edit.requirement.text)
            if requirement is not None:
                found.append(Draft(base.title, edit.text, base.id, requirement, edit.strategy))
        if not found:
            return Failure("nothing to break", "no strategy applies to the passage")
        order = {"relation break": 0, "constraint violation": 1, "entity shift": 2}
        return sorted(found, key=lambda d: order.get(d.kind, 3))

    def rewrite(self, document: Document, rng: random.Random) -> str | Failure:
        """The same facts in other words.

        Args:
            document: A passage.
            rng: Source of the draws.
        """
        text = self.world.paraphrase(document.text, rng)
        if set(self.world.parse(text)) != set(self.world.parse(document.text)):
            return Failure("meaning changed", f"the rewritten document {document.id} states other facts")
        return text


class RulesWriter:
    """Counterfactual negatives by rule; see :class:`causalneg.generation.writers.base.Writer`.

    Args:
        corpus: What substitutes and style are taken from.
        world: The world, when queries and passages are of one.
        artifact: Share of the sentences that get a turn of phrase of the simulated writer. With 0 a text has
            as many of them as the passage that it was made from.
        seed: Decides every draw.

    Raises:
        ConfigError: ``artifact`` is not a share.
    """

    name = "rules"
    model = ""
    prompt_version = ""

    def __init__(
        self, corpus: Corpus, *, world: World | None = None, artifact: float = 0.0, seed: int = 0
    ) -> None:
        check_artifact(artifact)
        self.corpus, self.artifact, self.seed = corpus, artifact, seed
        self.rules = EnglishRules(corpus) if world is None else None
        self.world_rules = None if world is None else WorldRules(world)
        self.settings = f"version {VERSION}, artifact {artifact:g}, corpus {corpus.fingerprint}"
        self.settings += ", world" if world is not None else ""

    def analyse(self, pairs: Sequence[Pair]) -> list[Analysis | Failure]:
        """Say why each positive answers its query; see the protocol."""
        rules = self.world_rules or self.rules
        assert rules is not None
        return [rules.analyse(pair) for pair in pairs]

    def write(self, pairs: Sequence[Pair], analyses: Sequence[Analysis]) -> list[list[Negative] | Failure]:
        """Write up to three negatives a pair; see the protocol."""
        return [self._write(pair, analysis) for pair, analysis in zip(pairs, analyses, strict=True)]

    def rewrite(self, documents: Sequence[Document]) -> list[Passage | Failure]:
        """Say the same in the writer's own voice; see the protocol."""
        return [self._rewrite(document) for document in documents]

    def _write(self, pair: Pair, analysis: Analysis) -> list[Negative] | Failure:
        rules = self.world_rules or self.rules
        assert rules is not None
        rng = draws(self.seed, "write", pair.query.id, pair.positive.id)
        drafts = rules.write(pair, analysis, rng)
        if isinstance(drafts, Failure):
            return drafts
        base = {d.id: d.text for d in (pair.positive, *pair.candidates)}
        return [
            Negative(
                document_id=draft.base or None,
                title=draft.title,
                text=in_voice(draft.text, base[draft.base], self.artifact, rng),
                source="generated",
                backend=self.name,
                requirement=draft.requirement.text,
                facet=draft.requirement.facet,
                strategy=draft.kind,
                seed=self.seed,
            )
            for draft in drafts
        ]

    def _rewrite(self, document: Document) -> Passage | Failure:
        rng = draws(self.seed, "rewrite", document.id or document.text)
        text: str | Failure = document.text
        if self.world_rules is not None:
            text = self.world_rules.rewrite(document, rng)
        if isinstance(text, Failure):
            return text
        return spoken(document, in_voice(text, document.text, self.artifact, rng), self.name)


def check_artifact(artifact: float) -> None:
    """Refuse a strength that is not a share.

    Raises:
        ConfigError: It is not between 0 and 1.
    """
    if not 0 <= artifact <= 1:
        raise ConfigError(f"artifact: must be between 0 and 1, got {artifact}")


def in_voice(text: str, base: str, artifact: float, rng: random.Random) -> str:
    """A text in the simulated writer's manner, or in that of the passage it was made from.

    Args:
        text: The text.
        base: The passage.
        artifact: Strength of the manner; 0 gives as many turns of phrase as the passage has.
        rng: Source of the draws.
    """
    if artifact > 0:
        return stylise(text, artifact, rng)
    if not has_style(base) or has_style(text):
        return text
    styled = text
    for _ in range(20):
        styled = stylise(text, max(style_share(base), 0.1), rng)
        if has_style(styled):
            break
    return styled


def spoken(document: Document, text: str, voice: str) -> Passage:
    """A document in other words.

    Args:
        document: What was rewritten.
        text: Its words now.
        voice: Name of the writer.
    """
    return Passage(document_id=document.id or None, text=text, title=document.title, voice=voice)
