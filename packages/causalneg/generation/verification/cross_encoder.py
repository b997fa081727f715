"""A cross-encoder as judge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import torch
from annotated_types import Ge

from causalneg.data.schema import Reason, Verdict
from causalneg.generation.jobs import Failure, Job, done
from causalneg.generation.verification.judge import Judge, Question
from causalneg.llm.weights import local_identity
from common.config import checked
from common.errors import BackendError, ConfigError


@checked
class CrossEncoderJudge(Judge):
    """A cross-encoder as judge: it reads query and passage together and gives a score, without words.

    With a positive to compare with, a passage answers if it scores within ``margin`` of it; without one, if
    the model thinks it more likely than not. Everything else is ``valid``. The rule is this project's: a
    cross-encoder cannot tell a wrong answer from a right one, so it is a second judge beside the one that
    reads.

    Args:
        model: Name or folder of a sequence classifier with one score, or two classes of which the second
            means relevant.
        margin: How far below the positive's score (a logit) a passage still answers.
        batch: Pairs of texts at a time.
        longest: Tokens of query and passage together; longer passages are cut.
        device: Where it runs; by default a GPU if there is one.

    Raises:
        ConfigError: No model is named.
        ValueError: A value is out of range.
        BackendError: There is no such model.
    """

    name = "cross-encoder"

    def __init__(
        self,
        *,
        model: str = "",
        margin: float = 0.0,
        batch: Annotated[int, Ge(1)] = 32,
        longest: Annotated[int, Ge(8)] = 512,
        device: str | None = None,
    ) -> None:
        if not model:
            raise ConfigError("judge.model: name a cross-encoder, or give the folder of one")
        self._model_name, self._margin, self._batch, self._longest = model, margin, batch, longest
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._scores: dict[tuple[str, str], float] = {}

    @property
    def identity(self) -> dict[str, str]:
        """What decides its verdicts: model, weights, margin, cut; see the base class."""
        settings = {"margin": f"{self._margin:g}", "longest": self._longest}
        return {
            "judge": self.name,
            **local_identity("transformers", self._model_name, [self._model_name], **settings),
        }

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._model_name)
            model = AutoModelForSequenceClassification.from_pretrained(self._model_name)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise BackendError(f"cross-encoder '{self._model_name}': cannot be loaded ({first})") from None
        if model.config.num_labels not in (1, 2):
            raise BackendError(
                f"cross-encoder '{self._model_name}': has {model.config.num_labels} classes; "
                "one score or two classes are needed"
            )
        return tokenizer, model.eval().to(self._device)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Logits of relevance, the same whatever else is asked; a pair is scored once.

        Args:
            pairs: Queries and passages.
        """
        new = sorted(
            {pair for pair in pairs if pair not in self._scores}, key=lambda p: len(p[0]) + len(p[1])
        )
        tokenizer, model = self._parts
        for start in range(0, len(new), self._batch):
            some = new[start : start + self._batch]
            inputs = tokenizer(
                [query for query, _ in some],
                [passage for _, passage in some],
                padding=True,
                truncation="only_second",
                max_length=self._longest,
                return_tensors="pt",
            ).to(self._device)
            with torch.inference_mode():
                logits = model(**inputs).logits.float().cpu()
            score = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            self._scores.update(zip(some, score.tolist(), strict=True))
        return [self._scores[pair] for pair in pairs]

    def prepare(self, questions: Sequence[Question]) -> None:
        """Load the model, and score all passages and positives in batches; see the base class."""
        self.scores([(q.query.text, text) for q in questions for text in (q.passage, q.positive) if text])

    def judge(self, question: Question) -> Job[Verdict | Failure]:
        """One verdict; see the base class."""
        query = question.query.text
        (score,) = self.scores([(query, question.passage)])
        bound = self.scores([(query, question.positive)])[0] - self._margin if question.positive else 0.0
        reason: Reason = "answers" if score >= bound else "valid"
        detail = f"scores {score:.2f}, the bound is {bound:.2f}"
        return done(Verdict(reason=reason, judge=self.name, detail=detail))
