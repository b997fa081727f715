"""From mined sets to written ones: pairs, two calls, a journal that survives a kill, a card of the result."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from pydantic import TypeAdapter
from tqdm import tqdm

from causalneg.data import Dataset, resolve_passage
from causalneg.data.schema import Analysis, Document, Example, Negative, Passage, Source
from causalneg.generation.journal import Journal, Record, Step
from causalneg.generation.verification.heuristics import Verification
from causalneg.generation.writers.base import Failure, Pair, Writer
from causalneg.text.corpus import Corpus
from causalneg.text.words import content_words, words
from common.errors import ConfigError
from common.report.tables import format_number, markdown_table

SCHEMA_VERSION = 1
"""Of the journal's records; another one starts a new generation set."""

_T = TypeVar("_T")
_NEGATIVES = TypeAdapter(list[Negative])
_CARD_TEXTS = 4000
_FOLDS = 5


def pairs_from(examples: Sequence[Example], dataset: Dataset, *, candidates: int = 5) -> list[Pair]:
    """One pair for each example: its query, its first positive, its best mined negatives as candidates.

    Args:
        examples: A training set, usually mined.
        dataset: Where its documents are.
        candidates: Mined negatives to pass on.

    Raises:
        ConfigError: ``candidates`` is negative.
        DataError: A passage names a document that is not there.
    """
    if candidates < 0:
        raise ConfigError(f"candidates: must not be negative, got {candidates}")
    pairs = []
    for example in examples:
        mined = [n for n in example.negatives if n.source == "mined"][:candidates]
        positive = _document(example.positives[0], dataset)
        pairs.append(Pair(example.query, positive, tuple(_document(n, dataset) for n in mined)))
    return pairs


def _document(passage: Passage, dataset: Dataset) -> Document:
    if passage.text is None:
        return dataset.document(str(passage.document_id))
    return Document(id=passage.document_id or "", title=passage.title, text=passage.text)


def _document_key(document: Document) -> str:
    return _digest(document.id, document.title, document.text)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def pair_key(pair: Pair) -> str:
    """What a pair is called in a journal: a hash of all its texts."""
    texts = [part for d in (pair.positive, *pair.candidates) for part in (d.id, d.title, d.text)]
    return _digest(pair.query.id, pair.query.text, *texts)


def writer_settings(writer: Writer) -> dict[str, str]:
    """What decides the texts of a writer; texts of equal settings may be mixed.

    Args:
        writer: The writer.
    """
    return {
        "writer": writer.name,
        "model": writer.model,
        "prompts": writer.prompt_version,
        "seed": str(writer.seed),
        "settings": writer.settings,
        "schema": str(SCHEMA_VERSION),
    }


def _warn(line: str) -> None:
    click.echo(line, err=True)


def generate(
    pairs: Sequence[Pair],
    writer: Writer,
    *,
    journal: Path | None = None,
    progress: bool = False,
    batch: int = 256,
    report: Callable[[str], None] = _warn,
) -> list[Example]:
    """Write negatives for pairs: analysis first, then up to three negatives each.

    With a journal every finished step is kept. A run that was stopped, however hard, goes on where it was:
    what is in the journal is never asked of the writer again, failures included.

    Args:
        pairs: What to write for.
        writer: Who writes.
        journal: File to keep finished steps in; None keeps nothing.
        progress: Whether to show a progress bar.
        batch: Pairs that are given to the writer at once; the journal is put on the disk after each call.
        report: Where lines for the user go.

    Returns:
        An example for every pair, in order; without negatives where the writer failed.

    Raises:
        ConfigError: ``batch`` is not positive.
        DataError: The journal is open elsewhere, or broken.
    """
    if batch < 1:
        raise ConfigError(f"batch: must be at least 1, got {batch}")
    examples: list[Example] = []
    failures: Counter[str] = Counter()
    with ExitStack() as stack:
        kept = None
        if journal is not None:
            kept = stack.enter_context(Journal(journal, writer_settings(writer), report=report))
            kept.begin(len(pairs))
        bar = stack.enter_context(
            tqdm(total=len(pairs), unit="pair", desc=f"write ({writer.name})", disable=not progress)
        )
        for start in range(0, len(pairs), batch):
            some = pairs[start : start + batch]
            for pair, written in zip(some, _generate(some, writer, kept), strict=True):
                if isinstance(written, Failure):
                    failures[written.reason] += 1
                    written = []
                examples.append(
                    Example(query=pair.query, positives=[_passage(pair.positive)], negatives=written)
                )
            bar.update(len(some))
            if failures:
                bar.set_postfix(failed=failures.total())
    if failures:
        kinds = ", ".join(f"{reason} {number}" for reason, number in failures.most_common())
        report(f"{failures.total()} of {len(pairs)} pairs have no written negatives: {kinds}")
    return examples


