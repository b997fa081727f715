"""A whole written set: components from their settings, files in, files out.

Beside a set ``OUT.jsonl`` lie ``.rejected.jsonl`` (what verifier or judge refused, with the reason),
``.voices.jsonl`` (rewritten passages), ``.card.md``, ``.card.json`` and ``.journal``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalneg.data import Dataset, Report, read_dataset, read_examples, write_examples
from causalneg.data.lineage import dataset_artifact, set_artifact
from causalneg.data.schema import Example
from causalneg.generation.card import data_card
from causalneg.generation.config import GenerateConfig, JudgeConfig
from causalneg.generation.driver import Tracker, generate, pairs_from, rewrite_examples
from causalneg.generation.journal import Journal, Ledger
from causalneg.generation.verification import JUDGES
from causalneg.generation.verification.heuristics import Verification, verify
from causalneg.generation.verification.judge import Judge
from causalneg.generation.verification.review import Review, check_voices, review
from causalneg.generation.writers.base import Writer
from causalneg.generation.writers.prompts import load_profile
from causalneg.llm.chat import ChatBackend
from causalneg.text.corpus import Corpus
from causalneg.text.language import detect_language, find_language
from causalneg.world import World, find_world
from common.cli import report as report_to_user
from common.config import Component, Registry
from common.errors import BackendError, ConfigError, DataError
from common.files import atomic_write, beside
from common.report.tables import format_number, markdown_table
from common.training.task import Artifact
from common.training.wandb_step import tracked_step


def generate_set(
    data: Path,
    mined: Path,
    out: Path,
    config: GenerateConfig,
    *,
    both_voices: bool = False,
    voices_per_query: int = 5,
    limit: int | None = None,
    retry_failed: bool = False,
    seed: int = 0,
    skip_bad: bool = False,
    progress: bool = False,
    report: Report = report_to_user,
) -> str:
    """Write negatives for the queries of a mined set, verify them, and write what is valid.

    Killed at any moment, the same call goes on where it was and pays for nothing twice.

    Args:
        data: BEIR folder.
        mined: Training set whose queries, positives and negatives (as candidates) are the input.
        out: File to write.
        config: Who writes and who judges.
        both_voices: Whether positives and mined negatives are rewritten too.
        voices_per_query: How many mined negatives of each query are rewritten.
        limit: Only the first so many queries.
        retry_failed: Whether pairs are tried again whose failure is in the journal.
        seed: Decides every choice of the writer.
        skip_bad: Whether malformed lines are left out.
        progress: Whether to show a progress bar.
        report: Where lines for the user go.

    Returns:
        The data card in Markdown.

    Raises:
        BackendError: The model cannot be had, or more pairs or verdicts failed than may; what is finished is
            in the journal, what failed in the data card, and ``out`` is not written.
        ConfigError: A setting is out of range.
        DataError: The input cannot be read, or the journal is open elsewhere, damaged or cannot be written.
    """
    dataset, source = _read(data, mined, limit, skip_bad, report)
    load_profile(config.profile)  # what can be said without the model is said before it is loaded
    world = find_world(data)
    _check_language(config, dataset, world, report)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(beside(out, ".journal"), report=report))
        models = stack.enter_context(_Models(config, report))
        writer = models.writer(config, dataset, world, seed)
        pairs = pairs_from(source, dataset, candidates=writer.candidates)
        judge, judged = models.judge(journal, voices=both_voices)
        ledger = journal.ledger("writer", writer.identity)
        track = stack.enter_context(_tracker(config, data, mined, out, writer, source))
        made = generate(
            pairs, writer, ledger=ledger, budget=config.budget, retry_failed=retry_failed, progress=progress,
            track=track, report=report,
        )  # fmt: skip
        checked = verify(made.examples, dataset, world=world, shown=pairs)
        parts, failed = [], []
        if made.failed_share > config.max_failed:
            failed.append(f"{made.failures.total()} of {len(made.examples)} pairs have no negatives")
        if judge is not None and judged is not None and config.judge is not None:
            reviewed = review(checked, dataset, judge, judged, budget=config.budget, needs=made.needs)
            checked = reviewed.checked
            parts.append(f"## The judge\n\n{reviewed.to_markdown()}")
            failed += _unjudged(reviewed, config, report)
        if both_voices:
            voices, unspoken = rewrite_examples(
                source, dataset, writer, negatives=voices_per_query, ledger=ledger, budget=config.budget,
                progress=progress,
            )  # fmt: skip
            _report_unspoken(unspoken, report)
            if judge is not None and judged is not None:
                voices, counts = check_voices(
                    voices, dataset, judge, judged, budget=config.budget, needs=made.needs
                )
                counts.update({f"not rewritten: {kind}": n for kind, n in unspoken.items()})
                parts.append(_voices_part(judge, counts))
        parts.insert(0, made.to_markdown(ledger.totals(), config.budget))
        if judged is not None:
            cost = config.budget.cost(judged.prompt_tokens, judged.completion_tokens)
            parts.append(
                f"Tokens of the judge: {judged.prompt_tokens} read, {judged.completion_tokens} written; "
                f"cost {format_number(cost, 4)}.\n"
            )
        parts = [f"**Failed: {line}; the set was not written.**\n" for line in failed] + parts
        card = "\n".join([data_card(checked, source, dataset), *parts])
        atomic_write(beside(out, ".card.md"), card)
        figures = {**checked.report.to_dict(), "pairs": len(made.examples), "failures": dict(made.failures)}
        atomic_write(beside(out, ".card.json"), json.dumps(figures, indent=1) + "\n")
        _refuse(failed, out, config)
        if both_voices:
            write_examples(beside(out, ".voices.jsonl"), voices)
        _write(checked, out)
        return card


def preview_set(
    data: Path,
    mined: Path,
    config: GenerateConfig,
    *,
    seed: int = 0,
    skip_bad: bool = False,
    report: Report = report_to_user,
) -> str:
    """What would be done for the first pair: the prompts, or what the rules make of it; no model is loaded.

    Args:
        data: BEIR folder.
        mined: Training set that would be written for.
        config: Who writes.
        seed: Decides every choice of the writer.
        skip_bad: Whether malformed lines are left out.
        report: Where lines for the user go.

    Raises:
        ConfigError: A setting is out of range.
        DataError: The input cannot be read.
    """
    dataset, source = _read(data, mined, 1, skip_bad, report)
    world = find_world(data)
    _check_language(config, dataset, world, report)
    writer = _writer(config, dataset, world, seed, None)
    (pair,) = pairs_from(source, dataset, candidates=writer.candidates)
    return writer.preview(pair)


def verify_set(
    data: Path,
    examples: Path,
    out: Path,
    config: JudgeConfig,
    *,
    skip_bad: bool = False,
    report: Report = report_to_user,
) -> str:
    """Check the written negatives of a set, and ask a judge if one is named; what is valid goes to ``out``.

    Args:
        data: BEIR folder.
        examples: Training set with written negatives.
        out: File to write; the rejected ones lie beside it with the reason, and the judge's journal.
        config: Who judges.
        skip_bad: Whether malformed lines are left out.
        report: Where lines for the user go.

    Returns:
        The counts of verifier and judge in Markdown.

    Raises:
        BackendError: The judge cannot be had, or answered for fewer negatives than it must; ``out`` is not
            written then.
        ConfigError: A setting is out of range.
        DataError: The input cannot be read, or the journal is open elsewhere, damaged or cannot be written.
    """
    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=report)
    found = read_examples(examples, skip_bad=skip_bad, report=report)
    load_profile(config.profile)
    world = find_world(data)
    _check_language(config, dataset, world, report)
    checked = verify(found, dataset, world=world)
    counts = checked.report.to_markdown()
    if config.judge is not None:
        with (
            Journal(beside(out, ".journal"), report=report) as journal,
            open_judge(config, journal, report) as (judge, judged),
        ):
            reviewed = review(checked, dataset, judge, judged, budget=config.budget)
        _refuse(_unjudged(reviewed, config, report), out, config)
        checked = reviewed.checked
        counts = f"{checked.report.to_markdown()}\n\n{reviewed.to_markdown()}"
    _write(checked, out)
    return counts


def takes(component: Component[Any], name: str) -> bool:
    """Whether the constructor of a component has a parameter.

    Args:
        component: The component.
        name: The parameter.
    """
    registry: Registry[Any] = component.registry
    return name in inspect.signature(registry[component.name]).parameters


@dataclass
class _Models:
    """Builds writer and judge, and the models behind them, once; closes the models at the end."""

    config: JudgeConfig
    report: Report

    def __enter__(self) -> _Models:
        self._stack = ExitStack()
        self._own: ChatBackend | None = None
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _build(self, component: Component[ChatBackend]) -> ChatBackend:
        backend = component.build(report=self.report)
        self._stack.callback(backend.close)
        return backend

    def _backend(self) -> ChatBackend:
        if self._own is None:
            self._own = self._build(self.config.backend)
        return self._own

    def writer(self, config: GenerateConfig, dataset: Dataset, world: World | None, seed: int) -> Writer:
        backend = self._backend() if takes(config.writer, "backend") else None
        return _writer(config, dataset, world, seed, backend)

    def judge(self, journal: Journal, *, voices: bool = False) -> tuple[Judge | None, Ledger | None]:
        """The judge and its ledger; a model that rewrites passages judges them itself if nobody is named."""
        component = self.config.judge
        if component is None and voices and self._own is not None:
            component = JUDGES.component("llm")
        if component is None:
            return None, None
        backend = None
        if takes(component, "backend"):
            other = self.config.judge_backend
            backend = self._backend() if other is None else self._build(other)
        judge = component.build(backend=backend, profile=self.config.profile)
        judge.prepare([])  # loads it: a model that is none is refused before anything is written
        return judge, journal.ledger("judge", judge.identity)


@contextmanager
def open_judge(config: JudgeConfig, journal: Journal, report: Report) -> Iterator[tuple[Judge, Ledger]]:
    """The judge that a config names, and its part of a journal.

    Args:
        config: Who judges; somebody must be named.
        journal: Where answers are kept.
        report: Where lines for the user go.

    Raises:
        BackendError: It cannot be had.
    """
    with _Models(config, report) as models:
        judge, ledger = models.judge(journal)
        assert judge is not None
        assert ledger is not None
        yield judge, ledger


def _writer(
    config: GenerateConfig, dataset: Dataset, world: World | None, seed: int, backend: ChatBackend | None
) -> Writer:
    given: dict[str, Any] = {"world": world, "seed": seed, "backend": backend, "profile": config.profile}
    if takes(config.writer, "corpus"):
        given["corpus"] = Corpus.of(dataset)
    return config.writer.build(**given)


def _check_language(config: JudgeConfig, dataset: Dataset, world: World | None, report: Report) -> None:
    """Refuse rules, and say what of the verifier does not hold, where the corpus is not English.

    Raises:
        ConfigError: The rules are to write another language than English, or the language is unknown.
    """
    chosen = None if config.language is None else find_language(config.language)
    language = chosen or detect_language([d.text for d in dataset.documents]).language
    if world is not None or language.name == "english":
        return
    how = "is" if chosen else "reads as"
    if isinstance(config, GenerateConfig) and takes(config.writer, "corpus"):
        raise ConfigError(
            f"writer '{config.writer.name}' writes English alone, and the corpus {how} {language.name}; "
            "let a language model write (--backend), or give --language english"
        )
    report(
        f"the corpus {how} {language.name}: the verifier's checks of names, dates, stems and function words "
        "are for English and find less; add a judge (--judge llm)"
    )


def _read(
    data: Path, mined: Path, limit: int | None, skip_bad: bool, report: Report
) -> tuple[Dataset, list[Example]]:
    dataset = read_dataset(data, splits=[], skip_bad=skip_bad, report=report)
    source = read_examples(mined, skip_bad=skip_bad, report=report)[:limit]
    if not source:
        raise DataError(f"{mined}: holds no examples, so there is nothing to write negatives for")
    return dataset, source


def _write(checked: Verification, out: Path) -> None:
    write_examples(beside(out, ".rejected.jsonl"), checked.rejected)
    write_examples(out, checked.kept)


def _unjudged(reviewed: Review, config: JudgeConfig, report: Report) -> list[str]:
    """Say what the judge did not answer for; a line if that is more than may be."""
    if not reviewed.unjudged:
        return []
    line = f"the judge gave no verdict on {reviewed.unjudged} of {reviewed.counts.total()} negatives"
    if reviewed.unjudged > config.max_failed * reviewed.counts.total():
        return [line]
    report(f"{line}; they are rejected as not judged")
    return []


def _refuse(failed: Sequence[str], out: Path, config: JudgeConfig) -> None:
    BackendError.raise_if(
        f"{out}: {line}, more than max_failed={config.max_failed:g} allows; nothing is written there. "
        "What is finished is in the journal: run the same again, with --retry-failed if the model is to blame"
        for line in failed
    )


def _report_unspoken(kinds: Counter[str], report: Report) -> None:
    if kinds:
        listed = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
        report(f"{kinds.total()} passages are not rewritten: {listed}")


def _voices_part(judge: Judge, counts: Counter[str]) -> str:
    rows = [[what, str(number)] for what, number in sorted(counts.items())]
    return (
        f"## Both voices\n\nJudged by {judge.name}; only unchanged ones are kept.\n\n"
        f"{markdown_table(['passages', 'number'], rows)}"
    )


def _tracker(
    config: GenerateConfig, data: Path, mined: Path, out: Path, writer: Writer, source: Sequence[Example]
) -> AbstractContextManager[Tracker | None]:
    """Track the writing: what was read, what came out."""

    def artifacts() -> list[Artifact]:
        return [
            dataset_artifact(data),
            set_artifact(mined, source),
            set_artifact(out, read_examples(out), made=True, mined=str(mined)),
        ]

    budget = {f"budget/{k}": v for k, v in dataclasses.asdict(config.budget).items()}
    return tracked_step(
        config.wandb, project=config.project, job_type="generate", out=out, tags=[writer.name],
        config={**writer.identity, **budget}, artifacts=artifacts,
    )  # fmt: skip
