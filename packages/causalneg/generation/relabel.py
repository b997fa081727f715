"""Mined candidates judged: those that answer are dropped, or become positives.

Source: relabelling with a language model, Thakur et al., Fixing Data That Hurts Performance (2025); with a
cross-encoder, Qu et al., RocketQA (NAACL 2021), "denoised" hard negatives. The judges are the verifier's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from causalneg.data import Dataset, Report, read_dataset, read_examples, resolve_passage, write_examples
from causalneg.data.schema import Example, Negative, Passage, Verdict
from causalneg.generation.config import JudgeConfig
from causalneg.generation.journal import Journal, Ledger
from causalneg.generation.sets import open_judge
from causalneg.generation.verification.cross_encoder import CrossEncoderJudge
from causalneg.generation.verification.judge import Judge, Question, ask
from causalneg.llm.budget import Budget
from common.cli import report as report_to_user
from common.errors import BackendError, ConfigError
from common.files import atomic_write, beside
from common.report.tables import markdown_table

_ANSWERS = ("answers", "partly answers")


@dataclass(frozen=True)
class Relabelled:
    """What came of relabelling.

    Args:
        negatives: Mined negatives that were judged.
        false: Those that answer, as the judge has it.
        added: Of these, those that became positives.
        unjudged: Those without a verdict; they are left out.
        known: Judged ones whose truth is known; 0 without a truth.
        truly_false: Of these, those that answer by truth.
        rightly: Of these, those that the judge calls false too.
        called: Known ones that the judge calls false.
    """

    negatives: int
    false: int
    added: int
    unjudged: int
    known: int = 0
    truly_false: int = 0
    rightly: int = 0
    called: int = 0

    @property
    def precision(self) -> float | None:
        """Share of the negatives called false that are false; None where none is called so."""
        return self.rightly / self.called if self.called else None

    @property
    def recall(self) -> float | None:
        """Share of the false negatives that are called so; None where there are none."""
        return self.rightly / self.truly_false if self.truly_false else None

    def to_markdown(self) -> str:
        """Counts, and what the truth says."""
        rows = [["judged", str(self.negatives)], ["false, by the judge", str(self.false)]]
        rows += [["became positives", str(self.added)], ["no verdict, left out", str(self.unjudged)]]
        if self.known:
            rows += [["false, by truth", f"{self.truly_false} of {self.known}"]]
            for name, value in (("precision", self.precision), ("recall", self.recall)):
                rows += [[f"{name} of the judge", "none" if value is None else f"{value:.3f}"]]
        return markdown_table(["mined negatives", "number"], rows)


def relabel(
    examples: Sequence[Example],
    dataset: Dataset,
    judge: Judge,
    ledger: Ledger,
    *,
    add: bool = False,
    truth: Mapping[str, Mapping[str, int]] | None = None,
    budget: Budget | None = None,
) -> tuple[list[Example], Relabelled]:
    """Judge the mined negatives of a set; those that answer, wholly or in part, are none.

    A cross-encoder leaves its scores as the ``teacher`` of positives and negatives.

    Args:
        examples: The set.
        dataset: Where documents are.
        judge: Who is asked.
        ledger: Where its answers are kept.
        add: Whether those that answer wholly become positives; else they are dropped.
        truth: Grades by query and document that the judge must not see, to measure it with.
        budget: What all ledgers of the journal may cost together.

    Returns:
        The set, and what came of it.
    """
    mined = [(example, n) for example in examples for n in example.negatives if n.source == "mined"]
    questions = [
        Question(
            example.query, resolve_passage(n, dataset), "", resolve_passage(example.positives[0], dataset)
        )
        for example, n in mined
    ]
    verdicts = ask(judge, questions, ledger, budget)
    found = {
        (example.query.id, id(n)): verdict if isinstance(verdict, Verdict) else None
        for (example, n), verdict in zip(mined, verdicts, strict=True)
    }
    counts = {"negatives": len(mined), "false": 0, "added": 0, "unjudged": 0}
    counts |= {"known": 0, "truly_false": 0, "rightly": 0, "called": 0}
    out = []
    for example in examples:
        positives: list[Passage] = list(example.positives)
        negatives: list[Negative] = []
        for negative in example.negatives:
            if negative.source != "mined":
                negatives.append(negative)
                continue
            verdict = found[example.query.id, id(negative)]
            false = verdict is not None and verdict.reason in _ANSWERS
            if truth is not None and negative.document_id is not None and verdict is not None:
                real = truth.get(example.query.id, {}).get(negative.document_id, 0) > 0
                counts["known"] += 1
                counts["truly_false"] += real
                counts["called"] += false
                counts["rightly"] += real and false
            counts["unjudged"] += verdict is None
            counts["false"] += false
            if verdict is None:
                continue
            if not false:
                negatives.append(negative)
            elif add and verdict.reason == "answers":
                counts["added"] += 1
                kept = {"document_id", "text", "title", "voice", "teacher"}
                positives.append(Passage(**negative.model_dump(include=kept)))
        out.append(example.model_copy(update={"positives": positives, "negatives": negatives}))
    if isinstance(judge, CrossEncoderJudge):
        out = _with_teacher(out, dataset, judge)
    return out, Relabelled(**counts)


def _with_teacher(examples: Sequence[Example], dataset: Dataset, judge: CrossEncoderJudge) -> list[Example]:
    """The set with the scores of a cross-encoder."""
    pairs = [
        (example.query.text, resolve_passage(passage, dataset))
        for example in examples
        for passage in (*example.positives, *example.negatives)
    ]
    scores = iter(judge.scores(pairs))
    return [
        example.model_copy(
            update={
                kind: [p.model_copy(update={"teacher": next(scores)}) for p in getattr(example, kind)]
                for kind in ("positives", "negatives")
            }
        )
        for example in examples
    ]


def relabel_set(
    data: Path,
    examples: Path,
    out: Path,
    config: JudgeConfig,
    *,
    add: bool = False,
    truth: str | None = None,
    skip_bad: bool = False,
    report: Report = report_to_user,
) -> Relabelled:
    """Relabel a training set into another; ``.relabel.json`` and ``.journal`` lie beside it.

    Args:
        data: The data set.
        examples: The training set.
        out: File to write.
        config: Who judges.
        add: Whether those that answer become positives.
        truth: Split with all true positives, to measure the judge with.
        skip_bad: Whether malformed lines are left out.
        report: Where lines for the user go.

    Raises:
        BackendError: The judge cannot be had, or gave no verdict for more than may be; nothing is written.
        ConfigError: No judge is named.
        DataError: The input cannot be read.
    """
    if config.judge is None:
        raise ConfigError("relabel: name a judge: --judge llm with --model, or --cross-encoder")
    dataset = read_dataset(data, splits=[truth] if truth else [], skip_bad=skip_bad, report=report)
    found = read_examples(examples, skip_bad=skip_bad, report=report)
    with (
        Journal(beside(out, ".journal"), report=report) as journal,
        open_judge(config, journal, report) as (judge, ledger),
    ):
        judged = dataset.judged(truth) if truth else None
        made, counts = relabel(found, dataset, judge, ledger, add=add, truth=judged, budget=config.budget)
    if counts.unjudged > config.max_failed * counts.negatives:
        raise BackendError(
            f"{out}: the judge gave no verdict on {counts.unjudged} of {counts.negatives} negatives, more "
            f"than max_failed={config.max_failed:g} allows; nothing is written there. What is finished is in "
            "the journal"
        )
    write_examples(out, made)
    figures = {**dataclasses.asdict(counts), "precision": counts.precision, "recall": counts.recall}
    atomic_write(beside(out, ".relabel.json"), json.dumps(figures, indent=1) + "\n")
    return counts
