"""The world on disk: made once, opened by whoever needs its truth.

A world is a BEIR folder with more in it::

    corpus.jsonl, queries.jsonl      passages and questions
    qrels/{train,dev,test}.tsv       relevant passages; of a training question only one, drawn at random
    qrels/train-truth.tsv            all relevant passages of the training questions
    world.json                       version, settings, counts
    truth/{entities,facts,needs}.jsonl
    mixed/                           a BEIR folder: the same, half of the passages in the other style
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from causalneg.data import write_dataset
from causalneg.data.schema import Document, Query
from causalneg.text.style import mixed_corpus, stylise
from causalneg.world import edits as editing
from causalneg.world import language, writing
from causalneg.world.build import make_passages, make_questions
from causalneg.world.communities import PASSAGES_PER_COMMUNITY, make_communities, name_capacity
from causalneg.world.edits import Edit
from causalneg.world.language import Fact
from causalneg.world.lexicon import Kind
from causalneg.world.needs import Need, NeedRequirement, Oracle, Pattern, TextVerdict, requirements_of
from common.config import Share, checked
from common.errors import ConfigError, DataError
from common.files import atomic_folder

VERSION = 2


@checked
@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The settings of a world.

    Args:
        passages: Number of passages; at least 60.
        questions: Number of questions over all splits: 65 % train, 10 % dev, 25 % test.
        seed: Of all draws.
        style_share: Share of the passages that carry turns of phrase of the simulated writer, lightly.
        mixed_share: Share of the passages of the mixed twin that are restyled.
        mixed_strength: Share of the sentences of those that get a turn of phrase.

    Raises:
        ConfigError: Values that make no world; all of them are named.
    """

    passages: Annotated[int, Ge(60)] = 20_000
    questions: Annotated[int, Ge(6)] = 8_000
    seed: Annotated[int, Ge(0)] = 0
    style_share: Share = 0.35
    mixed_share: Share = 0.5
    mixed_strength: Share = 1.0

    def __post_init__(self) -> None:
        """Refuse more passages than there are names for."""
        most = name_capacity() * PASSAGES_PER_COMMUNITY
        if self.passages > most:
            raise ConfigError(f"passages: there are names for at most {most}, got {self.passages}")


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _pattern_record(pattern: Pattern) -> list[str | int | None]:
    return [pattern.relation, *pattern.parts()]


def find_world(data: Path) -> World | None:
    """The world that a BEIR folder was made from, or that its mixed twin lies in; None for other data.

    Args:
        data: The folder.
    """
    for folder in (data, data.parent):
        if (folder / "world.json").is_file():
            return World.open(folder)
    return None


def make_world(config: WorldConfig, out: Path) -> Path:
    """Make a world and write it, whole or not at all.

    The same settings give the same bytes on every machine.

    Args:
        config: Its settings.
        out: Its folder, new or empty.

    Returns:
        The folder.

    Raises:
        DataError: The folder is not empty.
        ConfigError: The passages do not answer as many questions as are asked for.
    """
    with atomic_folder(Path(out)) as folder:
        rng = random.Random(f"world/{VERSION}/{config.seed}")
        communities = make_communities(config.passages, rng)
        passages = make_passages(communities, config.passages, config.style_share, rng)
        drawn = list(make_questions(communities, passages, config.questions, rng))
        rng.shuffle(drawn)

        documents = [
            Document(
                id=f"p{row:06d}", text=passage.text, metadata={"topic": passage.topic, "style": passage.style}
            )
            for row, passage in enumerate(passages)
        ]
        queries: list[Query] = []
        needs: list[dict[str, Any]] = []
        qrels: dict[str, dict[str, dict[str, int]]] = {"train": {}, "train-truth": {}, "dev": {}, "test": {}}
        for number, (need, text, rows) in enumerate(drawn):
            id = f"q{number:05d}"
            queries.append(Query(id=id, text=text, metadata={"kind": need.kind}))
            truth = {documents[row].id: 1 for row in rows}
            if need.split == "train":
                qrels["train-truth"][id] = truth
                qrels["train"][id] = {documents[rng.choice(rows)].id: 1}
            else:
                qrels[need.split][id] = truth
            needs.append(
                {
                    "id": id,
                    "split": need.split,
                    "kind": need.kind,
                    "patterns": [_pattern_record(pattern) for pattern in need.patterns],
                    "kinds": dict(need.kinds),
                    "answers": list(need.answers),
                }
            )
        counts = {
            "communities": len(communities),
            "entities": sum(len(names) for community in communities for names in community.members.values()),
            "facts": sum(len(community.all_facts) for community in communities),
            "passages": len(documents),
            "questions": len(queries),
        }
        write_dataset(folder / "mixed", mixed_corpus(
            documents, share=config.mixed_share, strength=config.mixed_strength, seed=config.seed
        ), queries, qrels)  # fmt: skip
        write_dataset(folder / "plain", documents, queries, qrels)
        for path in sorted((folder / "plain").iterdir()):
            path.rename(folder / path.name)
        (folder / "plain").rmdir()
        _write_lines(
            folder / "truth" / "entities.jsonl",
            (
                {"name": name, "kind": kind, "split": community.split}
                for community in communities
                for kind, names in community.members.items()
                for name in names
            ),
        )
        _write_lines(
            folder / "truth" / "facts.jsonl",
            ({"fact": [f.relation, f.subject, f.object, f.year]} for c in communities for f in c.all_facts),
        )
        _write_lines(folder / "truth" / "needs.jsonl", needs)
        record = {"version": VERSION, "config": asdict(config), "counts": counts}
        (folder / "world.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Path(out)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: missing; make the world again") from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not a line of JSON ({error}); make the world again") from None
    return found


