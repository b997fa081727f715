"""From pairs to written negatives with a language model: unattended, resumed, within a budget, and watched.

The pipeline without a model works batch by batch. A model is slow and answers in no order, so here every call
is started as soon as there is room, written to the journal as soon as it is answered, and followed by the
next call of its pair at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import click
from tqdm import tqdm

from causalneg.data.schema import Document, Example, Passage
from causalneg.generation.journal import Journal, Totals, read_totals
from causalneg.generation.steps import Budget
from causalneg.generation.writers.base import Pair
from causalneg.generation.writers.language_model import LLMWriter, Written
from causalneg.llm.chat import TRANSIENT, FailureKind
from common.report.tables import format_number, markdown_table

Tracker = Callable[[Mapping[str, float]], None]
"""Gets the figures of the progress every few seconds; W&B's ``run.log`` is one."""

_TRACK_SECONDS = 5.0


@dataclass(frozen=True)
class Generated:
    """What a run with a model gave, what earlier runs had finished included.

    Args:
        examples: One for each pair that is done or failed, in the order of the pairs.
        needs: What the searcher of each query needs, by query id; for a judge.
        failures: Pairs without negatives, by kind of failure.
        dropped: Orders of finished pairs that gave no usable negative, by reason.
        cut: Positives that were too long for the model and were cut.
        unfinished: Pairs that the budget left over.
        seconds: How long this run took.
    """

    examples: list[Example]
    needs: dict[str, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    unfinished: int = 0
    seconds: float = 0.0

    def to_markdown(self, totals: Totals, prices: Budget) -> str:
        """The part of a data card that is about the model.

        Args:
            totals: Calls and tokens of the whole set, rewriting included; see :attr:`Journal.totals`.
            prices: Prices of the tokens.
        """
        lines = [f"{len(self.examples)} pairs, {self.failures.total()} without negatives."]
        if self.unfinished:
            lines.append(f"The budget left {self.unfinished} pairs over.")
        if self.cut:
            lines.append(f"{self.cut} positives were cut at the end of a sentence: too long for the model.")
        counts = [["failed pairs", kind, str(n)] for kind, n in self.failures.most_common()]
        counts += [["dropped negatives", kind, str(n)] for kind, n in self.dropped.most_common()]
        table = markdown_table(["what", "why", "number"], counts, "llr") if counts else ""
        made = "\n".join(f"- {name}: {value}" for name, value in totals.settings.items()) + "\n"
        cost = prices.cost(totals.prompt_tokens, totals.completion_tokens)
        lines.append(
            f"Tokens: {totals.prompt_tokens} read, {totals.completion_tokens} written; "
            f"cost {format_number(cost, 4)}."
        )
        return (
            "\n".join(part for part in ("## The model", "", made, " ".join(lines), "", table) if part) + "\n"
        )


def _warn(line: str) -> None:
    click.echo(line, err=True)


def generate_with_model(
    pairs: Sequence[Pair],
    writer: LLMWriter,
    *,
    retry_failed: bool = False,
    progress: bool = False,
    track: Tracker | None = None,
    report: Callable[[str], None] = _warn,
) -> Generated:
    """Write negatives for pairs, both calls each.

    Args:
        pairs: What to write for.
        writer: Who writes. What it was told to keep is looked up first, and its budget is kept to: no call is
            begun that might exceed it. Only bad answers that are asked for again can, by what they cost.
        retry_failed: Whether pairs are tried again whose failure is in the journal. Failures that had to do
            with the server alone always are.
        progress: Whether to show a progress bar.
        track: Gets the figures every few seconds.
        report: Where lines for the user go.

    Raises:
        BackendError: Nothing can be answered at all; what is finished is in the journal.
        DataError: The journal cannot be written.
    """
    began = time.monotonic()
    journal, prices = writer.journal, writer.budget or Budget()
    retry = get_args(FailureKind) if retry_failed else TRANSIENT
    runner = writer.runner((writer.job(p) for p in pairs), retry=retry)
    before = 0
    if journal is not None:
        journal.begin(len(pairs), (prices.prompt_price, prices.completion_price))
        before = journal.totals.done_before
    found: dict[int, Example] = {}
    needs: dict[str, str] = {}
    failures: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    cut, tracked = 0, began
    with tqdm(total=len(pairs), unit="pair", desc=f"write ({writer.name})", disable=not progress) as bar:
        for number, written in runner:
            found[number] = _example(pairs[number], written)
            cut += written.cut
            dropped.update(written.dropped)
            if written.analysis is not None:
                needs[pairs[number].query.id] = written.analysis.core_need
            if written.failure is not None:
                failures[written.failure.reason] += 1
            bar.update()
            now = time.monotonic()
            if now - tracked >= _TRACK_SECONDS or len(found) == len(pairs):
                tracked = now
                spent = runner if journal is None else journal.totals
                counts = (spent.prompt_tokens, spent.completion_tokens)
                figures = _figures(len(found), before, failures, counts, prices, now - began)
                kinds = "".join(f", {kind} {n}" for kind, n in failures.most_common(3))
                bar.set_postfix_str(
                    f"{sum(counts):.3g} tokens, cost {figures['cost']:.2f}, failed {failures.total()}{kinds}",
                    refresh=False,
                )
                if track is not None:
                    track(figures)
    unfinished = len(pairs) - len(found)
    if unfinished:
        report(
            f"the budget is spent: {unfinished} of {len(pairs)} pairs are left; "
            "run the same with a larger budget to go on"
        )
    if failures:
        kinds = ", ".join(f"{reason} {number}" for reason, number in failures.most_common())
        report(f"{failures.total()} of {len(pairs)} pairs have no written negatives: {kinds}")
    return Generated(
        [found[number] for number in sorted(found)],
        needs,
        failures,
        dropped,
        cut,
        unfinished,
        time.monotonic() - began,
    )


def open_journal(path: Path, writer: LLMWriter, *, report: Callable[[str], None] = _warn) -> Journal:
    """The journal of what a writer writes; one process at a time.

    Args:
        path: The file.
        writer: Who writes: another model, prompt version or schema begins another set.
        report: Where lines for the user go.

    Raises:
        DataError: Another process writes to it, or it cannot be read.
    """
    return Journal(path, writer.identity, report=report)


def _figures(
    finished: int,
    before: int,
    failures: Counter[str],
    tokens: tuple[int, int],
    prices: Budget,
    seconds: float,
) -> dict[str, float]:
    figures = {
        "pairs": float(finished),
        "pairs_per_minute": 60 * max(0, finished - before) / max(seconds, 1e-9),
        "tokens": float(sum(tokens)),
        "cost": prices.cost(*tokens),
        "failed": float(failures.total()),
    }
    return figures | {f"failed/{kind}": float(number) for kind, number in sorted(failures.items())}


def _example(pair: Pair, written: Written) -> Example:
    return Example(query=pair.query, positives=[_passage(pair.positive)], negatives=list(written.negatives))


def _passage(document: Document) -> Passage:
    """A document of the corpus by its id; any other with its text."""
    if document.id:
        return Passage(document_id=document.id)
    return Passage(text=document.text, title=document.title)


def status(path: Path, judge: Path | None = None) -> str:
    """How far a generation set is, in Markdown; also while a process is at work on it.

    Args:
        path: Its journal.
        judge: The journal of its judge; None if there is none.

    Raises:
        DataError: There is no such journal.
    """
    totals = read_totals(path)
    about = "\n".join(f"- {name}: {value}" for name, value in totals.settings.items() if value)
    left = totals.seconds_left if totals.running or totals.finished < totals.pairs else 0.0
    share = f" of {totals.pairs} ({totals.finished / totals.pairs:.1%})" if totals.pairs else ""
    prices = Budget(prompt_price=totals.prompt_price, completion_price=totals.completion_price)
    cost = prices.cost(totals.prompt_tokens, totals.completion_tokens)
    judged = []
    if judge is not None:
        said = read_totals(judge)
        cost += prices.cost(said.prompt_tokens, said.completion_tokens)
        judged = [["judge: answers", str(said.steps["judge"])], ["judge: tokens", str(said.tokens)]]
    rows = [
        ["pairs finished", f"{totals.finished}{share}"],
        ["with negatives", str(totals.done)],
        ["analysed, negatives to come", str(totals.analysed)],
        *([f"failed: {kind}", str(number)] for kind, number in totals.failures.most_common()),
        *([f"calls: {step}", str(number)] for step, number in sorted(totals.steps.items())),
        ["calls asked again", str(totals.asked_again)],
        ["answers repaired", str(totals.repaired)],
        ["pairs per minute", format_number(totals.rate, 1)],
        ["tokens read", str(totals.prompt_tokens)],
        ["tokens written", str(totals.completion_tokens)],
        *judged,
        ["cost", format_number(cost, 4)],
        ["time left", "n/a" if left is None else _duration(left)],
        ["at work", "yes" if totals.running else "no"],
    ]
    return f"{about}\n\n{markdown_table(['generation set', ''], rows)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"
