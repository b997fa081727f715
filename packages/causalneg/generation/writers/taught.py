"""Teach a small language model the embedded world, so that the world has a writer with a manner of its own.

The rules write analyses, negatives and rewritten passages for the training questions of the world DATA, with
the mined set MINED as candidates; a Qwen3 of about 11 M parameters learns these conversations from scratch,
word for word as ``causalneg generate`` will hold them. It begins with what is easy: repeating and rewriting
passages. What it writes afterwards is its own: mostly the world's grammar, with the slips and habits of a
model. Its chat template leaves the system message out, which never changes and which it need not read.

OUT is a model folder for the backends ``transformers`` and ``vllm``, with world-lm.json: settings, tokens
seen, time, and the loss on held-out conversations. Training stops when the time is up; 20 minutes on 2 cores.
Killed and called again, it goes on from what it kept last, a few minutes before. The command is
``causalneg teach DATA MINED OUT``.

Over 400 lines: lessons, training and the record of one small model.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import Gt
from transformers import PreTrainedTokenizerFast

from causalneg.data import read_dataset, read_examples
from causalneg.data.schema import Analysis, Negative, Passage
from causalneg.generation.driver import pairs_from
from causalneg.generation.jobs import Job
from causalneg.generation.writers.base import Pair, Writer
from causalneg.generation.writers.prompts import Draft, Drafts, Limits, Order, Prompts, Rewritten
from causalneg.generation.writers.rules import RulesWriter
from causalneg.llm.chat import Message
from causalneg.llm.tiny_model import SPECIAL, make_model, save, train_tokenizer
from causalneg.text.corpus import Corpus
from causalneg.world import find_world
from common.config import checked
from common.errors import DataError
from common.files import atomic_folder, atomic_write
from common.live import Progress as Shown

TEMPLATE = (
    "{% for message in messages if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As for any model of this family, but without the system message."""

CANDIDATES = 2
"""Mined passages that the model is shown."""

LIMITS = Limits(
    least_requirements=1,
    most_requirements=3,
    least_disruptions=1,
    most_disruptions=2,
    candidates=CANDIDATES,
    sentence_characters=200,
    passage_characters=800,
    analysis_tokens=400,
    negatives_tokens=900,
)
"""How it is asked, in lessons and afterwards: for little, since every token costs a small machine time."""

CONTEXT = 4096
"""Tokens of its longest conversation."""

T = TypeVar("T")
_PROMPT_WEIGHT = 0.2  # of a token that it need not write
_EASY_SHARE = 0.3  # of the time, for repeating passages and rewriting them
_SHORT = 300  # tokens of a conversation that counts as easy
_HELD_OUT = 64
_KEEP_SECONDS = 120.0
_WIDTH, _LAYERS, _HEADS, _INNER = 512, 3, 8, 1408


@checked
@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How the model is taught.

    Args:
        minutes: Time to train.
        device: Where to train.
        tokens: Tokens in a batch, padding included.
        rate: Highest learning rate.
        artifact: Strength of the simulated writer's manner in what it learns; its own comes by itself.
        seed: Of weights and order.

    Raises:
        ConfigError: A value is out of range.
    """

    minutes: Annotated[float, Gt(0)] = 20.0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    tokens: Annotated[int, Gt(0)] = 1024
    rate: Annotated[float, Gt(0)] = 2e-3
    artifact: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A conversation as tokens.

    Args:
        ids: Tokens.
        answer: Whether each token is one that the model has to write.
    """

    ids: list[int]
    answer: list[bool]


def negatives_conversation(
    prompts: Prompts, pair: Pair, analysis: Analysis, negatives: Sequence[Negative]
) -> list[Message] | None:
    """Both calls for a pair, answered by the rules; None if a negative's order is unknown.

    Args:
        prompts: What is said to the model.
        pair: The pair.
        analysis: The rules' analysis.
        negatives: The rules' negatives.
    """
    orders, drafts = [], []
    shown = [c.id for c in pair.candidates]
    for negative in negatives:
        found = [
            Order(requirement, disruption)
            for requirement in analysis.requirements
            for disruption in requirement.disruptions
            if (requirement.text, disruption.kind) == (negative.requirement, negative.strategy)
        ]
        if not found or negative.text is None:
            return None
        orders.append(found[0])
        place = shown.index(negative.document_id) + 1 if negative.document_id in shown else 0
        instruction = found[0].disruption.instruction
        drafts.append(Draft(passage=place, change=instruction, title=negative.title, text=negative.text))
    said = Drafts.model_validate({f"negative_{n}": d for n, d in enumerate(drafts, start=1)})
    messages = prompts.negatives(pair.query, pair.positive, analysis, pair.candidates, orders)
    return [*messages, Message("assistant", _compact(said.model_dump(exclude_none=True)))]


