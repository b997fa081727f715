"""A whole written set by a language model: settings, backend, writer, judge, files, data card."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from causalneg.data import Dataset, write_examples
from causalneg.data.schema import Example
from causalneg.generation.journal import Journal, refuse_if_open
from causalneg.generation.model_pipeline import Tracker, generate_with_model, open_journal, status
from causalneg.generation.pipeline import data_card, pairs_from, rewrite_examples
from causalneg.generation.steps import WINDOW, Budget
from causalneg.generation.verification.heuristics import Verification, verify
from causalneg.generation.verification.judges import (
    CrossEncoderJudge,
    Judge,
    LLMJudge,
    Review,
    check_voices,
    review,
)
from causalneg.generation.writers.language_model import LLMWriter
from causalneg.generation.writers.prompts import Limits, Prompts
from causalneg.llm.chat import ChatBackend
from causalneg.llm.openai_server import KEY_VARIABLE, OpenAIBackend
from causalneg.llm.transformers_local import TransformersBackend
from causalneg.llm.vllm_engine import EngineSettings, VLLMBackend
from common.errors import BackendError, ConfigError, suggest
from common.files import atomic_write
from common.report.tables import format_number, markdown_table
from common.training.tracking import WandbMode

if TYPE_CHECKING:
    from causalneg.world import World

MODEL_BACKENDS = ("vllm", "openai", "transformers")
"""Backends with a language model behind them."""

_PART = 1 << 16
_PARTS = 256


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """OpenAI-compatible servers; see :class:`causalneg.llm.openai_server.OpenAIBackend`.

    Args:
        endpoints: Base URLs of servers that have the model.
        key_variable: Environment variable with the key.
        concurrency: Requests at a time and endpoint to begin with.
        highest_concurrency: Requests at a time and endpoint, at most.
        timeout: Seconds until a request counts as stalled.
        attempts: How often a request is sent at most.
        first_wait: Seconds before the second attempt, at most.
        patience: Seconds that a request is put off by 429, and that all endpoints may be away together.
        context: Tokens of the model's context; None takes it from servers that tell.
        extra_body: Further fields of each request.
    """

    endpoints: tuple[str, ...] = ()
    key_variable: str = KEY_VARIABLE
    concurrency: int = 32
    highest_concurrency: int = 256
    timeout: float = 120.0
    attempts: int = 5
    first_wait: float = 0.5
    patience: float = 600.0
    context: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """The offline engine; see :class:`causalneg.llm.vllm_engine.EngineSettings`.

    Args:
        adapter: Folder of a LoRA adapter; None for none.
        tensor_parallel: Devices that one copy of the model is spread over.
        data_parallel: Copies of the model.
        context: Tokens of prompt and answer together; None takes the model's.
        sequences: Answers that an engine writes at a time; None leaves it to vLLM.
        seeds: Whether each request has a seed of its own.
        attempts: How often a request with a bad answer is asked.
        template: Further arguments of the chat template.
        engine: Further arguments of ``vllm.LLM``.
    """

    adapter: str | None = None
    tensor_parallel: int = 1
    data_parallel: int = 1
    context: int | None = None
    sequences: int | None = None
    seeds: bool = True
    attempts: int = 3
    template: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """A model in this process; see :class:`causalneg.llm.transformers_local.TransformersBackend`.

    Args:
        adapter: Folder of a LoRA adapter; None for none.
        batch: Texts at a time.
        attempts: How often a request with a bad answer is asked.
        context: Tokens of prompt and answer together; None takes the model's.
        device: Where it runs; by default a GPU if there is one.
        dtype: Type of the weights; None takes the model's.
        template: Further arguments of the chat template.
    """

    adapter: str | None = None
    batch: int = 8
    attempts: int = 3
    context: int | None = None
    device: str | None = None
    dtype: str | None = None
    template: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Who has the last word on written texts, after the verifier.

    Args:
        kind: ``none``, ``llm`` (the writer's model unless another is named) or ``cross-encoder``. Rewritten
            passages are always judged, by ``llm`` if nobody is named.
        model: Name of the judge's model: on the writer's endpoints, or a cross-encoder.
        endpoints: Endpoints of the judge's model; by default the writer's.
        margin: How far below the positive's score a passage still answers, for a cross-encoder.
    """

    kind: Literal["none", "llm", "cross-encoder"] = "none"
    model: str = ""
    endpoints: tuple[str, ...] = ()
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """All that decides how a language model writes; only the part of the chosen backend is looked at.

    Args:
        model: Name or folder of the model; only prompts that are looked at beforehand need none.
        profile: Name of a corpus profile (generic, nq, triviaqa, hotpotqa, mmarco), or path of a text file.
        temperature: Of the sampling; 0 takes the likeliest token.
        top_p: Share of the probability that is sampled from.
        limits: How much the model is shown and asked for.
        budget: What a set may cost, its judge included.
        server: For the backend ``openai``.
        vllm: For the backend ``vllm``.
        local: For the backend ``transformers``.
        judge: Who has the last word.
        wandb: Whether the progress goes to W&B: ``disabled``, ``offline`` or ``online``.
        project: W&B project.
    """

    model: str = ""
    profile: str = "generic"
    temperature: float = 0.7
    top_p: float = 0.95
    limits: Limits = field(default_factory=Limits)
    budget: Budget = field(default_factory=Budget)
    server: ServerSettings = field(default_factory=ServerSettings)
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    wandb: WandbMode = "disabled"
    project: str = "causalneg"


