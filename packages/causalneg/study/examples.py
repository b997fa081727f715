"""What stands behind the numbers of a retrieval study: queries, their rankings, what was trained on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from causalneg.data import Dataset, read_dataset, resolve_passage
from causalneg.data.schema import Example, Query
from causalneg.evaluation.show import cut, negatives_table
from causalneg.study.resample import per_query
from causalneg.study.table import NDCG, VIEWS, Arms, RetrievalReport, arms_of, views_of
from common.files import beside
from common.report.page.render import Entry, Section, Titled, anchor
from common.report.tables import Table
from common.study.collect import Measure, Run
from common.study.extremes import Extremes, extremes, mean_by_unit

SAMPLED = 3
"""Queries of each kind that a cell leads to."""

DEPTH = 5
"""Documents of each ranking that are shown."""

NEGATIVES = 3
"""Negatives of a set that are shown of a training query, and as many that were rejected."""

LETTERS = 240
"""Letters of a text that are shown."""

_QUERY_OF_LINE = re.compile(r'\{"query":\s*\{"id":\s*"([^"\\]*)"')


@dataclass(frozen=True)
class Cell:
    """A difference of the main table.

    Args:
        arms: The arms of its encoder.
        arm: The arm.
        split: The test split.
        view: The view of the corpus.
        found: Which queries changed.
        levels: nDCG@10 of each query, mean over seeds, in the reference and in the arm.
    """

    arms: Arms
    arm: str
    split: str
    view: str
    found: Extremes
    levels: tuple[Mapping[str, float], Mapping[str, float]]

    @property
    def anchor(self) -> str:
        """The anchor of its entry."""
        return cell_anchor(self.arms, self.arm, self.split, self.view)

    @property
    def queries(self) -> list[str]:
        """The queries that are shown."""
        return list(self.found.change)


def cell_anchor(arms: Arms, arm: str, split: str, view: str) -> str:
    """The anchor of what is behind a difference of the main table."""
    return anchor("changes", arms.encoder, arm, split, VIEWS[view])


def find_cells(report: RetrievalReport) -> list[Cell]:
    """Every difference of the main tables, with the queries that changed."""
    cells = []
    for arms in arms_of(report):
        for split in arms.splits:
            for view in views_of(report):
                measure = Measure(NDCG, view, split)
                values = {
                    arm: mean_by_unit([per_query(run, measure) for run in arms.of(arm)]) for arm in arms.names
                }
                reference = values[arms.reference]
                for arm in (name for name in arms.names if name != arms.reference):
                    queries = [query for query in values[arm] if query in reference]
                    change = np.array([values[arm][query] - reference[query] for query in queries])
                    if queries:
                        levels = (reference, values[arm])
                        cells.append(Cell(arms, arm, split, view, extremes(queries, change, SAMPLED), levels))
    return cells


def read_rankings(path: Path, queries: Collection[str], depth: int) -> dict[str, list[str]]:
    """The first documents of some queries in a TREC run file.

    Args:
        path: The file.
        queries: Ids of the queries.
        depth: Documents of each.
    """
    found: dict[str, list[str]] = {query: [] for query in queries}
    with path.open(encoding="utf-8") as file:
        for line in file:
            query = line.split(maxsplit=1)[0]
            if query in found and len(found[query]) < depth:
                found[query].append(line.split()[2])
    return found


class Shelf:
    """What entries are made of, each file read once.

    Args:
        report: The study.
        cells: What is to be shown.
    """

    def __init__(self, report: RetrievalReport, cells: Sequence[Cell]) -> None:
        self._wanted: dict[Path, set[str]] = {}
        for cell in cells:
            for arm in (cell.arm, cell.arms.reference):
                self._wanted.setdefault(_run_file(cell, arm), set()).update(cell.queries)
        self._rankings: dict[Path, dict[str, list[str]]] = {}
        splits = list(dict.fromkeys(cell.split for cell in cells))
        prepared = report.prepared
        self.train = read_dataset(prepared.data, splits=[*splits, report.study.train_split])
        self._corpora = {"": self.train}
        if prepared.mixed is not None and any(cell.view for cell in cells):
            self._corpora["mixed"] = read_dataset(prepared.mixed, splits=splits)

    def corpus(self, view: str) -> Dataset:
        """The corpus of a view."""
        return self._corpora[view]

    def ranking(self, cell: Cell, arm: str, query: str) -> list[str]:
        """Ids of the documents that an arm's first seed found, the best first; as deep as was written."""
        path = _run_file(cell, arm)
        if path not in self._rankings:
            self._rankings[path] = read_rankings(path, self._wanted[path], 10**6)
        return self._rankings[path][query]