def shortened(analysis: Analysis, negatives: Sequence[Negative]) -> Analysis:
    """An analysis with no more in it than what some negatives break.

    Args:
        analysis: The analysis.
        negatives: The negatives that were written with it.
    """
    broken = {(n.requirement, n.strategy) for n in negatives}
    kept = []
    for requirement in analysis.requirements:
        ways = [d for d in requirement.disruptions if (requirement.text, d.kind) in broken]
        if ways:
            kept.append(requirement.model_copy(update={"disruptions": ways}))
    return analysis.model_copy(update={"requirements": kept})


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def conversations(prompts: Prompts, writer: Writer, pairs: Sequence[Pair]) -> Iterator[list[Message]]:
    """All that the model learns: both calls for each pair, and one rewritten passage.

    Args:
        prompts: What is said to the model.
        writer: The rules.
        pairs: Training questions.
    """
    for pair in pairs:
        written = _result(writer.write(pair))
        if written.analysis is None or not written.negatives:
            continue
        short = shortened(written.analysis, written.negatives)
        found = negatives_conversation(prompts, pair, short, written.negatives)
        if found is not None:
            yield found
    for pair in pairs:
        passage = _result(writer.rewrite(pair.positive))
        if isinstance(passage, Passage) and passage.text is not None:
            answer = _compact(Rewritten(text=passage.text).model_dump())
            yield [*prompts.rewrite(pair.positive.text), Message("assistant", answer)]


def _result(job: Job[T]) -> T:
    """What a job without calls finds."""
    try:
        next(job)
    except StopIteration as stop:
        found: T = stop.value
        return found
    raise ValueError("the model learns from rules, which ask nobody")


def repetition(text: str) -> list[Message]:
    """What it learns first of all, since all else is built on it: to say again what it has read.

    Args:
        text: A passage.
    """
    return [Message("user", f"Passage:\n{text}\n\nSay it again."), Message("assistant", text)]


def tokenize(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> Sample:
    """A conversation as the chat template writes it.

    Args:
        tokenizer: The tokenizer.
        messages: The turns.
    """
    ids: list[int] = []
    answer: list[bool] = []
    for message in messages:
        if message.role == "system":
            continue
        head = tokenizer.encode(f"{SPECIAL[1]}{message.role}\n", add_special_tokens=False)
        body = tokenizer.encode(f"{message.content}{SPECIAL[2]}", add_special_tokens=False)
        tail = tokenizer.encode("\n", add_special_tokens=False)
        ids += [*head, *body, *tail]
        own = message.role == "assistant"
        answer += [False] * len(head) + [own] * len(body) + [False] * len(tail)
    return Sample(ids, answer)


def batches(samples: Sequence[Sample], tokens: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Batches of about as many tokens, without end, samples of like length together.

    Args:
        samples: All samples.
        tokens: Tokens in a batch, padding included.
        rng: Source of the order.
    """
    while True:
        order = sorted(samples, key=lambda s: len(s.ids) + rng.random() * 64)
        found: list[list[Sample]] = [[]]
        for sample in order:
            if found[-1] and (len(found[-1]) + 1) * len(sample.ids) > tokens:
                found.append([])
            found[-1].append(sample)
        rng.shuffle(found)
        yield from found


def loss_of(model: Any, batch: Sequence[Sample], device: str, prompt_weight: float) -> torch.Tensor:
    """Mean cross-entropy of the next token; tokens of prompts count less.

    Args:
        model: The model.
        batch: Some samples.
        device: Where the model is.
        prompt_weight: Weight of a token that the model need not write.
    """
    width = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weight = torch.zeros(len(batch), width)
    for row, sample in enumerate(batch):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        own = torch.tensor(sample.answer)
        weight[row, : len(sample.ids)] = torch.where(own, 1.0, prompt_weight)
    ids, weight = ids.to(device), weight.to(device)
    with torch.autocast(device.split(":")[0], torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    weight = weight[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum().clamp_min(1.0)


@dataclass
class Progress:
    """How far a lesson is.

    Args:
        seconds: Time spent.
        easy_steps: Steps made on easy samples.
        steps: Steps made on all samples.
        tokens: Tokens seen.
    """

    seconds: float = 0.0
    easy_steps: int = 0
    steps: int = 0
    tokens: int = 0


def train(
    model: Any, easy: Sequence[Sample], samples: Sequence[Sample], lesson: Lesson, state: Path
) -> Progress:
    """Train until the time is up; the learning rate follows the clock: up for 3 %, then down by a cosine.

    Args:
        model: The model, on its device.
        easy: What it learns in the first part of the time.
        samples: What it learns then.
        lesson: How.
        state: Where weights and optimiser are kept now and then, and found if it was killed.

    Returns:
        How far it came.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lesson.rate, betas=(0.9, 0.95))
    first = batches(easy, lesson.tokens, random.Random(lesson.seed))
    then = batches(samples, lesson.tokens, random.Random(lesson.seed))
    so_far = _restore(state, model, optimiser)
    for stream, steps in ((first, so_far.easy_steps), (then, so_far.steps)):
        for _ in range(steps):
            next(stream)
    spent, began = so_far.seconds, time.monotonic()
    kept = began
    model.train()
    with Shown("teach the writer") as shown:
        shown.stage("train", total=60 * lesson.minutes, unit="seconds", done=spent)
        while True:
            so_far.seconds = spent + time.monotonic() - began
            share = so_far.seconds / (60 * lesson.minutes)
            if share >= 1 and so_far.easy_steps + so_far.steps:
                return so_far
            if time.monotonic() - kept >= _KEEP_SECONDS:
                _keep(state, model, optimiser, so_far)
                kept = time.monotonic()
            now = min(1.0, share / 0.03) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
            for group in optimiser.param_groups:
                group["lr"] = lesson.rate * max(now, 0.01)
            beginner = share < _EASY_SHARE
            batch = next(first if beginner else then)
            loss = loss_of(model, batch, lesson.device, _PROMPT_WEIGHT)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            so_far.easy_steps += beginner
            so_far.steps += not beginner
            so_far.tokens += sum(len(s.ids) for s in batch)
            shown.show({"loss": f"{loss.item():.3f}", "tokens": f"{so_far.tokens / 1e6:.2f} M"})
            shown.at(so_far.seconds)


def _keep(state: Path, model: Any, optimiser: torch.optim.Optimizer, so_far: Progress) -> None:
    """Keep everything that going on needs, whole or not at all."""
    content = io.BytesIO()
    whole = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "progress": asdict(so_far)}
    torch.save(whole, content)
    atomic_write(state, content.getvalue())


