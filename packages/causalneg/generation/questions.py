"""Questions for a corpus that has none: by rules or by a language model, verified, as a new data set.

Rules take the rarest words of a sentence: a search by words finds its passage easily, so they train an
encoder and say little of how it would serve people. A model asks as people do.

Source: a part of a passage as its query is the inverse cloze task (Lee et al. 2019); questions by a
language model, kept if a search finds their passage again, are those of InPars (Bonifacio et al. 2022) and
Promptagator (Dai et al. 2023). Differences: rules keep the rare words of a sentence instead of all; the
search that must find the passage again is BM25, among the first 20.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from causalneg.data import Report, read_dataset, write_dataset
from causalneg.data.dataset import Dataset, text_key
from causalneg.data.readers import find_reader
from causalneg.data.schema import Document, Query
from causalneg.generation.jobs import Call, Failure, Job, Runner
from causalneg.generation.journal import Journal
from causalneg.generation.writers.prompts import cut_document, load_profile, load_template
from causalneg.llm.budget import Budget
from causalneg.llm.chat import ChatBackend, ChatRequest, ChatResult, Message
from causalneg.llm.schema import bounded_schema
from causalneg.search import Collection, make_searcher
from causalneg.text.language import Language, detect_language, split_signs
from common.cli import report as report_to_user
from common.errors import BackendError, ConfigError, DataError
from common.files import beside
from common.report.tables import markdown_table

AGAIN = 20
"""Rank within which BM25 must find the passage of a question again."""

_FEWEST, _MOST = 3, 40  # words of a question
_WORDS = 6  # of a rule's question, at most
_SENTENCE = re.compile("(?<=[.!?])\\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_CLAUSE = re.compile("[\uff0c\u3001,\uff1b;\uff1a:\u3002\uff01\uff1f\\s]+")
_WORD = re.compile(r"[^\W_]{2,}")
_ABOUT = re.compile(
    r"\b(?:the|this|that) (?:passage|text|document|article|paragraph|excerpt|author|context)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Asked:
    """A question and the document that it was made of.

    Args:
        text: The question.
        document: Row of the document.
    """

    text: str
    document: int


def rule_questions(documents: Sequence[Document], *, language: Language) -> list[Asked]:
    """A question of each document that has a sentence of some length: the rarest words of one, in order.

    Which sentence is decided by a hash of the document's id. In scripts without blanks it is a clause.

    Args:
        documents: The corpus.
        language: Its language.
    """
    split = split_signs if language.signs else lambda text: _WORD.findall(text.lower())
    frequency = Counter(word for document in documents for word in set(split(document.content)))
    found = []
    for row, document in enumerate(documents):
        sentences = [s for s in _SENTENCE.split(document.text) if s and len(split(s)) >= 2 * _FEWEST]
        if not sentences:
            continue
        sentence = sentences[_number(document.id) % len(sentences)]
        if language.signs:
            clauses = [c for c in _CLAUSE.split(sentence) if len(c) >= _WORDS]
            if clauses:
                found.append(Asked(max(clauses, key=len)[:_MOST], row))
            continue
        words = list(dict.fromkeys(split(sentence)))
        shared = [word for word in words if frequency[word] > 1]  # a word of one document alone gives it away
        words = shared if len(shared) >= _FEWEST else words
        rarest = set(sorted(words, key=lambda word: (frequency[word], word))[:_WORDS])
        found.append(Asked(" ".join(word for word in words if word in rarest), row))
    return found


class Questions(BaseModel):
    """Questions as the model writes them.

    Args:
        questions: The questions.
    """

    model_config = ConfigDict(extra="forbid")

    questions: list[str]


@dataclass(frozen=True)
class ModelAsker:
    """A language model that asks questions which a passage answers.

    Args:
        backend: Where the model runs.
        profile: Name of a corpus profile, or path of a text file.
        count: Questions of each passage.
        tokens: Longest answer, in tokens.
        seed: Of the sampling.
    """

    backend: ChatBackend
    profile: str = "generic"
    count: int = 1
    tokens: int = 256
    seed: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """What decides its answers."""
        template, profile = self._texts()
        version = f"{template.version}-{profile.name}{profile.version}"
        return {
            "writer": "questions", **self.backend.identity, "prompt version": version,
            "settings": f"count {self.count}, tokens {self.tokens}, seed {self.seed}",
        }  # fmt: skip

    def _texts(self) -> tuple[Any, Any]:
        return load_template("questions", ("system", "ask")), load_profile(self.profile)

    def ask(self, document: Document) -> Job[list[str] | Failure]:
        """Questions for one document."""
        template, profile = self._texts()
        relevance = profile.sections["relevance"]
        system = Message("system", Template(template.sections["system"]).substitute(relevance=relevance))
        context = self.backend.context
        if context is not None:
            room = context - self.backend.count(system.content) - self.tokens - 200
            document = cut_document(document, max(1, room), self.backend.count)[0]
        mark = hashlib.blake2b(document.content.encode(), digest_size=8).hexdigest()
        content = Template(template.sections["ask"]).substitute(
            passage=document.content, mark=mark, count=self.count
        )
        request = ChatRequest(
            key="",
            messages=(system, Message("user", content)),
            shape=Questions,
            schema=bounded_schema(Questions, characters=300, items={"questions": (1, self.count)}),
            max_tokens=self.tokens,
            temperature=0.7,
            seed=self.seed,
        )
        outcome = yield Call.of("question", document.id, request)
        if isinstance(outcome, ChatResult) and isinstance(outcome.value, Questions):
            return outcome.value.questions[: self.count]
        return Failure.of(outcome)


def model_questions(
    documents: Sequence[Document],
    rows: Sequence[int],
    asker: ModelAsker,
    journal: Journal,
    *,
    budget: Budget | None = None,
) -> tuple[list[Asked], Counter[str]]:
    """Questions of a language model for some documents, and how many failed, by kind.

    Args:
        documents: The corpus.
        rows: Rows of the documents.
        asker: Who asks.
        journal: Where finished answers are kept.
        budget: What they may cost.
    """
    ledger = journal.ledger("writer", asker.identity)
    runner = Runner((asker.ask(documents[row]) for row in rows), asker.backend, ledger=ledger, budget=budget)
    results = dict(runner)
    failures = Counter(found.kind for found in results.values() if isinstance(found, Failure))
    if len(rows) > len(results):
        failures["over budget"] = len(rows) - len(results)
    asked = [
        Asked(" ".join(text.split()), rows[number])
        for number, found in sorted(results.items())
        if not isinstance(found, Failure)
        for text in found
    ]
    return asked, failures


def verify_questions(
    asked: Sequence[Asked], documents: Sequence[Document], *, language: Language, again: int = AGAIN
) -> tuple[list[Asked], Counter[str]]:
    """The questions that may be trained on, and why the others may not.

    Args:
        asked: The questions.
        documents: The corpus.
        language: Its language.
        again: Rank within which BM25 must find the passage again.
    """
    reasons: Counter[str] = Counter()
    kept, seen = [], set()
    for one in asked:
        size = len(one.text) // 2 if language.signs else len(one.text.split())
        if size < _FEWEST:
            reasons["too short"] += 1
        elif size > _MOST:
            reasons["too long"] += 1
        elif _ABOUT.search(one.text):
            reasons["about the passage"] += 1
        elif text_key(one.text) in seen:
            reasons["duplicate"] += 1
        else:
            seen.add(text_key(one.text))
            kept.append(one)
    if not kept:
        return [], reasons
    texts = [document.content for document in documents]
    _, rows = make_searcher("bm25", Collection(texts, language=language.name)).search(
        [one.text for one in kept], again
    )
    own = [text_key(texts[one.document]) for one in kept]
    found = [
        any(row >= 0 and (row == one.document or text_key(texts[row]) == key) for row in ranked.tolist())
        for one, key, ranked in zip(kept, own, rows, strict=True)
    ]
    reasons["not found again"] += found.count(False)
    return [one for one, here in zip(kept, found, strict=True) if here], +reasons


def make_questions(
    source: Path,
    out: Path,
    *,
    backend: ChatBackend | None = None,
    profile: str = "generic",
    per_document: int = 1,
    most: int = 2000,
    test_share: float = 0.2,
    seed: int = 0,
    skip_bad: bool = False,
    report: Report = report_to_user,
) -> str:
    """Write a data set OUT: the corpus of a source, questions for it, and its own queries and judgements.

    A fixed share of the documents is held out: their questions are the split ``test``, the others ``train``.
    Where the source has a ``test`` of its own, that one stays and all questions are ``train``.

    Args:
        source: A data set, or a plain folder of documents.
        out: The folder; new or empty. The journal of a model is OUT.journal.
        backend: Where a language model runs; None asks by rules.
        profile: Name of a corpus profile, for the model.
        per_document: Questions of the model for each document; rules ask one.
        most: Most questions; the documents are drawn by the seed.
        test_share: Share of the documents that is held out.
        seed: Decides which documents are asked about.
        skip_bad: Whether malformed lines are left out.
        report: Where lines for the user go.

    Returns:
        Counts, in Markdown.

    Raises:
        BackendError: Most calls of the model failed.
        ConfigError: A number is out of range.
        DataError: The source cannot be read or has questions to train on already, or none came out.
    """
    if most < 1 or per_document < 1 or not 0 <= test_share < 1:
        raise ConfigError(
            f"questions: at least 1 in all and of each document, and a share below 1, got {most}, "
            f"{per_document}, {test_share}"
        )
    dataset = read_dataset(source, splits=find_reader(source).splits(), skip_bad=skip_bad, report=report)
    if dataset.qrels.get("train"):
        raise DataError(f"{source}: has queries to train on already (split train); no questions are needed")
    documents = dataset.documents
    language = detect_language([document.content for document in documents]).language
    failures: Counter[str] = Counter()
    if backend is None:
        chosen = set(_drawn(documents, 2 * most, seed))  # some are refused
        asked = [one for one in rule_questions(documents, language=language) if one.document in chosen]
    else:
        wanted = _drawn(documents, -(-most // per_document), seed)
        asker = ModelAsker(backend, profile, per_document, seed=seed)
        with Journal(beside(out.with_name(f"{out.name}.jsonl"), ".journal"), report=report) as journal:
            asked, failures = model_questions(documents, wanted, asker, journal)
        if failures.total() > len(wanted) / 2:
            raise BackendError(
                f"{failures.total()} of {len(wanted)} passages have no questions ({dict(failures)}); what is "
                "finished is in the journal: run the same again"
            )
    kept, reasons = verify_questions(asked, documents, language=language)
    kept = kept[:most] if backend is not None else _some(kept, most, seed)
    if not kept:
        raise DataError(f"{source}: no question came out of {len(documents)} documents ({dict(reasons)})")
    held_out = 0 if "test" in dataset.qrels else test_share
    splits = _write(dataset, kept, out, held_out)
    rows = [["kept", str(len(kept))], *([reason, str(number)] for reason, number in reasons.most_common())]
    rows += [[f"failed: {kind}", str(number)] for kind, number in failures.most_common()]
    rows += [[f"split {split}", str(number)] for split, number in splits.items()]
    if backend is None:
        report(
            "the questions are the rare words of sentences, which a search by words finds easily: they train "
            "an encoder, but a figure on them says little of how people's queries would fare"
        )
    return markdown_table(["questions", "number"], rows)


def _write(dataset: Dataset, kept: Sequence[Asked], out: Path, test_share: float) -> dict[str, int]:
    documents, queries = dataset.documents, dict(dataset.queries)
    qrels: dict[str, dict[str, dict[str, int]]] = {split: dict(q) for split, q in dataset.qrels.items()}
    counts: Counter[str] = Counter()
    same: dict[str, list[str]] = {}
    for document in documents:
        same.setdefault(text_key(document.content), []).append(document.id)
    for number, one in enumerate(kept, start=1):
        document = documents[one.document]
        query = Query(id=f"asked-{number}", text=one.text)
        if query.id in queries:
            raise DataError(f"{dataset.path}: has a query '{query.id}' already")
        queries[query.id] = query
        test = test_share and _number(f"held out {text_key(document.content)}") % 1000 < 1000 * test_share
        split = "test" if test else "train"
        answers = dict.fromkeys(same[text_key(document.content)], 1)
        qrels.setdefault(split, {})[query.id] = answers
        counts[split] += 1
    write_dataset(out, documents, queries.values(), qrels)
    return dict(counts)


def _drawn(documents: Sequence[Document], count: int, seed: int) -> list[int]:
    """Rows of some documents, drawn without replacement, in their order."""
    rng = np.random.default_rng(seed)
    return sorted(rng.permutation(len(documents))[:count].tolist())


def _some(kept: Sequence[Asked], most: int, seed: int) -> list[Asked]:
    chosen = np.random.default_rng([seed, 1]).permutation(len(kept))[:most]
    return [kept[at] for at in sorted(chosen.tolist())]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