def _run_file(cell: Cell, arm: str) -> Path:
    run = cell.arms.of(arm)[0]
    name = str(run.record.notes["evaluated"][cell.split + ("/mixed" if cell.view else "")])
    return run.folder / "eval" / name / "run.trec"


def _ranking_table(cell: Cell, shelf: Shelf, query: str) -> Titled:
    """Both rankings as one table: a document a row, its rank in each."""
    corpus = shelf.corpus("mixed" if cell.view else "")
    arms = (cell.arms.reference, cell.arm)
    ranked = [shelf.ranking(cell, arm, query) for arm in arms]
    place = [{document: rank for rank, document in enumerate(one, 1)} for one in ranked]
    judged = corpus.judged(cell.split).get(query, {})
    relevant = [document for document, grade in judged.items() if grade > 0][:DEPTH]
    shown = dict.fromkeys([*ranked[0][:DEPTH], *ranked[1][:DEPTH], *relevant])
    never = 10**9
    order = sorted(shown, key=lambda one: (min(p.get(one, never) for p in place), place[1].get(one, never)))
    rows, hits = [], []
    for place_of_row, document in enumerate(order):
        grade = judged.get(document)
        word = "" if grade is None else f"relevant ({grade})" if grade > 0 else f"not relevant ({grade})"
        ranks = [str(one[document]) if document in one else f"> {len(ranked[0])}" for one in place]
        text = (
            cut(corpus.document(document).content, LETTERS)
            if document in corpus.index
            else "not in the corpus"
        )
        rows.append([*ranks, word, f"{document}: {text}"])
        if grade is not None and grade > 0:
            hits.append(place_of_row)
    title = f"Both rankings, seed {cell.arms.of(cell.arm)[0].spec.seed}"
    return Titled(title, Table([f"rank, {arms[0]}", f"rank, {arms[1]}", "judged", "document"], rows, "rrll"),
                  prose=True, hits=hits)  # fmt: skip


@dataclass
class _Wanted:
    """A training query that something leads to, and the sets that are to be shown of it."""

    query: Query
    sets: dict[str, int] = field(default_factory=dict)


def sets_of(run: Run) -> dict[str, int]:
    """The training sets of a run by their names in the study, with the negatives of each it trains on."""
    found = {str(entry["path"]): int(entry["count"]) for entry in run.spec.config.get("sets", [])}
    return {name: count for name, count in found.items() if count}