def _restore(state: Path, model: Any, optimiser: torch.optim.Optimizer) -> Progress:
    """Go on with what was kept; from the beginning if there is nothing."""
    if not state.is_file():
        return Progress()
    whole = torch.load(state, weights_only=True, map_location="cpu")
    model.load_state_dict(whole["model"])
    optimiser.load_state_dict(whole["optimiser"])
    return Progress(**whole["progress"])


@torch.inference_mode()
def evaluate(model: Any, samples: Sequence[Sample], device: str) -> float:
    """Mean loss of the tokens that the model has to write.

    Args:
        model: The model.
        samples: Held-out samples.
        device: Where it is.
    """
    model.eval()
    losses = [loss_of(model, [sample], device, 0.0) for sample in samples]
    return float(torch.stack(losses).mean())


_FACTS = "world-lm.json"  # what a model folder says of its lesson


def teach(data: Path, mined: Path, out: Path, lesson: Lesson) -> dict[str, Any]:
    """Make conversations, train, and write the model folder; killed and called again, it goes on.

    Args:
        data: A world.
        mined: A mined set of its training questions.
        out: Folder to write; the state of a lesson that is not over lies beside it.
        lesson: How.

    Raises:
        DataError: The data are no world, or ``out`` holds something else than such a model.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / _FACTS).is_file():
        raise DataError(f"{out}: the folder is not empty; remove it or give another name")
    world = find_world(data)
    if world is None:
        raise DataError(f"{data}: is no world; make one with causalneg world")
    dataset = read_dataset(data, splits=[])
    pairs = pairs_from(read_examples(mined), dataset, candidates=CANDIDATES)
    prompts = Prompts(limits=LIMITS)
    writer = RulesWriter(corpus=Corpus.of(dataset), world=world, artifact=lesson.artifact, seed=lesson.seed)
    found = list(conversations(prompts, writer, pairs))
    random.Random(lesson.seed).shuffle(found)
    texts = [m.content for messages in found for m in messages if m.role != "system"]
    tokenizer = train_tokenizer(texts, vocabulary=4096)
    tokenizer.chat_template = TEMPLATE
    samples = [s for s in (tokenize(tokenizer, messages) for messages in found) if len(s.ids) <= CONTEXT]
    held, learned = samples[:_HELD_OUT], samples[_HELD_OUT:]
    drawn = random.Random(lesson.seed).sample(dataset.documents, min(len(learned), len(dataset.documents)))
    easy = [tokenize(tokenizer, repetition(document.text)) for document in drawn]
    easy += [s for s in learned if len(s.ids) <= _SHORT]
    model = make_model(
        tokenizer,
        width=_WIDTH,
        layers=_LAYERS,
        heads=_HEADS,
        inner=_INNER,
        context=CONTEXT,
        seed=lesson.seed,
    ).to(lesson.device)  # type: ignore[arg-type]
    about = json.dumps([asdict(lesson), prompts.version, len(learned), sum(len(s.ids) for s in learned)])
    digest = hashlib.sha256(about.encode()).hexdigest()[:12]
    state = out.with_name(f".{out.name}.{digest}.state")  # another lesson does not go on with this one
    progress = train(model, easy, learned, lesson, state)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "conversations": len(learned),
        "conversation_tokens": sum(len(s.ids) for s in learned),
        **asdict(progress),
        "loss": evaluate(model, held, lesson.device),
        "lesson": asdict(lesson),
    }
    with atomic_folder(out, replace=True) as folder:
        save(model.cpu(), tokenizer, folder)
        atomic_write(folder / _FACTS, json.dumps(facts, indent=1) + "\n")
    state.unlink(missing_ok=True)
    return facts
