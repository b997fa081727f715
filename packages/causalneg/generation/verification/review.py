"""What a judge changes: in a verified set, and in passages that were rewritten.

What verifier and judge disagree on is counted. The same judge sees to it that a rewritten passage does for
its query what it did before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from causalneg.data import Dataset, resolve_passage
from causalneg.data.schema import Example, Negative, Reason, Verdict
from causalneg.generation.jobs import OVER_BUDGET, Failure
from causalneg.generation.journal import Ledger
from causalneg.generation.verification.heuristics import REASONS, Verification
from causalneg.generation.verification.judge import Judge, Question, ask
from causalneg.llm.budget import Budget
from causalneg.text.words import words
from common.report.tables import markdown_table


@dataclass(frozen=True)
class Review:
    """A verified set after a second opinion.

    Args:
        checked: What is kept now and what is rejected, each with the last word on it.
        counts: Written negatives by the verifier's reason and the judge's; ``"not judged"`` where the judge
            did not answer.
        over_budget: How many of those the budget left over.
        judge: Who judged.
    """

    checked: Verification
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    judge: str = ""
    over_budget: int = 0

    @property
    def disagreements(self) -> int:
        """Negatives that one of the two calls valid and the other one not."""
        return sum(
            n
            for (one, other), n in self.counts.items()
            if other != "not judged" and (one == "valid") != (other == "valid")
        )

    @property
    def unjudged(self) -> int:
        """Negatives that the judge did not answer for, those apart that the budget left over."""
        return sum(n for (_, other), n in self.counts.items() if other == "not judged") - self.over_budget

    def to_markdown(self) -> str:
        """The counts, with the verifier's reasons as rows."""
        used = [r for r in REASONS if any(r == other for _, other in self.counts)]
        rows = [
            [reason, *(str(self.counts[reason, other]) for other in used)]
            for reason in sorted({reason for reason, _ in self.counts})
        ]
        table = markdown_table([f"verifier / {self.judge}", *used], rows) if rows else ""
        total = self.counts.total()
        return f"{table}\nThe two disagree on {self.disagreements} of {total} written negatives.\n"


def review(
    checked: Verification,
    dataset: Dataset,
    judge: Judge,
    ledger: Ledger,
    *,
    budget: Budget | None = None,
    needs: Mapping[str, str] | None = None,
) -> Review:
    """Ask a judge about every written negative, those that the verifier rejected too.

    A negative stays if both call it valid. What the judge does not answer for is rejected as ``not judged``.

    Args:
        checked: What the verifier said.
        dataset: Where documents are.
        judge: Who is asked.
        ledger: Where its answers are kept.
        budget: What all ledgers of the journal may cost together.
        needs: What the searchers need, by query id, from the analyses; queries without speak for themselves.
    """
    written = [
        (example, negative, kept)
        for kept, examples in ((True, checked.kept), (False, checked.rejected))
        for example in examples
        for negative in example.negatives
        if negative.source == "generated"
    ]
    questions = [
        Question(
            example.query,
            resolve_passage(negative, dataset),
            (needs or {}).get(example.query.id, ""),
            resolve_passage(example.positives[0], dataset),
        )
        for example, negative, _ in written
    ]
    counts: Counter[tuple[str, str]] = Counter()
    reasons = dict(checked.report.reasons)
    judged: dict[int, Negative] = {}
    over_budget = 0
    for (_, negative, kept), found in zip(written, ask(judge, questions, ledger, budget), strict=True):
        before: Reason = negative.verdict.reason if negative.verdict is not None else "valid"
        verdict = found
        if isinstance(found, Failure):
            over_budget += found == OVER_BUDGET
            verdict = Verdict(reason="not judged", judge=judge.name, detail=f"{found.kind}: {found.detail}")
        assert isinstance(verdict, Verdict)
        counts[before, verdict.reason] += 1
        if kept:
            judged[id(negative)] = negative.model_copy(update={"verdict": verdict})
            for reason, change in ((before, -1), (verdict.reason, 1)):
                key = (negative.backend, negative.strategy or "none", reason)
                reasons[key] = reasons.get(key, 0) + change
    kept_examples, rejected = [], {e.query.id: e for e in checked.rejected}
    for example in checked.kept:
        now = [judged.get(id(n), n) for n in example.negatives]
        good = [n for n in now if n.verdict is None or n.verdict.valid]
        bad = [n for n in now if not (n.verdict is None or n.verdict.valid)]
        kept_examples.append(example.model_copy(update={"negatives": good}))
        if bad:
            other = rejected.get(example.query.id)
            before_bad = [] if other is None else other.negatives
            rejected[example.query.id] = example.model_copy(update={"negatives": [*before_bad, *bad]})
    report = replace(checked.report, reasons={key: n for key, n in reasons.items() if n})
    return Review(
        Verification(kept_examples, list(rejected.values()), report), counts, judge.name, over_budget
    )


def check_voices(
    voices: Sequence[Example],
    dataset: Dataset,
    judge: Judge,
    ledger: Ledger,
    *,
    budget: Budget | None = None,
    needs: Mapping[str, str] | None = None,
) -> tuple[list[Example], Counter[str]]:
    """Keep only rewritten passages that do for their query what the original does.

    Args:
        voices: Examples with rewritten passages only; ``document_id`` says of what.
        dataset: Where the originals are.
        judge: Who compares.
        ledger: Where its answers are kept.
        budget: What all ledgers of the journal may cost together.
        needs: What the searchers need, by query id.

    Returns:
        The examples with what is left, those without a positive left out, and how many passages of which side
        were unchanged, changed, copied word for word, or not judged.
    """
    questions, sides, copied = [], [], []
    for example in voices:
        right = dataset.document(str(example.positives[0].document_id)).content
        need = (needs or {}).get(example.query.id, "")
        for side, passages in (("positive", example.positives), ("negative", example.negatives)):
            for passage in passages:
                texts = (
                    dataset.document(str(passage.document_id)).content,
                    resolve_passage(passage, dataset),
                )
                copied.append(words(texts[0]) == words(texts[1]))
                sides.append(side)
                if not copied[-1]:
                    questions += [Question(example.query, text, need, right) for text in texts]
    verdicts = iter(ask(judge, questions, ledger, budget))
    counts: Counter[str] = Counter()
    unchanged = []
    for side, copy in zip(sides, copied, strict=True):
        what = "copied" if copy else _compared(next(verdicts), next(verdicts))
        counts[f"{side}: {what}"] += 1
        unchanged.append(what == "unchanged")
    flags = iter(unchanged)
    left = []
    for example in voices:
        positives = [passage for passage in example.positives if next(flags)]
        negatives = [negative for negative in example.negatives if next(flags)]
        if positives:
            left.append(Example(query=example.query, positives=positives, negatives=negatives))
    return left, counts


def _compared(before: Verdict | Failure, after: Verdict | Failure) -> str:
    if isinstance(before, Failure) or isinstance(after, Failure):
        return "not judged"
    beside = [verdict.reason in ("valid", "off topic") for verdict in (before, after)]
    return "unchanged" if all(beside) or before.reason == after.reason else "changed"
