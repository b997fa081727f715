"""What is in a training set or a corpus: lengths, overlaps, requirements and strategies, examples."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from causalneg.data import Dataset, read_dataset, read_examples, resolve_passage
from causalneg.data.dataset import text_key
from causalneg.data.schema import Example, Negative, Passage
from causalneg.text.words import content_words, words
from common.errors import DataError
from common.files import beside
from common.report.page.charts import bar_chart
from common.report.page.render import Entry, Page, Section, Titled, anchor
from common.report.panels import Panel, Series
from common.report.tables import MISSING, Table, format_number

LETTERS = 400
"""Letters of a text that are shown of an example."""

MEASURED = 4000
"""Texts of a source that lengths and overlaps are measured on, spread evenly."""

BINS = 12
"""Bars of a histogram of lengths."""

NEGATIVES = 4
"""Negatives of a source that are shown of an example."""

POSITIVE = "positive"


def cut(text: str, letters: int) -> str:
    """A text, cut at a word where it is longer than so many letters."""
    if len(text) <= letters:
        return text
    return f"{text[:letters].rsplit(' ', 1)[0]} ..."


def negatives_table(negatives: Sequence[Negative], dataset: Dataset | None, letters: int = LETTERS) -> Table:
    """Negatives with where they come from.

    Args:
        negatives: The negatives.
        dataset: Where texts stand that they do not hold themselves.
        letters: Letters of a text that are shown.
    """
    rows = []
    for one in negatives:
        verdict = "" if one.verdict is None else f"{one.verdict.reason} ({one.verdict.judge})"
        rank = "" if one.rank is None else f", rank {one.rank}"
        text = cut(resolve_passage(one, dataset), letters)
        breaks = f" [breaks: {one.requirement}]" if one.requirement else ""
        rows.append([f"{one.source}, {one.backend}{rank}", one.strategy or "", verdict, f"{text}{breaks}"])
    columns = ["source", "strategy", "verdict", "text"]
    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return Table([columns[i] for i in filled], [[row[i] for i in filled] for row in rows], "l" * len(filled))


def spread_over(count: int, most: int = MEASURED) -> range:
    """At most so many places, spread evenly."""
    return range(0, count, max(1, -(-count // most)))


def length_panel(title: str, lengths: Mapping[str, Sequence[int]]) -> Panel:
    """Share of texts by their length in words, in equal ranges up to the 99th percentile.

    Args:
        title: Title.
        lengths: Lengths of each kind of text, by its name.
    """
    every = [length for one in lengths.values() for length in one]
    top = int(np.percentile(every, 99)) + 1 if every else 1
    step = max(1, -(-top // BINS))
    edges = [step * place for place in range(-(-top // step) + 1)]
    names = [f"{low} to {low + step - 1}" if step > 1 else str(low) for low in edges[:-1]]
    names.append(f"{edges[-1]} or more")
    series = []
    for name, values in lengths.items():
        counts = np.histogram(values, bins=[*edges, np.inf])[0]
        series.append(Series(name, names, [100 * float(c) / max(len(values), 1) for c in counts]))
    return Panel(title, series, "words", "% of the texts")


def _figures(values: Sequence[float] | Sequence[int], digits: int) -> list[str]:
    if not values:
        return [MISSING] * 4
    found = (float(np.mean(values)), *(float(np.percentile(values, part)) for part in (10, 50, 90)))
    return [format_number(value, digits) for value in found]


def covered(of: set[str], by: set[str]) -> float | None:
    """Share of some words that stand among others; None without any."""
    return len(of & by) / len(of) if of else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def set_page(path: Path, *, data: Path | None = None, examples: int = 5, seed: int = 0) -> Page:
    """A page about a training set.

    Args:
        path: Its file, in this project's own form.
        data: BEIR folder that texts are read from which the set does not hold.
        examples: Examples that are shown, drawn at random.
        seed: Decides which.

    Raises:
        DataError: A file cannot be read, or texts are missing and no data set is given.
    """
    found = read_examples(path)
    dataset = read_dataset(data, splits=[]) if data is not None else None
    needed = next((p for e in found for p in (*e.positives, *e.negatives) if p.text is None), None)
    if dataset is None and needed is not None:
        raise DataError(
            f"{path}: the text of document '{needed.document_id}' is not in the set; "
            "name its data set with --data"
        )
    kinds = _kinds(found)
    rejected_file = beside(path, ".rejected.jsonl")
    rejected = read_examples(rejected_file) if rejected_file.is_file() else []
    missing = [] if rejected else [f"No rejected negatives: there is no {rejected_file.name}."]
    largest = max((len(one) for one in kinds.values()), default=0)
    if largest > MEASURED:
        missing.append(f"Lengths and overlaps are those of at most {MEASURED} texts a source, spread evenly.")
    sections = [
        _sources(found, kinds, dataset),
        *_written(found, rejected),
        _examples(found, rejected, dataset, examples, seed),
    ]
    return Page(
        "Training set", path.name, f"What is in {path}?", _set_answer(found, kinds), missing, sections
    )


Kinds = dict[str, list[tuple[Example, Passage]]]
"""The texts of a set by where they come from."""


def _kinds(examples: Sequence[Example]) -> Kinds:
    found: Kinds = {POSITIVE: [(e, p) for e in examples for p in e.positives]}
    for example in examples:
        for negative in example.negatives:
            found.setdefault(f"{negative.source}, {negative.backend}", []).append((example, negative))
    return found


def _set_answer(examples: Sequence[Example], kinds: Kinds) -> list[str]:
    parts = [f"{len(texts):,} {kind}" for kind, texts in kinds.items() if kind != POSITIVE]
    none = sum(not e.negatives for e in examples)
    held = sum(any(_same(n, p) for p in e.positives) for e in examples for n in e.negatives)
    answer = [f"{len(examples):,} queries; negatives: {', '.join(parts) or 'none'}."]
    answer.append(f"{none:,} queries have no negative; {held:,} negatives are a positive of their own query.")
    return answer


def _same(one: Negative, other: Passage) -> bool:
    if one.text is None or other.text is None:
        return one.text is None and other.text is None and one.document_id == other.document_id
    return text_key(one.text) == text_key(other.text)


def _sources(examples: Sequence[Example], kinds: Kinds, dataset: Dataset | None) -> Section:
    rows, lengths, shares = [], dict[str, list[int]](), dict[str, list[float]]()
    for kind, texts in kinds.items():
        if not texts:
            continue
        chosen = [texts[place] for place in spread_over(len(texts))]
        read = [resolve_passage(passage, dataset) for _, passage in chosen]
        lengths[kind] = [len(words(text)) for text in read]
        stems = [set(content_words(text)) for text in read]
        asked = [set(content_words(example.query.text)) for example, _ in chosen]
        right = [set(content_words(resolve_passage(e.positives[0], dataset))) for e, _ in chosen]
        shares[kind] = _known(covered(query, text) for query, text in zip(asked, stems, strict=True))
        with_positive = _known(covered(text, one) for text, one in zip(stems, right, strict=True))
        rows.append([
            kind, f"{len(texts):,}", f"{len(texts) / len(examples):.2f}", *_figures(lengths[kind], 0),
            *_figures(shares[kind], 2)[:1],
            *(_figures(with_positive, 2)[:1] if kind != POSITIVE else [""]),
        ])  # fmt: skip
    headers = ["source", "texts", "a query", "words, mean", "10 %", "50 %", "90 %",
               "of the query's words", "of its words in the positive"]  # fmt: skip
    tenths = [f"{10 * place} to {10 * place + 10} %" for place in range(10)]
    series = []
    for kind, values in shares.items():
        counts = np.histogram(values, bins=np.linspace(0, 1, 11))[0]
        series.append(Series(kind, tenths, [100 * float(c) / max(len(values), 1) for c in counts]))
    charts = [bar_chart(length_panel("Length", lengths))] if lengths else []
    if series:
        charts.append(
            bar_chart(Panel("Share of the query's words in a text", series, "share", "% of the texts"))
        )
    return Section(
        "Texts by source",
        text=[
            "Overlaps are shares of different content words, reduced to their stems: of the query's words "
            "those that a text has, and of a negative's words those that stand in the positive."
        ],
        charts=charts,
        tables=[Titled("Lengths and overlaps", Table(headers, rows))],
    )


def _named(values: Iterable[str | None]) -> list[str]:
    return [value or "none" for value in values]


def _written(examples: Sequence[Example], rejected: Sequence[Example]) -> list[Section]:
    kept = [n for e in examples for n in e.negatives if n.source == "generated"]
    refused = [n for e in rejected for n in e.negatives if n.source == "generated"]
    if not kept and not refused:
        return []
    tables = []
    for title, names in (
        ("Strategies", _named(n.strategy for n in (*kept, *refused))),
        ("Requirements by what they are about", _named(n.facet for n in (*kept, *refused))),
    ):
        first = names[: len(kept)]
        rows = [
            [name, str(count), str(first.count(name)), f"{100 * first.count(name) / count:.1f} %"]
            for name, count in Counter(names).most_common()
        ]
        tables.append(Titled(title, Table([title.split()[0].lower(), "written", "kept", "of them"], rows)))
    verdicts = Counter(
        (n.verdict.reason, n.verdict.judge) if n.verdict is not None else ("not verified", "")
        for n in (*kept, *refused)
    )
    rows = [[reason, judge, str(count)] for (reason, judge), count in verdicts.most_common()]
    tables.append(Titled("Verdicts", Table(["verdict", "judge", "negatives"], rows, "llr")))
    strategies = Counter(_named(n.strategy for n in kept))
    order = [name for name, _ in strategies.most_common()]
    panel = Panel(
        "Kept negatives by strategy",
        [Series("negatives", order, [float(strategies[name]) for name in order])],
        "strategy",
    )
    return [
        Section(
            "Written negatives",
            text=[f"{len(kept):,} are in the set, {len(refused):,} were rejected."],
            charts=[bar_chart(panel)] if kept else [],
            tables=tables,
        )
    ]


def _examples(
    examples: Sequence[Example], rejected: Sequence[Example], dataset: Dataset | None, count: int, seed: int
) -> Section:
    drawn = random.Random(seed).sample(range(len(examples)), min(count, len(examples)))
    refused = {e.query.id: e.negatives for e in rejected}
    entries = []
    for place in sorted(drawn):
        example = examples[place]
        shown: list[Negative] = []
        for source in dict.fromkeys(n.source for n in example.negatives):
            shown += [n for n in example.negatives if n.source == source][:NEGATIVES]
        tables = [Titled("Negatives", negatives_table(shown, dataset), prose=True)] if shown else []
        if (more := refused.get(example.query.id)) is not None:
            tables.append(Titled("Rejected", negatives_table(more[:NEGATIVES], dataset), prose=True))
        left = len(example.negatives) - len(shown)
        entries.append(Entry(
            anchor("example", example.query.id),
            example.query.text,
            text=[f"Positive: {cut(resolve_passage(p, dataset), LETTERS)}" for p in example.positives[:2]],
            facts=[("query", example.query.id), ("negatives left out here", str(left))],
            tables=tables,
        ))  # fmt: skip
    return Section("Examples", text=[f"{len(entries)} drawn at random, seed {seed}."], entries=entries)


def corpus_page(path: Path, *, examples: int = 5, seed: int = 0) -> Page:
    """A page about a corpus with its queries and judgements.

    Args:
        path: The folder.
        examples: Queries of each split that are shown, drawn at random.
        seed: Decides which.

    Raises:
        DataError: It cannot be read.
    """
    dataset = read_dataset(path)
    counts = {split: len(dataset.judged_queries(split)) for split in dataset.qrels}
    parts = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    answer = [
        f"{len(dataset.documents):,} documents, {len(dataset.queries):,} queries; judged: {parts or 'none'}."
    ]
    missing = []
    if len(dataset.documents) > MEASURED:
        missing.append(f"Lengths and overlaps are those of at most {MEASURED} texts a kind, spread evenly.")
    sections = [
        _texts(dataset),
        _corpus_checks(dataset),
        _queries(dataset, examples, seed),
        Section("Where it is", facts=[("folder", str(path)), ("fingerprint", dataset.fingerprint)]),
    ]
    return Page("Corpus", dataset.name, f"What is in {path}?", answer, missing, sections, dataset.fingerprint)


def _texts(dataset: Dataset) -> Section:
    documents = [dataset.documents[i].content for i in spread_over(len(dataset.documents))]
    lengths = {"documents": [len(words(text)) for text in documents]}
    rows = [["documents", f"{len(dataset.documents):,}", *_figures(lengths["documents"], 0), "", ""]]
    asked: dict[str, list[int]] = {}
    for split in dataset.qrels:
        queries, positives = dataset.split_queries(split), dataset.positives(split)
        chosen = [queries[place] for place in spread_over(len(queries))]
        asked[split] = [len(words(query.text)) for query in chosen]
        overlaps = _known(
            covered(
                set(content_words(q.text)), set(content_words(dataset.document(positives[q.id][0]).content))
            )
            for q in chosen
        )
        each = [float(len(positives[query.id])) for query in queries]
        rows.append([f"queries, {split}", f"{len(queries):,}", *_figures(asked[split], 0),
                     *_figures(each, 2)[:1], *_figures(overlaps, 2)[:1]])  # fmt: skip
    headers = ["texts", "number", "words, mean", "10 %", "50 %", "90 %", "positives a query",
               "of its words in the positive"]  # fmt: skip
    charts = [bar_chart(length_panel("Length of documents", lengths))]
    if asked:
        charts.append(bar_chart(length_panel("Length of queries", asked)))
    return Section("Lengths and overlaps", charts=charts, tables=[Titled("Texts", Table(headers, rows))])


def _corpus_checks(dataset: Dataset) -> Section:
    copies = Counter(text_key(document.content) for document in dataset.documents)
    twice = sum(count - 1 for count in copies.values())
    rows = [["documents with the text of another", str(twice), "look" if twice else "fine"]]
    texts = {
        split: {text_key(query.text) for query in dataset.judged_queries(split)} for split in dataset.qrels
    }
    splits = list(texts)
    for place, one in enumerate(splits):
        for other in splits[place + 1 :]:
            both = len(texts[one] & texts[other])
            rows.append([f"queries of {one} that are also in {other}", str(both), "look" if both else "fine"])
    queries = set(copies) & {key for one in texts.values() for key in one}
    rows.append(["queries that are a document", str(len(queries)), "look" if queries else "fine"])
    known = {document.id for document in dataset.documents}
    lost = {
        d for judged in dataset.qrels.values() for grades in judged.values() for d in grades if d not in known
    }
    rows.append(["judged documents that are not in the corpus", str(len(lost)), "look" if lost else "fine"])
    return Section("Checks", tables=[Titled("Copies and leaks", Table(["check", "found", ""], rows, "lrl"))])


def _queries(dataset: Dataset, count: int, seed: int) -> Section:
    entries = []
    for split in dataset.qrels:
        queries, positives = dataset.split_queries(split), dataset.positives(split)
        drawn = random.Random(seed).sample(range(len(queries)), min(count, len(queries)))
        inner = []
        for query in (queries[place] for place in sorted(drawn)):
            grades = dataset.judged(split)[query.id]
            rows = [[id, str(grades[id]), cut(dataset.document(id).content, LETTERS)]
                    for id in positives[query.id][:NEGATIVES]]  # fmt: skip
            table = Titled(
                "Relevant documents", Table(["document", "grade", "text"], rows, "lrl"), prose=True
            )
            inner.append(Entry(anchor("query", split, query.id), query.text, facts=[("query", query.id)],
                               tables=[table]))  # fmt: skip
        if inner:
            entries.append(Entry(anchor("split", split), f"{split}: {len(inner)} queries", entries=inner))
    return Section("Examples", text=[f"Drawn at random, seed {seed}."], entries=entries)
