"""From pairs to written negatives: one driver for rules and language models.

Every writer gives a job for each pair. Jobs are started as there is room, their calls written down as soon as
they are answered, and nothing that is finished is done again: killed at any moment, the same call goes on
where it was.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

from pydantic import TypeAdapter

from causalneg.data import Dataset
from causalneg.data.schema import Document, Example, Passage
from causalneg.generation.jobs import OVER_BUDGET, Failure, Job, Runner, digest, kept
from causalneg.generation.journal import Journal, Ledger
from causalneg.generation.totals import Totals
from causalneg.generation.writers.base import Pair, Writer, Written
from causalneg.llm.budget import Budget
from causalneg.llm.chat import TRANSIENT, FailureKind
from common.cli import report as report_to_user
from common.errors import ConfigError, Interrupted
from common.live import Progress
from common.report.tables import format_number, markdown_table

Tracker = Callable[[Mapping[str, float]], None]
"""Gets the figures of the progress every few seconds; W&B's ``run.log`` is one."""

_TRACK_SECONDS = 2.0
_WRITTEN = TypeAdapter(Written)
_REWRITTEN: TypeAdapter[Passage | Failure] = TypeAdapter(Passage | Failure)


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
    return digest(document.id, document.title, document.text)


def _pair_key(pair: Pair) -> str:
    texts = [part for d in (pair.positive, *pair.candidates) for part in (d.id, d.title, d.text)]
    return digest(pair.query.id, pair.query.text, *texts)


