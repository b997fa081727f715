"""The writer without a model: exact on the embedded world, by shared words on any English text."""

from __future__ import annotations

import random
from typing import Annotated

from annotated_types import Ge, Le

from causalneg.data.schema import Analysis, Disruption, Document, Negative, Passage, Requirement, StrategyKind
from causalneg.generation.jobs import Failure, Job, done
from causalneg.generation.writers.base import MAX_NEGATIVES, Pair, Writer, Written, draws
from causalneg.generation.writers.english import Edited, EnglishRules
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

    def write(self, pair: Pair, analysis: Analysis, rng: random.Random) -> list[Edited] | Failure:
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
        found: list[Edited] = []
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
                found.append(Edited(base.title, edit.text, base.id, requirement, edit.strategy))
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


class RulesWriter(Writer):
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

    def __init__(
        self,
        *,
        corpus: Corpus,
        world: World | None = None,
        artifact: Annotated[float, Ge(0), Le(1)] = 0.0,
        seed: int = 0,
    ) -> None:
        check_artifact(artifact)
        self.corpus, self.artifact, self.seed = corpus, artifact, seed
        self._rules = EnglishRules(corpus) if world is None else WorldRules(world)

    @property
    def identity(self) -> dict[str, str]:
        """What decides its texts; see the base class."""
        kind = ", world" if isinstance(self._rules, WorldRules) else ""
        settings = f"version {VERSION}, artifact {self.artifact:g}, corpus {self.corpus.fingerprint}{kind}"
        return {"writer": self.name, "seed": str(self.seed), "settings": settings}

    def write(self, pair: Pair) -> Job[Written]:
        """Write up to three negatives; see the base class."""
        analysis = self._rules.analyse(pair)
        if isinstance(analysis, Failure):
            return done(Written(failure=analysis))
        found = self._negatives(pair, analysis)
        if isinstance(found, Failure):
            return done(Written(analysis, failure=found))
        return done(Written(analysis, tuple(found)))

    def rewrite(self, document: Document) -> Job[Passage | Failure]:
        """Say the same in the writer's own voice; see the base class."""
        rng = draws(self.seed, "rewrite", document.id or document.text)
        text: str | Failure = document.text
        if isinstance(self._rules, WorldRules):
            text = self._rules.rewrite(document, rng)
        if isinstance(text, Failure):
            return done(text)
        return done(rewritten(document, in_voice(text, document.text, self.artifact, rng), self.name))

    def _negatives(self, pair: Pair, analysis: Analysis) -> list[Negative] | Failure:
        rng = draws(self.seed, "write", pair.query.id, pair.positive.id)
        edits = self._rules.write(pair, analysis, rng)
        if isinstance(edits, Failure):
            return edits
        base = {d.id: d.text for d in (pair.positive, *pair.candidates)}
        return [
            Negative(
                document_id=edit.base or None,
                title=edit.title,
                text=in_voice(edit.text, base[edit.base], self.artifact, rng),
                source="generated",
                backend=self.name,
                requirement=edit.requirement.text,
                facet=edit.requirement.facet,
                strategy=edit.kind,
                seed=self.seed,
            )
            for edit in edits
        ]


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


def rewritten(document: Document, text: str, voice: str) -> Passage:
    """A document in other words.

    Args:
        document: What was rewritten.
        text: Its words now.
        voice: Name of the writer.
    """
    return Passage(document_id=document.id or None, text=text, title=document.title, voice=voice)