def _said(text: str) -> tuple[list[Fact], list[str]]:
    """What a text states, and what it names."""
    return language.parse(text), language.names_in(language.plain(text))


class World:
    """The truth of a world: what texts state, and what that does for its questions.

    Args:
        config: Its settings.
        entities: Names by kind, in a fixed order.
        splits: Split of each entity.
        facts: All that is true.
        needs: What each question needs, by its id.
    """

    def __init__(
        self,
        config: WorldConfig,
        entities: dict[Kind, list[str]],
        splits: dict[str, str],
        facts: Sequence[Fact],
        needs: dict[str, Need],
    ) -> None:
        self.config = config
        self.entities = entities
        self.splits = splits
        self.facts = list(facts)
        self.needs = needs
        self.oracle = Oracle(facts)
        self._editor = editing.Editor(entities, splits, self.facts, self.oracle)

    @classmethod
    def open(cls, path: Path) -> World:
        """Read a world.

        Args:
            path: Its folder.

        Raises:
            DataError: A file is missing, broken, or of another version.
        """
        path = Path(path)
        try:
            record = json.loads((path / "world.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{path}: no world.json here; make a world with: causalneg world {path}"
            ) from None
        except json.JSONDecodeError as error:
            raise DataError(f"{path / 'world.json'}: not JSON ({error}); make the world again") from None
        version = record.get("version") if isinstance(record, dict) else None
        if version != VERSION:
            raise DataError(
                f"{path}: a world of version {version}, this program reads {VERSION}; make it again"
            )
        try:
            entities: dict[Kind, list[str]] = {}
            splits = {}
            for row in _read_lines(path / "truth" / "entities.jsonl"):
                entities.setdefault(row["kind"], []).append(row["name"])
                splits[row["name"]] = row["split"]
            facts = [Fact(*row["fact"]) for row in _read_lines(path / "truth" / "facts.jsonl")]
            needs = {
                row["id"]: Need(
                    row["id"],
                    row["kind"],
                    tuple(Pattern(*pattern) for pattern in row["patterns"]),
                    row["kinds"],
                    tuple(row["answers"]),
                    row["split"],
                )
                for row in _read_lines(path / "truth" / "needs.jsonl")
            }
            config = WorldConfig(**record["config"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: the files of this world do not fit together ({error}); make it again"
            ) from None
        return cls(config, entities, splits, facts, needs)

    def need(self, query_id: str) -> Need:
        """What a question needs.

        Raises:
            DataError: There is no such question.
        """
        if query_id not in self.needs:
            raise DataError(f"query '{query_id}': not a question of this world")
        return self.needs[query_id]

    def parse(self, text: str) -> list[Fact]:
        """Every fact that a text states, in order; see :func:`causalneg.world.language.parse`."""
        return language.parse(text)

    def answers(self, query_id: str, text: str) -> bool:
        """Whether what a text states answers a question, truly and by itself."""
        return self.verdict(query_id, text) == "answers"

    def verdict(self, query_id: str, text: str) -> TextVerdict:
        """What a text does for a question; see :meth:`causalneg.world.needs.Oracle.verdict`."""
        return self.oracle.verdict(self.need(query_id), *_said(text))

    def requirements(self, query_id: str) -> list[NeedRequirement]:
        """What a text must do to answer a question, one thing at a time."""
        return requirements_of(self.need(query_id))

    def violates(self, query_id: str, text: str) -> list[NeedRequirement]:
        """The fewest requirements that stand between a text and an answer; empty if it states one.

        See :meth:`causalneg.world.needs.Oracle.violated`.
        """
        return self.oracle.violated(self.need(query_id), *_said(text))

    def render(self, facts: Sequence[Fact], rng: random.Random, *, topic: str | None = None) -> str:
        """A passage that states these facts and no other; see :func:`causalneg.world.writing.render`."""
        return writing.render(facts, rng, topic=topic)

    def paraphrase(self, text: str, rng: random.Random) -> str:
        """The same facts in other words; see :func:`causalneg.world.writing.paraphrase`."""
        return writing.paraphrase(text, rng)

    def stylise(self, text: str, strength: float, rng: random.Random) -> str:
        """A text in the simulated writer's manner; see :func:`causalneg.text.style.stylise`."""
        return stylise(text, strength, rng)

    def edit(
        self, query_id: str, text: str, strategy: editing.EditStrategy, rng: random.Random
    ) -> Edit | None:
        """Rewrite a text that answers a question so that one requirement is violated and all others hold.

        See :meth:`causalneg.world.edits.Editor.edit`.
        """
        return self._editor.edit(self.need(query_id), text, strategy, rng)

    def violate_another(self, query_id: str, text: str, rng: random.Random) -> str | None:
        """Let a text that violates one requirement violate another one too.

        See :meth:`causalneg.world.edits.Editor.edit_again`.
        """
        return self._editor.edit_again(self.need(query_id), text, rng)