class Nearest:
    """Finds the training query whose words are most like those of another: cosine of tf-idf.

    Args:
        queries: The training queries.
    """

    def __init__(self, queries: Sequence[Query]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._queries = list(queries)
        self._vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b")
        self._vectors = self._vectorizer.fit_transform(query.text for query in queries)

    def __call__(self, texts: Sequence[str]) -> list[Query]:
        """The most similar training query of each text."""
        if not texts:
            return []
        cosine = self._vectorizer.transform(texts) @ self._vectors.T
        return [self._queries[row] for row in np.asarray(cosine.argmax(axis=1)).ravel()]


def query_entry(cell: Cell, shelf: Shelf, query: str, near: Query | None) -> Entry:
    """A query: both rankings with judgements, and the way to what was trained on.

    Args:
        cell: The two arms.
        shelf: What entries are made of.
        query: Its id.
        near: The most similar training query; None where no negatives were trained on.
    """
    text = shelf.corpus("").queries[query].text
    links = []
    if near is not None:
        links = [
            (
                f"Trained on for the most similar training query: {cut(near.text, LETTERS)}",
                _training_anchor(near),
            )
        ]
    names = (cell.arms.reference, cell.arm)
    levels = ", ".join(f"{name} {one[query]:.3f}" for name, one in zip(names, cell.levels, strict=True))
    return Entry(
        f"{cell.anchor}.{anchor(query)}",
        text,
        f"{cell.found.change[query]:+.3f}",
        facts=[("query", query), ("nDCG@10, mean over seeds", levels)],
        tables=[_ranking_table(cell, shelf, query)],
        links=links,
    )


def _training_anchor(query: Query) -> str:
    return anchor("trained", query.id)


def read_some(path: Path, queries: Collection[str]) -> dict[str, Example]:
    """The examples of some queries of a training set, without the others being parsed.

    Args:
        path: The set.
        queries: Ids of the queries.
    """
    found = {}
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                start = _QUERY_OF_LINE.match(line)
                if line.strip() and (start is None or start[1] in queries):
                    example = Example.model_validate_json(line)
                    if example.query.id in queries:
                        found[example.query.id] = example
    return found


def _training_entries(
    report: RetrievalReport, shelf: Shelf, wanted: Mapping[str, _Wanted]
) -> Iterator[Entry]:
    """What was trained on for some queries: positives and, set by set, negatives and what was rejected."""
    read: dict[str, list[dict[str, Example]]] = {}
    for name in dict.fromkeys(name for one in wanted.values() for name in one.sets):
        own = {id for id, one in wanted.items() if name in one.sets}
        file = report.prepared.sets[name]
        read[name] = [read_some(path, own) for path in (file, beside(file, ".rejected.jsonl"))]
    for id, one in wanted.items():
        tables, positives = [], dict[str, None]()
        for name, count in one.sets.items():
            kept, rejected = (part.get(id) for part in read[name])
            for title, example, most in (
                (f"{name}: {count} a query are trained on", kept, min(NEGATIVES, count)),
                (f"{name}: rejected, not trained on", rejected, NEGATIVES),
            ):
                if example is None or not example.negatives:
                    continue
                positives |= {resolve_passage(p, shelf.train): None for p in example.positives}
                more = len(example.negatives) - most
                title += f"; {most} of {len(example.negatives)} in the set" if more > 0 else ""
                tables.append(
                    Titled(title, negatives_table(example.negatives[:most], shelf.train, LETTERS), prose=True)
                )
        yield Entry(
            anchor=_training_anchor(one.query),
            title=one.query.text,
            text=[f"Positive: {cut(text, LETTERS)}" for text in list(positives)[:2]],
            facts=[("training query", id)],
            tables=tables,
        )


def examples(report: RetrievalReport) -> Section | None:
    """From a cell of the main table to queries, rankings and negatives; None where nothing is compared."""
    cells = find_cells(report)
    if not cells:
        return None
    shelf, groups, wanted = Shelf(report, cells), dict[str, list[Entry]](), dict[str, _Wanted]()
    trained = shelf.train.split_queries(report.study.train_split)
    nearest = Nearest(trained) if trained else None
    for cell in cells:
        names = (cell.arms.reference, cell.arm)
        sets = {k: v for name in names for k, v in sets_of(cell.arms.of(name)[0]).items()}
        near: list[Query] | list[None] = [None] * len(cell.queries)
        if sets and nearest is not None:
            near = nearest([shelf.train.queries[query].text for query in cell.queries])
        inner = []
        for query, similar in zip(cell.queries, near, strict=True):
            if similar is not None:
                wanted.setdefault(similar.id, _Wanted(similar)).sets.update(sets)
            inner.append(query_entry(cell, shelf, query, similar))
        where = f"{cell.split}, {VIEWS[cell.view]} corpus, {cell.arms.encoder}"
        title = f"{where}: arms against {cell.arms.reference}"
        entry = Entry(cell.anchor, cell.arm, text=[cell.found.counts("queries")], entries=inner)
        groups.setdefault(title, []).append(entry)
    entries = [Entry(anchor("changes", title), title, entries=inner) for title, inner in groups.items()]
    if wanted:
        entries.append(Entry(
            anchor("trained"), "Training queries with their negatives",
            text=["The training queries most similar by words to those above, with the sets of both arms."],
            entries=list(_training_entries(report, shelf, wanted)),
        ))  # fmt: skip
    return Section(
        "Queries that gained and lost most",
        text=[
            "Every difference of the main table leads here: the queries whose nDCG@10, mean over seeds, "
            "changed most, with both rankings of the first seed and what was trained on.",
            f"Shown are at most {SAMPLED} queries that gained and {SAMPLED} that lost a cell, the first "
            f"{DEPTH} documents of each ranking and up to {DEPTH} relevant ones, {NEGATIVES} negatives a "
            f"set, {LETTERS} letters a text; all others are left out here and stand in the runs' folders.",
        ],
        entries=entries,
    )