def _warn(line: str) -> None:
    click.echo(line, err=True)


def make_backend(name: str, settings: ModelSettings, *, report: Callable[[str], None] = _warn) -> ChatBackend:
    """Make a backend with a language model behind it.

    Args:
        name: One of :data:`MODEL_BACKENDS`.
        settings: What it is made of.
        report: Where lines for the user go.

    Raises:
        ConfigError: There is no such backend, or a value is out of range.
        BackendError: It cannot work: no server, a wrong key, an unknown model, a missing library.
    """
    if name in MODEL_BACKENDS and not settings.model:
        raise ConfigError("model: name a model, or give the folder of one")
    if name == "vllm":
        return VLLMBackend(EngineSettings(model=settings.model, **vars(settings.vllm)))
    if name == "openai":
        return OpenAIBackend(model=settings.model, report=report, **vars(settings.server))
    if name == "transformers":
        return TransformersBackend(settings.model, **vars(settings.local))
    known = ", ".join(MODEL_BACKENDS)
    raise ConfigError(f"backend: must be one of {known}, got '{name}'{suggest(name, MODEL_BACKENDS)}")


def preview_prompts(source: Sequence[Example], dataset: Dataset, settings: ModelSettings) -> str:
    """Both prompts for the first pair, as they would be sent; no model is asked or loaded.

    Args:
        source: A mined set.
        dataset: Where its documents are.
        settings: Profile and limits.

    Raises:
        ConfigError: There is no such profile.
    """
    (pair,) = pairs_from(source[:1], dataset, candidates=settings.limits.candidates)
    prompts = Prompts(settings.profile, settings.limits)
    shown = prompts.preview(pair.query, pair.positive, pair.candidates)
    return f"model: {settings.model or 'none named'}\nprompt version: {prompts.version}\n\n{shown}"