def _passage(document: Document) -> Passage:
    """A document of the corpus by its id; any other with its text."""
    if document.id:
        return Passage(document_id=document.id)
    return Passage(text=document.text, title=document.title)


def _generate(
    pairs: Sequence[Pair], writer: Writer, journal: Journal | None
) -> list[list[Negative] | Failure]:
    """Both calls for some pairs; what a pair is missing is asked for once, even if it is there twice."""
    keys = [pair_key(pair) for pair in pairs]
    place = {key: i for i, key in reversed(list(enumerate(keys)))}
    steps = _Steps(journal, pairs, place)

    analyses: dict[str, Analysis | Failure] = {}
    todo = steps.known("analysis", sorted(place, key=place.__getitem__), analyses, Analysis.model_validate)
    asked = [pairs[place[key]] for key in todo]
    for key, analysis in zip(todo, writer.analyse(asked) if todo else [], strict=True):
        analyses[key] = analysis
        steps.keep("analysis", key, analysis, lambda made: made.model_dump(mode="json"))
    steps.sync()

    written: dict[str, list[Negative] | Failure] = {
        k: a for k, a in analyses.items() if isinstance(a, Failure)
    }
    ready = {key: analysis for key, analysis in analyses.items() if isinstance(analysis, Analysis)}
    todo = steps.known(
        "negatives", list(ready), written, lambda kept: _NEGATIVES.validate_python(kept["negatives"])
    )
    asked = [pairs[place[key]] for key in todo]
    drafts = writer.write(asked, [ready[key] for key in todo]) if todo else []
    for key, negatives in zip(todo, drafts, strict=True):
        written[key] = negatives
        steps.keep(
            "negatives", key, negatives, lambda made: {"negatives": _NEGATIVES.dump_python(made, mode="json")}
        )
    steps.sync()
    return [written[key] for key in keys]


class _Steps:
    """The finished steps of a batch of pairs, in a journal if there is one."""

    def __init__(self, journal: Journal | None, pairs: Sequence[Pair], place: Mapping[str, int]) -> None:
        self._journal, self._pairs, self._place = journal, pairs, place

    def known(
        self,
        step: Step,
        keys: Sequence[str],
        found: MutableMapping[str, _T | Failure],
        read: Callable[[dict[str, Any]], _T],
    ) -> list[str]:
        """Put what is known of a step into ``found``; the keys of the rest."""
        missing = []
        for key in keys:
            record = None if self._journal is None else self._journal.get(_digest(step, key))
            if record is None:
                missing.append(key)
            elif record.value is None:
                found[key] = Failure(record.failure, record.detail, record.completion_tokens)
            else:
                found[key] = read(record.value)
        return missing

    def keep(self, step: Step, key: str, result: _T | Failure, show: Callable[[_T], dict[str, Any]]) -> None:
        """Write a finished step down."""
        if self._journal is None:
            return
        record = Record(key=_digest(step, key), step=step, unit=self._pairs[self._place[key]].query.id)
        if isinstance(result, Failure):
            record = replace(
                record, failure=result.reason, detail=result.detail, completion_tokens=result.tokens
            )
        else:
            record = replace(record, value=show(result))
        self._journal.add(record)

    def sync(self) -> None:
        """Force what is written down to the disk."""
        if self._journal is not None:
            self._journal.sync()


def preview(pair: Pair, writer: Writer) -> str:
    """What a writer makes of one pair, in words, with nothing kept.

    Args:
        pair: The pair.
        writer: Who writes.
    """
    lines = [f"query: {pair.query.text}", f"positive: {pair.positive.content}"]
    lines += [f"candidate: {candidate.content}" for candidate in pair.candidates]
    (analysis,) = writer.analyse([pair])
    if isinstance(analysis, Failure):
        return "\n".join([*lines, f"no analysis: {analysis.reason} ({analysis.detail})"])
    lines.append(f"core need: {analysis.core_need}")
    for requirement in analysis.requirements:
        ways = ", ".join(d.kind for d in requirement.disruptions)
        lines.append(
            f"requirement ({requirement.facet}): {requirement.text}" + (f" [{ways}]" if ways else "")
        )
    (written,) = writer.write([pair], [analysis])
    if isinstance(written, Failure):
        return "\n".join([*lines, f"no negatives: {written.reason} ({written.detail})"])
    for negative in written:
        lines.append(f"negative ({negative.strategy or 'no strategy'}): {negative.title} {negative.text}")
    return "\n".join(lines)


