"""A language model as judge.

A passage is data: it stands between two lines with a mark that is drawn from its own content, so that it
cannot hold the mark, and the model is told that nothing in it speaks to the judge. The verdict is the last
complete answer behind whatever the model thinks or quotes.
"""

from __future__ import annotations

import hashlib
import json
from string import Template
from typing import Annotated, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict

from causalneg.data.schema import Document, Query, Reason, Verdict
from causalneg.generation.jobs import Call, Failure, Job, digest
from causalneg.generation.verification.judge import Judge, Question
from causalneg.generation.writers.prompts import cut_document, load_profile, load_template
from causalneg.llm.chat import ChatBackend, ChatRequest, ChatResult, Message
from causalneg.llm.schema import bounded_schema

_REASONS: dict[str, Reason] = {
    "answers": "answers",
    "partly": "partly answers",
    "states an answer": "wrong answer",
    "related": "valid",
    "unrelated": "off topic",
}


class Judgement(BaseModel):
    """The verdict as the model writes it.

    Args:
        reason: In a sentence; comes first, so that the verdict follows from it.
        verdict: In one of the words of the prompt.
    """

    model_config = ConfigDict(extra="forbid")

    reason: str
    verdict: Literal["answers", "partly", "states an answer", "related", "unrelated"]


class LLMJudge(Judge):
    """A language model that is asked what a passage does for a searcher; see the base class.

    Args:
        backend: Where the model runs.
        profile: Name of a corpus profile, or path of a text file.
        tokens: Longest answer, in tokens.
        characters: Longest reason, in characters.

    Raises:
        ConfigError: There is no such profile.
        DataError: The profile cannot be read.
    """

    name = "llm"

    def __init__(
        self,
        *,
        backend: ChatBackend,
        profile: str = "generic",
        tokens: Annotated[int, Ge(1)] = 256,
        characters: Annotated[int, Ge(1)] = 400,
    ) -> None:
        self.backend: ChatBackend = backend
        context = backend.context
        self._tokens = tokens if context is None else min(tokens, context // 4)
        self._template, self._profile = load_template("judge", ("system", "judge")), load_profile(profile)
        relevance = self._profile.sections["relevance"]
        text = Template(self._template.sections["system"]).substitute(relevance=relevance)
        self._system = Message("system", text)
        self._schema = bounded_schema(Judgement, characters=characters)

    @property
    def identity(self) -> dict[str, str]:
        """What decides its verdicts: backend, model, prompt, schema; see the base class."""
        version = f"{self._template.version}-{self._profile.name}{self._profile.version}"
        prompt = digest(self._system.content, self._template.sections["judge"])[:8]
        schema = digest(json.dumps(self._schema, sort_keys=True))[:8]
        return {
            "judge": self.name,
            **self.backend.identity,
            "prompt version": f"{version}-{prompt}",
            "schema": schema,
            "settings": f"temperature 0, tokens {self._tokens}",
        }

    def messages(self, query: Query, need: str, passage: str) -> tuple[Message, ...]:
        """What the model is asked of a passage.

        Args:
            query: The query.
            need: What its searcher needs, in words.
            passage: Title and text.
        """
        mark = hashlib.blake2b(f"{query.text}\0{passage}".encode(), digest_size=8).hexdigest()
        content = Template(self._template.sections["judge"]).substitute(
            query=query.text, need=need or query.text, passage=passage, mark=mark
        )
        return (self._system, Message("user", content))

    def judge(self, question: Question) -> Job[Verdict | Failure]:
        """One verdict; see the base class."""
        passage, backend = question.passage, self.backend
        if backend.context is not None:
            bare = self.messages(question.query, question.need, "")
            room = backend.context - sum(backend.count(m.content) for m in bare) - self._tokens - 64
            passage = cut_document(Document(id="", text=passage), max(1, room), backend.count)[0].text
        request = ChatRequest(
            key="",
            messages=self.messages(question.query, question.need, passage),
            shape=Judgement,
            schema=self._schema,
            max_tokens=self._tokens,
        )
        outcome = yield Call.of("judge", question.query.id, request)
        if isinstance(outcome, ChatResult) and isinstance(outcome.value, Judgement):
            said = outcome.value
            return Verdict(
                reason=_REASONS[said.verdict], judge=self.name, detail=f"{said.verdict}: {said.reason}"
            )
        return Failure.of(outcome)