def write_model_set(
    source: Sequence[Example],
    dataset: Dataset,
    out: Path,
    *,
    backend: str,
    settings: ModelSettings,
    world: World | None = None,
    both_voices: bool = False,
    voices_per_query: int = 5,
    retry_failed: bool = False,
    seed: int = 0,
    progress: bool = False,
    report: Callable[[str], None] = _warn,
) -> str:
    """Write negatives with a language model, verify them, and write what is valid.

    Beside ``out`` lie ``.rejected.jsonl``, ``.voices.jsonl``, ``.card.md``, ``.card.json``, ``.journal`` and,
    with a judge, ``.judge.journal``. Killed at any moment, the same call goes on where it was and pays for
    nothing twice.

    Args:
        source: A mined set.
        dataset: Where its documents are.
        out: File to write.
        backend: One of :data:`MODEL_BACKENDS`.
        settings: All that decides how the model writes.
        world: The world that the data set is of; None for real text.
        both_voices: Whether the model rewrites positives and mined negatives too.
        voices_per_query: Mined negatives of each query that are rewritten.
        retry_failed: Whether pairs are tried again whose failure is in the journal.
        seed: Decides every draw.
        progress: Whether to show a progress bar.
        report: Where lines for the user go.

    Returns:
        The data card in Markdown.

    Raises:
        BackendError: Nothing can be answered at all; what is finished is in the journal.
        ConfigError: A setting is out of range.
        DataError: The journal is open elsewhere, damaged, or cannot be written.
    """
    # What can be told without the model is told before it is loaded.
    Prompts(settings.profile, settings.limits)
    pairs = pairs_from(source, dataset, candidates=settings.limits.candidates)
    refuse_if_open(_beside(out, ".journal"))
    with ExitStack() as stack:
        chat = make_backend(backend, settings, report=report)
        stack.callback(chat.close)
        writer = LLMWriter(
            chat,
            profile=settings.profile,
            seed=seed,
            limits=settings.limits,
            temperature=settings.temperature,
            top_p=settings.top_p,
            weights=_weights(backend, settings),
        )
        journal = stack.enter_context(open_journal(_beside(out, ".journal"), writer, report=report))
        judge, voice_judge = None, None
        if settings.judge.kind != "none":
            judge = voice_judge = stack.enter_context(
                open_judge(chat, backend, settings, out, spent=[journal], report=report)
            )
        elif both_voices:
            asked = replace(settings, judge=replace(settings.judge, kind="llm"))
            voice_judge = stack.enter_context(
                open_judge(chat, backend, asked, out, spent=[journal], report=report)
            )
        said = voice_judge.journal if isinstance(voice_judge, LLMJudge) else None
        writer.keep(journal, settings.budget, [said] if said is not None else [])
        track = stack.enter_context(_tracker(settings, out, writer))
        made = generate_with_model(
            pairs, writer, retry_failed=retry_failed, progress=progress, track=track, report=report
        )
        checked = verify(made.examples, dataset, world=world)
        parts = []
        if judge is not None:
            reviewed = review(checked, dataset, judge, made.needs)
            checked = reviewed.checked
            parts.append(f"## The judge\n\n{reviewed.to_markdown()}")
            if reviewed.unsaid:
                report(
                    f"the judge gave no opinion on {reviewed.unsaid} of {reviewed.counts.total()} negatives; "
                    "the verifier's stands"
                )
        if voice_judge is not None and both_voices:
            voices = rewrite_examples(
                source, dataset, writer, negatives=voices_per_query, progress=progress, batch=WINDOW
            )
            voices, counts = check_voices(voices, dataset, voice_judge, made.needs)
            counts.update({f"not rewritten: {kind}": n for kind, n in writer.unspoken.items()})
            rows = [[what, str(number)] for what, number in sorted(counts.items())]
            parts.append(
                f"## Both voices\n\nJudged by {voice_judge.name}; only unchanged ones are kept.\n\n"
                f"{markdown_table(['passages', 'number'], rows)}"
            )
            _say_unspoken(writer.unspoken, report)
            write_examples(_beside(out, ".voices.jsonl"), voices)
        if said is not None:
            cost = settings.budget.cost(said.totals.prompt_tokens, said.totals.completion_tokens)
            parts.append(
                f"Tokens of the judge: {said.totals.prompt_tokens} read, {said.totals.completion_tokens} "
                f"written; cost {format_number(cost, 4)}.\n"
            )
        parts.insert(0, made.to_markdown(journal.totals, settings.budget))
    write_examples(_beside(out, ".rejected.jsonl"), checked.rejected)
    card = "\n".join([data_card(checked, source, dataset), *parts])
    atomic_write(_beside(out, ".card.md"), card)
    atomic_write(_beside(out, ".card.json"), json.dumps(checked.report.to_dict(), indent=1) + "\n")
    write_examples(out, checked.kept)
    return card


def set_status(out: Path) -> str:
    """How far a written set is, in Markdown; also while a process is at work on it.

    Args:
        out: The set; its journals lie beside it.

    Raises:
        DataError: Nothing has been generated there yet.
    """
    judge = _beside(out, ".judge.journal")
    return status(_beside(out, ".journal"), judge if judge.is_file() else None)


def _say_unspoken(kinds: Counter[str], report: Callable[[str], None]) -> None:
    if kinds:
        listed = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common())
        report(f"{kinds.total()} passages are not rewritten: {listed}")


def _weights(backend: str, settings: ModelSettings) -> str:
    """Digest of the weights that a backend reads from folders of this machine; empty if it reads none."""
    if backend == "openai":
        return ""
    adapter = settings.vllm.adapter if backend == "vllm" else settings.local.adapter
    return weights_digest([settings.model, *([adapter] if adapter else [])])


