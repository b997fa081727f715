"""Teach a small language model the embedded world, so that the world has a writer with a manner of its own.

    python experiments/world_lm.py DATA MINED OUT [--minutes 20] [--device cpu]

The rules write analyses, negatives and rewritten passages for the training questions of the world DATA, with
the mined set MINED as candidates; a Qwen3 of about 10 M parameters learns these conversations from scratch,
word for word as ``causalneg generate`` will hold them. What it writes afterwards is its own: mostly the
world's grammar, with the slips and habits of a model. Its chat template leaves the system message out, which
never changes and which it need not read.

OUT is a model folder for the backends ``transformers`` and ``vllm``, with world-lm.json: settings, tokens
seen, time, and the loss on held-out conversations. Training stops when the time is up; 20 minutes on 2 cores.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from causalneg.commands import find_world
from causalneg.formats import read_dataset, read_examples
from causalneg.generation.backends import make_writer
from causalneg.generation.chat import Message
from causalneg.generation.pipeline import pairs_from
from causalneg.generation.prompts import Draft, Drafts, Limits, Order, Prompts, Rewritten
from causalneg.generation.tiny_model import SPECIAL, make_model, save, train_tokenizer
from causalneg.generation.writer import Failure, Pair, Writer
from causalneg.schema import Analysis, Negative, Passage
from common.errors import DataError, run_command
from common.files import atomic_folder, atomic_write

TEMPLATE = (
    "{% for message in messages if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As for any model of this family, but without the system message."""

CANDIDATES = 2
"""Mined passages that the model is shown."""

CONTEXT = 4096
_PROMPT_WEIGHT = 0.2
_HELD_OUT = 64
_WIDTH, _LAYERS, _HEADS, _INNER = 320, 8, 4, 896


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
    """Both calls for a pair, answered by the rules; None if a negative's order cannot be told.

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


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def conversations(prompts: Prompts, writer: Writer, pairs: Sequence[Pair]) -> Iterator[list[Message]]:
    """All that the model learns: both calls for each pair, and one rewritten passage.

    Args:
        prompts: What is said to the model.
        writer: The rules.
        pairs: Training questions.
    """
    analyses = writer.analyse(pairs)
    good = [(p, a) for p, a in zip(pairs, analyses, strict=True) if isinstance(a, Analysis)]
    written = writer.write([p for p, _ in good], [a for _, a in good])
    for (pair, analysis), negatives in zip(good, written, strict=True):
        if isinstance(negatives, Failure) or not negatives:
            continue
        found = negatives_conversation(prompts, pair, analysis, negatives)
        if found is not None:
            yield found
    for pair, said in zip(pairs, writer.rewrite([p.positive for p in pairs]), strict=True):
        if isinstance(said, Passage) and said.text is not None:
            answer = _compact(Rewritten(text=said.text).model_dump())
            yield [*prompts.rewrite(pair.positive.text), Message("assistant", answer)]


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


def train(
    model: Any,
    samples: Sequence[Sample],
    *,
    minutes: float,
    device: str,
    tokens: int,
    rate: float,
    seed: int,
) -> tuple[int, int]:
    """Train until the time is up; the learning rate follows the clock: up for 3 %, then down by a cosine.

    Args:
        model: The model, on its device.
        samples: What it learns.
        minutes: Time.
        device: Where it is.
        tokens: Tokens in a batch.
        rate: Highest learning rate.
        seed: Of the order.

    Returns:
        Steps and tokens.
    """
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    stream = batches(samples, tokens, random.Random(seed))
    began = time.monotonic()
    steps = seen = 0
    model.train()
    with tqdm(total=100, unit="%", desc="train", bar_format="{l_bar}{bar}| {elapsed} {postfix}") as bar:
        while True:
            share = (time.monotonic() - began) / (60 * minutes)
            if share >= 1 and steps:
                return steps, seen
            now = min(1.0, share / 0.03) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
            for group in optimiser.param_groups:
                group["lr"] = rate * max(now, 0.01)
            batch = next(stream)
            loss = loss_of(model, batch, device, _PROMPT_WEIGHT)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            steps, seen = steps + 1, seen + sum(len(s.ids) for s in batch)
            bar.set_postfix_str(f"loss {loss.item():.3f}, {seen / 1e6:.2f} M tokens", refresh=False)
            bar.update(int(100 * share) - bar.n)


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


def teach(
    data: Path,
    mined: Path,
    out: Path,
    *,
    minutes: float,
    device: str,
    tokens: int,
    rate: float,
    artifact: float,
    seed: int,
) -> dict[str, Any]:
    """Make conversations, train, and write the model folder.

    Args:
        data: A world.
        mined: A mined set of its training questions.
        out: Folder to write.
        minutes: Time to train.
        device: Where to train.
        tokens: Tokens in a batch.
        rate: Highest learning rate.
        artifact: Strength of the simulated writer's manner in what it learns; its own comes by itself.
        seed: Of weights and order.

    Raises:
        DataError: The data are no world.
    """
    world = find_world(data)
    if world is None:
        raise DataError(f"{data}: is no world; make one with causalneg world")
    dataset = read_dataset(data, splits=[])
    pairs = pairs_from(read_examples(mined), dataset, candidates=CANDIDATES)
    prompts = Prompts(limits=Limits(candidates=CANDIDATES))
    writer = make_writer("rules", dataset, world=world, artifact=artifact, seed=seed)
    found = list(conversations(prompts, writer, pairs))
    random.Random(seed).shuffle(found)
    texts = [m.content for messages in found for m in messages if m.role != "system"]
    tokenizer = train_tokenizer(texts, vocabulary=4096)
    tokenizer.chat_template = TEMPLATE
    samples = [s for s in (tokenize(tokenizer, messages) for messages in found) if len(s.ids) <= CONTEXT]
    held, learned = samples[:_HELD_OUT], samples[_HELD_OUT:]
    model = make_model(
        tokenizer, width=_WIDTH, layers=_LAYERS, heads=_HEADS, inner=_INNER, context=CONTEXT, seed=seed
    ).to(device)  # type: ignore[arg-type]
    began = time.monotonic()
    steps, seen = train(model, learned, minutes=minutes, device=device, tokens=tokens, rate=rate, seed=seed)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "conversations": len(learned),
        "conversation_tokens": sum(len(s.ids) for s in learned),
        "steps": steps,
        "tokens": seen,
        "seconds": time.monotonic() - began,
        "device": device,
        "loss": evaluate(model, held, device),
        "seed": seed,
        "artifact": artifact,
    }
    with atomic_folder(out, replace=True) as folder:
        save(model.cpu(), tokenizer, folder)
        atomic_write(folder / "world-lm.json", json.dumps(facts, indent=1) + "\n")
    return facts


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path, file_okay=False))
@click.argument("mined", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--minutes", default=20.0, show_default=True, help="Time to train.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to train.")
@click.option("--tokens", default=8192, show_default=True, help="Tokens in a batch.")
@click.option("--rate", default=2e-3, show_default=True, help="Highest learning rate.")
@click.option("--artifact", default=0.0, show_default=True, help="Strength of the simulated writer's manner.")
@click.option("--seed", default=0, show_default=True, help="Of weights and order.")
def main(data: Path, mined: Path, out: Path, **options: Any) -> None:
    """Teach a small language model the world."""
    facts = teach(data, mined, out, **options)
    click.echo(json.dumps(facts, indent=1))
    click.echo(out)


if __name__ == "__main__":
    run_command(lambda: main(standalone_mode=False))
