"""A small corpus of ordinary English, with a question for each kind of thing that rules can break."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from causalneg.data import Dataset
from causalneg.data.schema import Analysis, Document, Example, Negative, Passage, Query
from causalneg.generation.driver import generate, pairs_from, rewrite_examples
from causalneg.generation.jobs import Failure, Job, done
from causalneg.generation.journal import Journal
from causalneg.generation.verification.heuristics import verify
from causalneg.generation.writers import WRITERS
from causalneg.generation.writers.base import Pair, Writer, Written
from causalneg.text.corpus import Corpus
from causalneg.world import World

TEXTS = {
    "keller-life": (
        "Martin Keller",
        "Martin Keller (born 3 May 1851) was a Swiss engineer. Keller founded the Bern Clock Company "
        "in 1884 and led it for twelve years. In 1899, Keller moved to Vienna, where he taught at a "
        "small college. His letters are kept in a museum.",
    ),
    "keller-work": (
        "Martin Keller",
        "Keller designed large clocks for stations and churches. The clock at Basel was the heaviest "
        "of them. Critics praised the quiet sound of its bells. Visitors still climb the narrow "
        "stairs to see it.",
    ),
    "keller-late": (
        "Martin Keller",
        "In old age the engineer painted mountains in oil. Most of the pictures hang in private "
        "houses near the lake. He sold only a few of them to friends. The garden behind the workshop "
        "is open in summer.",
    ),
    "brandt": (
        "Anna Brandt",
        "Anna Brandt (born 12 June 1849) was a German chemist. Brandt discovered a blue dye in 1881 "
        "and sold it to a factory near Hamburg. She married a printer in 1890. Her notebooks fill "
        "nine boxes.",
    ),
    "meyer": (
        "Oscar Meyer",
        "Oscar Meyer (born 7 March 1862) was an Austrian painter. Meyer painted the harbour of "
        "Trieste in 1903. His sister ran a school in Graz for thirty years. Meyer died in Salzburg "
        "after a long illness.",
    ),
    "hale": (
        "Emma Hale",
        "Emma Hale (born 2 July 1870) was an English writer. Hale wrote four novels about the sea. "
        "Her house in Dover burned down in 1911. Hale said that she never missed it.",
    ),
    "bern": (
        "Bern",
        "Bern is a city in Switzerland on the River Aare. In 1820, 17,552 people lived in Bern. Trams "
        "have run in Bern since 1890. The old town in Bern is built of green stone.",
    ),
    "graz": (
        "Graz",
        "Graz is a city in Austria on the River Mur. Students come to Graz from many countries. A "
        "castle stands on a hill in Graz. Markets in Graz sell pumpkin oil.",
    ),
    "basel": (
        "Basel",
        "Basel is a city in Switzerland on the River Rhine. Chemists have worked in Basel for a long "
        "time. Boats leave Basel for the sea. The zoo in Basel keeps flamingos.",
    ),
    "pendulum": (
        "Pendulum clock",
        "A pendulum clock keeps time with a swinging weight. The pendulum clock loses about ten "
        "seconds a week. Warm air makes the rod longer and the pendulum clock slower. Most of them "
        "stand in halls.",
    ),
    "sundial": (
        "Sundial",
        "A sundial shows the hour by a shadow. The oldest sundial was found in a valley of kings. "
        "Clouds make a sundial useless. Gardens often have one made of stone or brass.",
    ),
    "treaty": (
        "Treaty of Lindau",
        "The Treaty of Lindau ended the war between two towns in 1542. It was signed in a hall called "
        'the "Long Room" by seven councillors. Fishing rights were shared. The paper is lost.',
    ),
    "battle": (
        "Battle of Arlen",
        "The Battle of Arlen was fought in a marsh in 1538. Two hundred men fell on a single morning. "
        "The Battle of Arlen decided nothing. A stone cross marks the place.",
    ),
    "railway": (
        "Mountain railway",
        "The mountain railway climbs to a lake above the clouds. Workers built it in 1893 with simple "
        "tools. Trains leave every hour in summer. Snow closes the line from November to April.",
    ),
}
"""Title and text of each document."""

QUESTIONS = {
    "founded": ("Who or what did Keller found in 1884?", "keller-life"),
    "trams": ("How many people lived in Bern in 1820?", "bern"),
    "clock": ("How much time does a pendulum clock lose in a week?", "pendulum"),
    "treaty": ("Where was the Treaty of Lindau signed?", "treaty"),
    "wrote": ("What did Emma Hale write about?", "hale"),
    "snow": ("From November to which month does snow close the line?", "railway"),
    "dye": ("is anna brandt the chemist who discovered the blue dye", "brandt"),
    "bells": ("What was the heaviest clock that Keller designed?", "keller-work"),
}
"""Text and the document that answers."""

CANDIDATES = {
    "founded": ["keller-late", "keller-work", "brandt"],
    "trams": ["graz", "basel"],
    "clock": ["sundial", "keller-work"],
    "treaty": ["battle"],
    "wrote": ["meyer", "brandt"],
    "snow": ["sundial"],
    "dye": ["meyer", "hale"],
    "bells": ["keller-late", "keller-life"],
}
"""Mined negatives of each question."""


def small_dataset(path: Path) -> Dataset:
    """The corpus and the questions as a data set in memory, which stands for a folder at ``path``."""
    documents = [Document(id=id, title=title, text=text) for id, (title, text) in TEXTS.items()]
    queries = {id: Query(id=id, text=text) for id, (text, _) in QUESTIONS.items()}
    qrels = {"train": {id: {document: 1} for id, (_, document) in QUESTIONS.items()}}
    return Dataset(path=path, documents=documents, queries=queries, qrels=qrels)


def mined_examples(dataset: Dataset) -> list[Example]:
    """A mined set for the questions."""
    return [
        Example(
            query=dataset.queries[id],
            positives=[Passage(document_id=QUESTIONS[id][1])],
            negatives=[Negative(document_id=d, source="mined", backend="bm25") for d in found],
        )
        for id, found in CANDIDATES.items()
    ]


def make_writer(
    name: str, dataset: Dataset, *, world: World | None = None, artifact: float = 0.0, seed: int = 0
) -> Writer:
    """A writer without a model, as a config names it."""
    component = WRITERS.component(name, artifact=artifact)
    return component.build(corpus=Corpus.of(dataset), world=world, seed=seed)


class Counted(Writer):
    """A writer that notes what it is asked, in a file, and may be slow or fail."""

    name = "counted"

    def __init__(self, log: Path, *, settings: str = "", wait: float = 0.0, fail: Sequence[str] = ()) -> None:
        self.log, self.settings, self.wait, self.fail = log, settings, wait, fail

    @property
    def identity(self) -> dict[str, str]:
        return {"writer": self.name, "settings": self.settings}

    def write(self, pair: Pair) -> Job[Written]:
        time.sleep(self.wait)
        with self.log.open("a") as file:
            file.write(f"write {pair.query.id}\n")
        analysis = Analysis(core_need=pair.query.text, how_met="", answer_boundary="", requirements=[])
        if pair.query.id in self.fail:
            return done(Written(failure=Failure("refused", "on purpose")))
        text = f"Not about {pair.query.text}"
        return done(Written(analysis, (Negative(text=text, source="generated", backend="counted"),)))

    def rewrite(self, document: Document) -> Job[Passage | Failure]:
        return done(
            Failure("mute") if document.id == "bern" else Passage(document_id=document.id, text="said")
        )


def all_written() -> list[str]:
    """All that both writers make of the corpus, checked, as JSON lines."""
    data = small_dataset(Path("small"))
    mined = mined_examples(data)
    lines = []
    for name in ("rules", "naive"):
        writer = make_writer(name, data, artifact=0.3)
        checked = verify(generate(pairs_from(mined, data), writer).examples, data)
        voices, _ = rewrite_examples(mined, data, writer)
        lines += [example.model_dump_json() for example in (*checked.kept, *checked.rejected, *voices)]
    return lines


def write_slowly(log: str, journal: str, *, wait: float) -> None:
    """Write for all pairs, one by one, with a pause in every job."""
    data = small_dataset(Path("small"))
    writer = Counted(Path(log), wait=wait)
    with Journal(Path(journal)) as kept:
        generate(
            pairs_from(mined_examples(data), data), writer, ledger=kept.ledger("writer", writer.identity)
        )