@dataclass(frozen=True)
class Generated:
    """What a run gave, what earlier runs had finished included.

    Args:
        examples: One for each pair that is done or failed, in the order of the pairs.
        needs: What the searcher of each query needs, by query id; for a judge.
        failures: Pairs without negatives, by kind of failure.
        dropped: Orders of finished pairs that gave no usable negative, by reason.
        cut: Positives that were too long for the writer and were cut.
        unfinished: Pairs that the budget left over.
    """

    examples: list[Example]
    needs: dict[str, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    unfinished: int = 0

    @property
    def failed_share(self) -> float:
        """Share of the finished pairs that failed."""
        return self.failures.total() / max(1, len(self.examples))

    def to_markdown(self, totals: Totals, budget: Budget) -> str:
        """The part of a data card that is about the writer.

        Args:
            totals: Calls and tokens of the whole set, rewriting included; see :meth:`Ledger.totals`.
            budget: Has the prices of the tokens.
        """
        lines = [f"{len(self.examples)} pairs, {self.failures.total()} without negatives."]
        if self.unfinished:
            lines.append(f"The budget left {self.unfinished} pairs over.")
        if self.cut:
            lines.append(f"{self.cut} positives were cut at the end of a sentence: too long for the model.")
        cost = budget.cost(totals.prompt_tokens, totals.completion_tokens)
        lines.append(
            f"Tokens: {totals.prompt_tokens} read, {totals.completion_tokens} written; "
            f"cost {format_number(cost, 4)}."
        )
        counts = [["failed pairs", kind, str(n)] for kind, n in self.failures.most_common()]
        counts += [["dropped negatives", kind, str(n)] for kind, n in self.dropped.most_common()]
        table = markdown_table(["what", "why", "number"], counts, "llr") if counts else ""
        made = "\n".join(f"- {name}: {value}" for name, value in totals.identity.items()) + "\n"
        parts = ("## The writer", made, " ".join(lines), table)
        return "\n\n".join(part.strip() for part in parts if part) + "\n"


def generate(
    pairs: Sequence[Pair],
    writer: Writer,
    *,
    ledger: Ledger | None = None,
    budget: Budget | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    track: Tracker | None = None,
    report: Callable[[str], None] = report_to_user,
) -> Generated:
    """Write negatives for pairs.

    Args:
        pairs: What to write for.
        writer: Who writes.
        ledger: Where finished jobs and calls are kept, and looked up; None keeps them in memory.
        budget: What all ledgers of the journal may cost together: no call is begun that might exceed it. Only
            bad answers that are asked for again can, by what they cost.
        retry_failed: Whether pairs are tried again whose failure is in the ledger. Failures that had to do
            with the server alone always are.
        progress: Whether to show how far it is.
        track: Gets the figures every few seconds.
        report: Where lines for the user go.

    Raises:
        BackendError: Nothing can be answered at all; what is finished is in the journal.
        DataError: The journal cannot be written, or is damaged.
    """
    ledger = ledger or Journal().ledger("writer", writer.identity)
    budget = budget or Budget()
    retry = frozenset(get_args(FailureKind)) if retry_failed else TRANSIENT
    ledger.begin(len(pairs), (budget.prompt_price, budget.completion_price))

    def job(pair: Pair) -> Job[Written]:
        unit, key = f"{pair.query.id}\t{pair.positive.id}", _pair_key(pair)
        return kept(
            lambda: writer.write(pair),
            "negatives",
            unit,
            key,
            ledger=ledger,
            read=_WRITTEN.validate_python,
            show=partial(_WRITTEN.dump_python, mode="json"),
            retry=retry,
        )

    runner = Runner(map(job, pairs), writer.backend, ledger=ledger, budget=budget, retry=retry)
    found: dict[int, Written] = {}
    failures: Counter[str] = Counter()
    began = tracked = time.monotonic()
    with Progress(f"write ({writer.name})", shown=progress) as shown, _kept_at_interrupt():
        shown.stage("write", total=len(pairs), unit="pairs")
        for number, written in runner:
            found[number] = written
            if written.failure is not None:
                failures[written.failure.kind] += 1
            shown.advance()
            now = time.monotonic()
            if now - tracked >= _TRACK_SECONDS or len(found) == len(pairs):
                tracked = now
                figures = _figures(len(found), ledger, failures, budget, now - began)
                shown.show(_shown(figures, failures))
                if track is not None:
                    track(figures)
    unfinished = len(pairs) - len(found)
    if unfinished:
        report(
            f"the budget is spent: {unfinished} of {len(pairs)} pairs are left; "
            "run the same with a larger budget to go on"
        )
    if failures:
        kinds = ", ".join(f"{kind} {number}" for kind, number in failures.most_common())
        report(f"{failures.total()} of {len(pairs)} pairs have no written negatives: {kinds}")
    numbers = sorted(found)
    return Generated(
        [_example(pairs[n], found[n]) for n in numbers],
        {pairs[n].query.id: a.core_need for n in numbers if (a := found[n].analysis) is not None},
        failures,
        sum((Counter(found[n].dropped) for n in numbers), Counter()),
        sum(found[n].cut for n in numbers),
        unfinished,
    )


@contextmanager
def _kept_at_interrupt() -> Iterator[None]:
    """Say at Ctrl-C that nothing finished is lost."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            signal.SIGINT, "what is finished is in the journal; run the same command again to go on"
        ) from None


def _shown(figures: Mapping[str, float], failures: Counter[str]) -> dict[str, str]:
    """The figures of the progress as text: rate, failures by kind, tokens, cost."""
    kinds = ", ".join(f"{kind} {number}" for kind, number in failures.most_common())
    return {
        "pairs/min": f"{figures['pairs_per_minute']:.1f}",
        "tokens": f"{figures['tokens']:,.0f}",
        "cost": f"{figures['cost']:.2f}",
        "failed": f"{failures.total()}" + (f" ({kinds})" if kinds else ""),
    }


def _example(pair: Pair, written: Written) -> Example:
    return Example(query=pair.query, positives=[_passage(pair.positive)], negatives=list(written.negatives))


def _figures(
    finished: int, ledger: Ledger, failures: Counter[str], budget: Budget, seconds: float
) -> dict[str, float]:
    tokens = ledger.journal.spent
    figures = {
        "pairs": float(finished),
        "pairs_per_minute": 60 * max(0, finished - ledger.before) / max(seconds, 1e-9),
        "tokens": float(sum(tokens)),
        "cost": budget.cost(*tokens),
        "failed": float(failures.total()),
    }
    return figures | {f"failed/{kind}": float(number) for kind, number in sorted(failures.items())}


def _passage(document: Document) -> Passage:
    """A document of the corpus by its id; any other with its text."""
    if document.id:
        return Passage(document_id=document.id)
    return Passage(text=document.text, title=document.title)


def rewrite_examples(
    examples: Sequence[Example],
    dataset: Dataset,
    writer: Writer,
    *,
    negatives: int = 5,
    ledger: Ledger | None = None,
    budget: Budget | None = None,
    progress: bool = False,
) -> tuple[list[Example], Counter[str]]:
    """Let a writer put positives and mined negatives in its own voice, so that its voice is on both sides.

    Every document is rewritten once, however many examples have it, so it reads the same everywhere.

    Args:
        examples: A training set.
        dataset: Where its documents are.
        writer: Who rewrites.
        negatives: Mined negatives of each example to rewrite; the first ones.
        ledger: Where finished jobs and calls are kept, and looked up; None keeps them in memory.
        budget: What all ledgers of the journal may cost together.
        progress: Whether to show how far it is.

    Returns:
        For each example with a rewritten positive an example with rewritten passages only; ``document_id``
        says of what, ``voice`` by whom. What the writer could not rewrite is left out, and counted by kind.

    Raises:
        ConfigError: A number is out of range.
    """
    if negatives < 0:
        raise ConfigError(f"negatives: must not be negative, got {negatives}")
    ledger = ledger or Journal().ledger("writer", writer.identity)
    chosen = [[n for n in e.negatives if n.source == "mined"][:negatives] for e in examples]
    wanted: dict[str, Document] = {}
    for example, mined in zip(examples, chosen, strict=True):
        for passage in (*example.positives, *mined):
            document = _document(passage, dataset)
            wanted.setdefault(_document_key(document), document)

    def job(key: str) -> Job[Passage | Failure]:
        document = wanted[key]
        return kept(
            lambda: writer.rewrite(document),
            "rewrite",
            document.id,
            key,
            ledger=ledger,
            read=_REWRITTEN.validate_python,
            show=partial(_REWRITTEN.dump_python, mode="json"),
        )

    keys = list(wanted)
    results: dict[str, Passage | Failure] = dict.fromkeys(keys, OVER_BUDGET)
    with Progress(f"rewrite ({writer.name})", shown=progress) as shown, _kept_at_interrupt():
        shown.stage("rewrite", total=len(keys), unit="texts")
        for number, result in Runner(map(job, keys), writer.backend, ledger=ledger, budget=budget):
            results[keys[number]] = result
            shown.advance()
    out = []
    for example, mined in zip(examples, chosen, strict=True):
        found = [results[_document_key(_document(p, dataset))] for p in example.positives]
        positives = [passage for passage in found if isinstance(passage, Passage)]
        voiced = []
        for negative in mined:
            result = results[_document_key(_document(negative, dataset))]
            if isinstance(result, Passage):
                own = {"text": result.text, "title": result.title, "voice": result.voice}
                voiced.append(negative.model_copy(update=own))
        if positives:
            out.append(Example(query=example.query, positives=positives, negatives=voiced))
    return out, Counter(result.kind for result in results.values() if isinstance(result, Failure))
