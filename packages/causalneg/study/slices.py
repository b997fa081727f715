"""Where one run is worst: slices of its test queries, and the queries themselves; and its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from causalneg.data import Dataset, read_dataset
from causalneg.data.schema import Query
from causalneg.evaluation.show import cut
from causalneg.study.examples import DEPTH, LETTERS, read_rankings
from causalneg.study.resample import per_query, splits
from causalneg.study.table import NDCG
from causalneg.text.words import words
from common.errors import UserError
from common.report.page.render import Entry, Section, Titled, anchor
from common.report.tables import Table
from common.study.collect import Measure, Run

WORST = 10
"""Slices and queries that are shown."""

FEWEST = 20
"""Queries that a slice needs; below a tenth of all, where these are few."""

LENGTHS = (5, 8, 12, 20)
"""Where ranges of the words of a query begin."""


def data_of(run: Run) -> Dataset | None:
    """Corpus, queries and test judgements of a run; None where they are gone or have changed."""
    from causalneg.training.run import dataset_fingerprint

    config = run.record.config
    tests = list(config.get("tests", []))
    valid = [config["valid_split"]] if config.get("valid_split") else []
    path = Path(str(config.get("data", "")))
    try:
        wanted = tuple(dict.fromkeys([config.get("train_split", "train"), *valid, *tests]))
        if dataset_fingerprint(path, wanted) != run.record.inputs.get("data"):
            return None
        return read_dataset(path, splits=tests)
    except UserError:
        return None


def slices(
    dataset: Dataset, split: str, queries: Mapping[str, float]
) -> Iterator[tuple[str, str, list[str]]]:
    """Slices of the queries of a split: what they are cut by, the value, the queries.

    By their number of words, their first word, their number of relevant documents, and whatever their file
    says of them in words.

    Args:
        dataset: Where the queries are.
        split: Where the judgements are.
        queries: Ids of the queries.
    """
    positives = dataset.positives(split)
    found: dict[tuple[str, str], list[str]] = {}
    for id in queries:
        query = dataset.queries[id]
        relevant = len(positives.get(id, []))
        for place in [
            *_own(query),
            ("relevant documents", str(min(relevant, 5)) + ("+" if relevant > 5 else "")),
        ]:
            found.setdefault(place, []).append(id)
    yield from ((kind, value, ids) for (kind, value), ids in found.items())


def _own(query: Query) -> Iterator[tuple[str, str]]:
    tokens = words(query.text)
    place = int(np.searchsorted(LENGTHS, len(tokens), side="right"))
    edges = (0, *LENGTHS)
    yield (
        "words",
        f"{edges[place]} or more" if place == len(LENGTHS) else f"{edges[place]} to {edges[place + 1] - 1}",
    )
    yield "first word", (tokens[0].lower() if tokens else "none")
    yield from ((name, value) for name, value in query.metadata.items() if isinstance(value, str))


def run_slices(run: Run) -> Section | None:
    """The slices and queries with the lowest nDCG@10; None where nothing was tested or the data are gone."""
    dataset = data_of(run) if run.record.complete and run.record.notes.get("tests") else None
    if dataset is None:
        return None
    tables, entries = [], []
    for split in splits(run):
        values = per_query(run, Measure(NDCG, "", split))
        if not values:
            continue
        mean = sum(values.values()) / len(values)
        fewest = min(FEWEST, max(len(values) // 10, 1))
        found = []
        for kind, value, ids in slices(dataset, split, values):
            if fewest <= len(ids) < len(values):
                own = sum(values[id] for id in ids) / len(ids)
                found.append(
                    (own, [kind, value, str(len(ids)), f"{100 * own:.2f}", f"{100 * (own - mean):+.2f}"])
                )
        found.sort(key=lambda one: one[0])
        headers = ["slice by", "value", "queries", "nDCG@10 x 100", "minus all"]
        title = f"{split}: the lowest of {len(found)} slices with at least {fewest} queries"
        tables.append(Titled(title, Table(headers, [row for _, row in found[:WORST]], "llrrr")))
        entries.append(_worst_queries(run, dataset, split, values))
    return Section("Worst slices", tables=tables, entries=entries) if tables else None


def _worst_queries(run: Run, dataset: Dataset, split: str, values: Mapping[str, float]) -> Entry:
    worst = sorted(values, key=lambda id: (values[id], id))[:WORST]
    path = run.folder / "eval" / str(run.record.notes["evaluated"][split]) / "run.trec"
    rankings = read_rankings(path, worst, 10**6)
    inner = []
    for id in worst:
        judged, ranked = dataset.judged(split).get(id, {}), rankings[id]
        relevant = [document for document, grade in judged.items() if grade > 0 and document in dataset.index]
        place = {document: rank for rank, document in enumerate(ranked, 1)}
        rows: list[list[str]] = []
        hits: list[int] = []
        for document in dict.fromkeys([*ranked[:DEPTH], *relevant[:DEPTH]]):
            good = judged.get(document, 0) > 0
            hits += [len(rows)] if good else []
            rank = str(place.get(document, f"> {len(ranked)}"))
            text = cut(dataset.document(document).content, LETTERS)
            rows.append([rank, "relevant" if good else "", f"{document}: {text}"])
        table = Titled("Ranking", Table(["rank", "judged", "document"], rows, "rll"), prose=True, hits=hits)
        title = f"nDCG@10 {values[id]:.3f}: {dataset.queries[id].text}"
        inner.append(Entry(anchor("worst", split, id), title, facts=[("query", id)], tables=[table]))
    none = sum(value == 0 for value in values.values())
    text = f"{none} of {len(values)} queries have an nDCG@10 of 0."
    return Entry(
        anchor("worst", split), f"{split}: the {len(inner)} worst queries", text=[text], entries=inner
    )


def run_data(run: Run) -> Section | None:
    """What a run was trained and tested on, as its record says; None before it is finished."""
    notes = run.record.notes
    names = {
        "documents": "documents",
        "train_queries": "training queries",
        "candidates": "negatives a query, mean",
        "short_of_candidates": "queries with fewer negatives than asked for",
        "texts_cut": "texts longer than the encoder reads",
    }
    facts = [("folder", str(run.record.config.get("data", "")))]
    facts += [(words, f"{notes[name]:g}") for name, words in names.items() if name in notes]
    sets = run.record.config.get("sets") or []
    facts += [("set", f"{one['path']}, {one['count']} a query") for one in sets]
    return Section("Data", facts=facts) if run.record.complete else None
