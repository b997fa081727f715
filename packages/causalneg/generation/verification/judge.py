"""Second opinions on written texts: one interface for language models and cross-encoders.

The verifier's rules of thumb compare words. A judge reads: does the passage give the searcher what was
needed, a part of it, or something offered as the answer?
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import TypeAdapter

from causalneg.data.schema import Query, Verdict
from causalneg.generation.jobs import OVER_BUDGET, Failure, Job, Runner, digest, kept
from causalneg.generation.journal import Ledger
from causalneg.llm.budget import Budget
from causalneg.llm.chat import ChatBackend

_SHAPE: TypeAdapter[Verdict | Failure] = TypeAdapter(Verdict | Failure)


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    Args:
        query: The query.
        passage: Title and text of what is judged.
        need: What the searcher needs, in words; empty if nobody said.
        positive: Title and text of a passage that answers; empty if there is none to compare with.
    """

    query: Query
    passage: str
    need: str = ""
    positive: str = ""


class Judge(ABC):
    """Says what passages do for searchers. A new one is one file and one line in ``JUDGES``.

    Args:
        name: Who judges, for verdicts.
        backend: Where the model runs that its jobs ask; None if they ask none.
    """

    name: str
    backend: ChatBackend | None = None

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What decides its verdicts; those of equal identity may be mixed."""

    @abstractmethod
    def judge(self, question: Question) -> Job[Verdict | Failure]:
        """One verdict: ``valid``, ``off topic``, ``answers``, ``partly answers`` or ``wrong answer``.

        Args:
            question: What is asked.
        """

    def prepare(self, questions: Sequence[Question]) -> None:  # noqa: B027  # most judges have nothing to prepare
        """Do what goes better for many questions at once, before the job of each is run.

        Args:
            questions: What will be asked.
        """


def ask(
    judge: Judge, questions: Sequence[Question], ledger: Ledger, budget: Budget | None = None
) -> list[Verdict | Failure]:
    """One verdict per question, in order; equal questions are asked once, and never again with a ledger.

    Args:
        judge: Who is asked.
        questions: What is asked.
        ledger: Where its answers are kept.
        budget: What all ledgers of the journal may cost together.

    Raises:
        BackendError: Nothing can be answered at all.
        DataError: The journal cannot be written.
    """
    judge.prepare(questions)

    def job(question: Question) -> Job[Verdict | Failure]:
        query = question.query
        key = digest(query.id, query.text, question.need, question.positive, question.passage)
        return kept(
            lambda: judge.judge(question),
            "judge",
            query.id,
            key,
            ledger=ledger,
            read=_SHAPE.validate_python,
            show=partial(_SHAPE.dump_python, mode="json"),
        )

    found = dict(Runner(map(job, questions), judge.backend, ledger=ledger, budget=budget))
    return [found.get(number, OVER_BUDGET) for number in range(len(questions))]