def weights_digest(folders: Iterable[str]) -> str:
    """What tells the models in some folders from others that lay there before; empty if none is a folder.

    Of large files parts are read that lie evenly over them: training changes weights everywhere.

    Args:
        folders: Folders of a model and its adapter; names of models elsewhere are passed over.
    """
    digest, found = hashlib.blake2b(digest_size=6), False
    for folder in map(Path, folders):
        if not folder.is_dir():
            continue
        for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            size, found = path.stat().st_size, True
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(_PART, size // _PARTS)):
                    file.seek(start)
                    digest.update(file.read(_PART))
    return digest.hexdigest() if found else ""


@contextmanager
def open_judge(
    chat: ChatBackend,
    backend: str,
    settings: ModelSettings,
    out: Path,
    *,
    spent: Sequence[Journal] = (),
    report: Callable[[str], None] = _warn,
) -> Iterator[Judge]:
    """The judge that the settings name, with a journal of its own beside a set.

    Args:
        chat: The writer's backend; it judges too unless another model is named.
        backend: Its name.
        settings: Who judges.
        out: The set.
        spent: Further journals whose calls are paid from the same budget.
        report: Where lines for the user go.

    Raises:
        BackendError: The judge's model cannot be had.
        ConfigError: A cross-encoder is asked for, and none named; see its class. Or nobody is named.
        DataError: The judge's journal is open elsewhere, or damaged.
    """
    asked = settings.judge
    if asked.kind == "none":
        raise ConfigError("judge.kind: name a judge, llm or cross-encoder")
    if asked.kind == "cross-encoder":
        scorer = CrossEncoderJudge(asked.model, margin=asked.margin)
        scorer.scores([])  # loads it: a model that is none is told before anything is written
        yield scorer
    else:
        with ExitStack() as stack:
            weights = _weights(backend, settings)
            if asked.model and asked.model != settings.model:
                weights = ""
                server = {**vars(settings.server), "endpoints": asked.endpoints or settings.server.endpoints}
                chat = OpenAIBackend(model=asked.model, report=report, **server)
                stack.callback(chat.close)
            judge = LLMJudge(chat, profile=settings.profile, limits=settings.limits, weights=weights)
            path = _beside(out, ".judge.journal")
            journal = stack.enter_context(Journal(path, judge.identity, report=report))
            judge.keep(journal, settings.budget, spent)
            yield judge


def review_set(
    checked: Verification,
    dataset: Dataset,
    out: Path,
    *,
    backend: str,
    settings: ModelSettings,
    report: Callable[[str], None] = _warn,
) -> Review:
    """Ask the judge that the settings name about a verified set.

    Args:
        checked: What the verifier said.
        dataset: Where documents are.
        out: The set; the judge's journal lies beside it.
        backend: Where an LLM judge runs, one of :data:`MODEL_BACKENDS`; a cross-encoder needs none.
        settings: Who judges; without a judge in them the writer's model does.
        report: Where lines for the user go.

    Raises:
        BackendError: The judge's model cannot be had.
        ConfigError: A setting is out of range.
        DataError: The judge's journal is open elsewhere, or damaged.
    """
    if settings.judge.kind == "cross-encoder":
        return review(checked, dataset, CrossEncoderJudge(settings.judge.model, margin=settings.judge.margin))
    judged = replace(
        settings,
        model=settings.model or settings.judge.model,
        judge=replace(settings.judge, kind="llm"),
    )
    Prompts(settings.profile, settings.limits)
    with ExitStack() as stack:
        chat = make_backend(backend, judged, report=report)
        stack.callback(chat.close)
        judge = stack.enter_context(open_judge(chat, backend, judged, out, report=report))
        return review(checked, dataset, judge)


@contextmanager
def _tracker(settings: ModelSettings, out: Path, writer: LLMWriter) -> Iterator[Tracker | None]:
    if settings.wandb == "disabled":
        yield None
        return
    import wandb

    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=settings.project,
            name=out.stem,
            dir=out.parent,
            mode=settings.wandb,
            config={**writer.identity, **{f"budget/{k}": v for k, v in asdict(settings.budget).items()}},
            settings=wandb.Settings(silent=True, console="off", reinit="create_new"),
        )
    except wandb.Error as error:
        raise BackendError(f"wandb: {error}; log in, or take wandb=offline") from None
    try:
        yield lambda figures: run.log(dict(figures))
    finally:
        run.finish()


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(".jsonl") + ending)