def rewrite_examples(
    examples: Sequence[Example],
    dataset: Dataset,
    writer: Writer,
    *,
    negatives: int = 5,
    progress: bool = False,
    batch: int = 256,
) -> list[Example]:
    """Let a writer say positives and mined negatives in its own voice, so that its voice is on both sides.

    Every document is rewritten once, however many examples have it, so it reads the same everywhere.

    Args:
        examples: A training set.
        dataset: Where its documents are.
        writer: Who rewrites.
        negatives: Mined negatives of each example to rewrite; the first ones.
        progress: Whether to show a progress bar.
        batch: Documents that are given to the writer at once.

    Returns:
        For each example with a rewritten positive an example with rewritten passages only; ``document_id``
        says of what, ``voice`` by whom. What the writer could not rewrite is left out.

    Raises:
        ConfigError: A number is out of range.
    """
    if negatives < 0 or batch < 1:
        raise ConfigError(
            f"negatives: must not be negative, and batch at least 1, got {negatives} and {batch}"
        )
    chosen = [[n for n in e.negatives if n.source == "mined"][:negatives] for e in examples]
    wanted: dict[str, Document] = {}
    for example, mined in zip(examples, chosen, strict=True):
        for passage in (*example.positives, *mined):
            document = _document(passage, dataset)
            wanted.setdefault(_document_key(document), document)
    documents = list(wanted.values())
    spoken: dict[str, Passage] = {}
    with tqdm(
        total=len(documents), unit="text", desc=f"rewrite ({writer.name})", disable=not progress
    ) as bar:
        for start in range(0, len(documents), batch):
            some = documents[start : start + batch]
            for document, said in zip(some, writer.rewrite(some), strict=True):
                if isinstance(said, Passage):
                    spoken[_document_key(document)] = said
            bar.update(len(some))
    out = []
    for example, mined in zip(examples, chosen, strict=True):
        found = [spoken.get(_document_key(_document(p, dataset))) for p in example.positives]
        positives = [passage for passage in found if passage is not None]
        voiced = []
        for negative in mined:
            voice = spoken.get(_document_key(_document(negative, dataset)))
            if voice is not None:
                own = {"text": voice.text, "title": voice.title, "voice": voice.voice}
                voiced.append(negative.model_copy(update=own))
        if positives:
            out.append(Example(query=example.query, positives=positives, negatives=voiced))
    return out


def source_auc(one: Sequence[str], other: Sequence[str], groups: Sequence[str], *, seed: int = 0) -> float:
    """How well a bag of words tells two kinds of text apart: the area under its ROC curve, .5 for not at all.

    A logistic regression on hashed words, each text judged by one that was trained on other groups.

    Args:
        one: Texts of the kind that gets the high scores.
        other: Texts of the other kind.
        groups: Group (the query) of each text, those of ``one`` first.
        seed: Of the regression.

    Returns:
        The AUC; not a number with fewer than two groups of each kind.
    """
    # Only a data card needs these, and they take their time.
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    names, group = np.unique(list(groups), return_inverse=True)
    label = np.repeat([1, 0], [len(one), len(other)])
    if len(names) < 2 or min((len(set(group[label == kind])) for kind in (0, 1)), default=0) < 2:
        return float("nan")
    bags = HashingVectorizer(n_features=2**18, alternate_sign=False, norm="l2").transform([*one, *other])
    bags = bags[:, np.unique(bags.indices)]
    score = np.full(len(label), np.nan)
    for train, test in GroupKFold(min(_FOLDS, len(names))).split(bags, label, group):
        if len(set(label[train])) == 2:
            model = LogisticRegression(C=10.0, solver="liblinear", random_state=seed)
            model.fit(bags[train], label[train])
            score[test] = model.decision_function(bags[test])
    told = np.isfinite(score)
    return float(roc_auc_score(label[told], score[told])) if len(set(label[told])) == 2 else float("nan")


def _of_source(examples: Sequence[Example], source: Source) -> list[tuple[str, str, Passage]]:
    return [(e.query.id, e.query.text, n) for e in examples for n in e.negatives if n.source == source]


def card_figures(checked: Verification, mined: Sequence[Example], dataset: Dataset) -> dict[str, Any]:
    """The figures of a data card.

    Args:
        checked: The verified set.
        mined: The mined set that it was written for; gives what to compare with.
        dataset: Where documents are.

    Returns:
        ``report``: the verifier's figures; ``written`` and ``mined``: number, length in words (mean, and
        percentiles 10, 50, 90) and lexical overlap (share of the query's weight) of the texts; ``source_auc``
        of a bag of words, ``positive_auc`` of the same between positives and mined ones; ``tokens``.
    """
    corpus = Corpus.of(dataset)
    written = [
        (e.query.id, e.query.text, n) for e in checked.kept for n in e.negatives if n.source == "generated"
    ]
    found = [(e.query.id, e.query.text, n) for e in mined for n in e.negatives if n.source == "mined"]
    right = [(e.query.id, e.query.text, e.positives[0]) for e in mined]
    asked = {query for query, _, _ in written}
    # Queries with one positive stay together: what was written for them shares its words.
    group = {e.query.id: passage.document_id or e.query.id for e in mined for passage in e.positives[:1]}
    kinds: dict[str, list[tuple[str, str, str]]] = {}
    for name, rows in (("written", written), ("mined", found), ("positive", right)):
        own = [row for row in rows if not asked or row[0] in asked]
        step = max(1, -(-len(own) // _CARD_TEXTS))
        kinds[name] = [(query, text, resolve_passage(p, dataset)) for query, text, p in own[::step]]
    texts = {name: [text for _, _, text in rows] for name, rows in kinds.items()}
    queries = {name: [query for query, _, _ in rows] for name, rows in kinds.items()}
    figures: dict[str, Any] = {"report": checked.report.to_dict()}
    for name, number in (("written", len(written)), ("mined", len(found))):
        lengths = [len(words(text)) for text in texts[name]]
        overlaps = [
            corpus.coverage(corpus.weights(query), set(content_words(text))) for _, query, text in kinds[name]
        ]
        low, middle, high = np.percentile(lengths, (10, 50, 90)) if lengths else (np.nan,) * 3
        figures[name] = {
            "number": number,
            "words_mean": float(np.mean(lengths)) if lengths else float("nan"),
            "words_10": float(low),
            "words_50": float(middle),
            "words_90": float(high),
            "overlap": float(np.mean(overlaps)) if overlaps else float("nan"),
        }
    for name, one in (("source_auc", "written"), ("positive_auc", "positive")):
        groups = [group.get(query, query) for query in (*queries[one], *queries["mined"])]
        figures[name] = source_auc(texts[one], texts["mined"], groups)
    kept = {id(n): n for e in (*checked.kept, *checked.rejected) for n in e.negatives}
    figures["tokens"] = sum(n.tokens for n in kept.values())
    return figures


def data_card(checked: Verification, mined: Sequence[Example], dataset: Dataset) -> str:
    """A page about a written set, in Markdown; see :func:`card_figures`.

    Args:
        checked: The verified set.
        mined: The mined set that it was written for.
        dataset: Where documents are.
    """
    figures = card_figures(checked, mined, dataset)
    headers = ["negatives", "number", "words, mean", "10 %", "50 %", "90 %", "overlap with the query"]
    rows = []
    for name in ("written", "mined"):
        own = figures[name]
        rows.append(
            [
                name,
                str(own["number"]),
                format_number(own["words_mean"], 1),
                *(format_number(own[f"words_{part}"], 0) for part in (10, 50, 90)),
                format_number(own["overlap"], 3),
            ]
        )
    return "\n".join(
        [
            "# Written negatives",
            "",
            checked.report.to_markdown(),
            "",
            markdown_table(headers, rows),
            f"AUC of a bag of words (.5: it cannot tell): written from mined negatives "
            f"{format_number(figures['source_auc'], 3)}, positives from mined negatives "
            f"{format_number(figures['positive_auc'], 3)}.",
            "",
            f"Tokens: {figures['tokens']}.",
            "",
        ]
    )
