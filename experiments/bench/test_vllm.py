"""Prove the language model backends on real engines: vLLM's offline engine and its OpenAI server, on a CPU.

    make test-vllm

A tiny Qwen3 with random weights, and a tokenizer trained on the world's own text, write negatives for pairs
of a small world. What a random model says is noise, but JSON of the right shape, so everything around it
can be held to account: every answer parses by its schema at the first attempt, journal and data card are
complete, a run that is killed half-way and started again ends in the same set. Besides, the client is timed
beside a plain loop over the same server with a pool of four threads.

Leaves test-vllm.json in the work folder: pairs per minute of both, and what was checked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import click

MODEL = "model"
REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "packages"))

from causalneg.commands import mine_set  # noqa: E402
from causalneg.data import Dataset, read_dataset, read_examples  # noqa: E402
from causalneg.data.schema import Example  # noqa: E402
from causalneg.generation.config import GenerateConfig  # noqa: E402
from causalneg.generation.driver import pairs_from  # noqa: E402
from causalneg.generation.jobs import Job  # noqa: E402
from causalneg.generation.journal import Answer, Ledger  # noqa: E402
from causalneg.generation.sets import generate_set  # noqa: E402
from causalneg.generation.status import read_totals  # noqa: E402
from causalneg.generation.writers.base import Written  # noqa: E402
from causalneg.generation.writers.language_model import LLMWriter  # noqa: E402
from causalneg.generation.writers.prompts import Limits, Prompts  # noqa: E402
from causalneg.llm.answers import read_answer  # noqa: E402
from causalneg.llm.chat import ChatResult, Outcome  # noqa: E402
from causalneg.llm.openai_server import OpenAIBackend  # noqa: E402
from causalneg.llm.tiny_model import make_model, save, train_tokenizer  # noqa: E402
from causalneg.mining import MiningRules  # noqa: E402
from causalneg.world import WorldConfig, make_world  # noqa: E402
from common.config import load  # noqa: E402
from common.files import atomic_write  # noqa: E402

CONTEXT = 4096
SEQUENCES = 128
LIMITS = {
    "least_requirements": 2,
    "most_requirements": 2,
    "least_disruptions": 1,
    "most_disruptions": 1,
    "candidates": 2,
    "sentence_characters": 40,
    "passage_characters": 200,
}
KEPT = "what was finished before the kill is kept to the letter"
ENGINE = {"dtype": "float32", "enforce_eager": True}


class Failed(Exception):  # noqa: N818 - it is a check that failed
    """A check failed."""


def check(right: bool, what: str) -> None:
    """Say what was found, or stop."""
    if not right:
        raise Failed(what)
    click.echo(f"  ok: {what}")


def prepare(work: Path, pairs: int) -> None:
    """World, mined set and model, made once; the former two again for other numbers of pairs."""
    data, mined, made = work / "world", work / "mined.jsonl", work / "pairs"
    if not (made.is_file() and made.read_text() == str(pairs)):
        shutil.rmtree(data, ignore_errors=True)
        make_world(WorldConfig(passages=800, questions=int(pairs * 2.4)), data)
        atomic_write(made, str(pairs))
    mine_set(data, mined, split="train", rules=MiningRules(count=2))
    if not (work / MODEL).is_dir():
        dataset = read_dataset(data, splits=[])
        texts = [d.content for d in dataset.documents] + [q.text for q in dataset.queries.values()]
        example = read_examples(mined)[0]
        (pair,) = pairs_from([example], dataset)
        prompts = [m.content for m in Prompts().analysis(pair.query, pair.positive)]
        tokenizer = train_tokenizer([*texts, *prompts * 20], vocabulary=2048)
        save(make_model(tokenizer), tokenizer, work / MODEL)


def make_adapter(work: Path) -> Path:
    """A LoRA adapter with random weights for the model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(work / MODEL)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(work / "adapter"))
    return work / "adapter"


def source(work: Path) -> tuple[Dataset, list[Example]]:
    """The data set and the mined examples."""
    return read_dataset(work / "world", splits=[]), read_examples(work / "mined.jsonl")


def settings(work: Path, backend: str, endpoint: str, more: Sequence[str] = ()) -> GenerateConfig:
    """How the model writes; its folder is the name that the server has it under."""
    own: dict[str, Any] = {"context": CONTEXT, "sequences": SEQUENCES, "engine": ENGINE}
    if backend == "openai":
        own = {"endpoints": [endpoint], "concurrency": 64, "timeout": 1800.0}
    base = {
        "backend": {"name": backend, "model": str(work / MODEL), **own},
        "writer": {"name": "llm", "limits": LIMITS},
    }
    return load(GenerateConfig, None, more, base=base)


def write(work: Path, out: Path, backend: str, endpoint: str, pairs: int, more: Sequence[str]) -> None:
    """What the child does: a whole set, as the command makes it."""
    generate_set(
        work / "world", work / "mined.jsonl", out, settings(work, backend, endpoint, more), limit=pairs
    )


def start(
    work: Path,
    out: Path,
    backend: str,
    endpoint: str,
    pairs: int,
    more: Sequence[str] = (),
    die_after: int = 0,
) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own, so that it dies with all its engines."""
    command = [sys.executable, __file__, "--work", str(work), "--child", backend, "--out", str(out)]
    command += ["--endpoint", endpoint, "--pairs", str(pairs), "--die-after", str(die_after)]
    command += [part for setting in more for part in ("--more", setting)]
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def finish(work: Path, out: Path, backend: str, endpoint: str, pairs: int, more: Sequence[str] = ()) -> None:
    """Run to the end."""
    process = start(work, out, backend, endpoint, pairs, more)
    if process.wait() != 0:
        lines = out.with_suffix(".log").read_text(errors="replace").splitlines()
        raise Failed("\n".join([f"the run for {out.name} ended with {process.returncode}:", *lines[-30:]]))


def run_and_kill(work: Path, out: Path, backend: str, endpoint: str, pairs: int) -> set[tuple[Any, ...]]:
    """Run until at least half of the pairs are done, everything killed then; what the journal holds."""
    journal = out.with_suffix(".journal")
    process = start(work, out, backend, endpoint, pairs, die_after=pairs + pairs // 2)
    process.wait()
    check(process.returncode == -signal.SIGKILL, f"{out.name}: killed, by kill -9, engines included")
    done = read_totals(journal).done
    check(pairs // 4 <= done < pairs, f"killed with {done} of {pairs} pairs done")
    return calls(journal)


def kill_group_after(number: int) -> None:
    """Kill this process and its engines as soon as the journal holds so many calls.

    Whoever looks at the journal from outside may see half of the pairs done only when all are.
    """
    add = Ledger.add
    written = itertools.count(1)

    def add_and_die(ledger: Ledger, answer: Answer) -> None:
        add(ledger, answer)
        if next(written) >= number:
            os.killpg(0, signal.SIGKILL)

    setattr(Ledger, "add", add_and_die)  # noqa: B010 - a type checker forbids the plain assignment


def calls(journal: Path) -> set[tuple[Any, ...]]:
    """The finished calls of a journal."""
    with closing(sqlite3.connect(journal)) as database:
        return set(database.execute("SELECT id, key, step, unit, value FROM calls"))


def check_set(out: Path, pairs: int) -> None:
    """Every pair has both calls, each once and right at the first attempt; all files are there."""
    totals = read_totals(out.with_suffix(".journal"))
    found = calls(out.with_suffix(".journal"))
    check(totals.done == pairs and not totals.failures, f"{out.name}: {pairs} pairs done, none failed")
    keys = [key for _, key, *_ in found]
    check(len(keys) == len(set(keys)) == 2 * pairs, f"{out.name}: {2 * pairs} calls, none paid twice")
    check(
        totals.asked_again == totals.repaired == 0,
        f"{out.name}: every answer was JSON of its schema at the first attempt",
    )
    kept, rejected = read_examples(out), read_examples(out.with_suffix(".rejected.jsonl"))
    check(len(kept) == pairs, f"{out.name}: an example for every pair")
    negatives = [n for e in (*kept, *rejected) for n in e.negatives]
    check(
        bool(negatives) and all(n.verdict and n.requirement and n.model and n.tokens for n in negatives),
        f"{out.name}: {len(negatives)} negatives, each with verdict and provenance",
    )
    card = out.with_suffix(".card.md").read_text(encoding="utf-8")
    wanted = ("AUC of a bag of words", "Tokens:", "## The writer", "prompt version")
    check(all(part in card for part in wanted), f"{out.name}: the data card is complete")


def texts(out: Path) -> dict[str, list[str]]:
    """All written texts of a set by query."""
    found: dict[str, list[str]] = {}
    for path in (out, out.with_suffix(".rejected.jsonl")):
        for example in read_examples(path):
            found.setdefault(example.query.id, []).extend(sorted(str(n.text) for n in example.negatives))
    return {query: sorted(texts) for query, texts in found.items()}


def serve(work: Path, port: int) -> subprocess.Popen[bytes]:
    """Start vLLM's OpenAI server and wait until it answers."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(work / MODEL)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(CONTEXT)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", str(SEQUENCES)]
    structured = {"backend": "xgrammar", "disable_any_whitespace": True}
    # Seeds and prompts read in parts do not go together on a CPU; the offline engine knows that by itself.
    command += ["--no-enable-chunked-prefill", "--structured-outputs-config", json.dumps(structured)]
    with (work / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    for _ in range(3600):
        time.sleep(0.5)
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return process
        except OSError:
            continue
    stop(process)
    lines = (work / "server.log").read_text(errors="replace").splitlines()
    raise Failed("\n".join(["the server does not start:", *lines[-30:]]))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def plain_loop(work: Path, endpoint: str, examples: list[Example], dataset: Dataset) -> float:
    """Pairs per minute of a plain loop with a pool of four threads; the same calls, one after the other."""
    import openai

    chat = OpenAIBackend(model=str(work / MODEL), endpoints=[endpoint], timeout=1800.0)
    writer = LLMWriter(backend=chat, limits=Limits(**LIMITS))
    client = openai.OpenAI(base_url=endpoint, api_key="none", max_retries=0, timeout=1800.0)

    def ask(job: Job[Written]) -> Written:
        outcome: Outcome | None = None
        while True:
            try:
                request = (next(job) if outcome is None else job.send(outcome)).request
            except StopIteration as end:
                written: Written = end.value
                return written
            named = {"name": "answer", "schema": dict(request.schema), "strict": True}
            reply = client.chat.completions.create(
                model=writer.model,
                messages=[{"role": m.role, "content": m.content} for m in request.messages],
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                response_format={"type": "json_schema", "json_schema": named},  # type: ignore[call-overload]
            )
            value, _ = read_answer(reply.choices[0].message.content or "", request.shape)
            outcome = ChatResult(request.key, value)

    pairs = pairs_from(examples, dataset, candidates=LIMITS["candidates"])
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(ask, [writer.write(pair) for pair in pairs]))
    rate = 60 * len(pairs) / (time.monotonic() - began)
    chat.close()
    check(all(w.failure is None for w in written), "the plain loop got its answers")
    return rate


def main() -> None:
    """Run everything, or be the child of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=REPO / "runs" / "test-vllm", help="where all files go")
    parser.add_argument("--pairs", type=int, default=200, help="pairs to write negatives for")
    parser.add_argument("--port", type=int, default=8321, help="port of the server on loopback")
    parser.add_argument("--child", choices=["vllm", "openai"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    parser.add_argument("--die-after", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--more", action="append", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    work, pairs = given.work.resolve(), given.pairs
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if given.child:
        if given.die_after:
            kill_group_after(given.die_after)
        write(work, given.out, given.child, given.endpoint, pairs, given.more)
        return
    for old in work.glob("*.jsonl"):
        old.unlink()
    for old in [*work.glob("*.journal"), *work.glob("*.log"), *work.glob("*.card.md")]:
        old.unlink()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, pairs)
    dataset, examples = source(work)
    found: dict[str, Any] = {"pairs": pairs}

    click.echo("vLLM's OpenAI server")
    server = serve(work, given.port)
    endpoint = f"http://127.0.0.1:{given.port}/v1"
    try:
        whole, broken = work / "server.jsonl", work / "server-killed.jsonl"
        some = examples[pairs : pairs + max(16, pairs // 5)]
        plain_loop(work, endpoint, examples[-4:], dataset)  # compiles the grammars, fills the prefix cache
        found["plain_pairs_per_minute"] = plain_loop(work, endpoint, some, dataset)
        finish(work, whole, "openai", endpoint, pairs)
        found["server_pairs_per_minute"] = read_totals(whole.with_suffix(".journal")).rate
        check_set(whole, pairs)
        before = run_and_kill(work, broken, "openai", endpoint, pairs)
        finish(work, broken, "openai", endpoint, pairs)
        check_set(broken, pairs)
        check(
            before <= calls(broken.with_suffix(".journal")),
            "what was finished before the kill is kept to the letter",
        )
        found["server_equal"] = compare(whole, broken)
    finally:
        stop(server)
    ratio = found["server_pairs_per_minute"] / found["plain_pairs_per_minute"]
    found["ratio"] = ratio
    click.echo(
        f"  pairs per minute: {found['server_pairs_per_minute']:.1f}, "
        f"a plain loop with four threads {found['plain_pairs_per_minute']:.1f}, ratio {ratio:.2f}",
    )
    check(ratio >= 2, "at least twice as fast as the plain loop")

    click.echo("vLLM's offline engine")
    whole, broken = work / "offline.jsonl", work / "offline-killed.jsonl"
    finish(work, whole, "vllm", "", pairs)
    found["offline_pairs_per_minute"] = read_totals(whole.with_suffix(".journal")).rate
    check_set(whole, pairs)
    before = run_and_kill(work, broken, "vllm", "", pairs)
    finish(work, broken, "vllm", "", pairs)
    check_set(broken, pairs)
    check(
        before <= calls(broken.with_suffix(".journal")),
        "what was finished before the kill is kept to the letter",
    )
    found["offline_equal"] = compare(whole, broken)
    click.echo(f"  pairs per minute: {found['offline_pairs_per_minute']:.1f}")

    click.echo("two copies of the model with an adapter, each in an engine of its own")
    adapter, out = make_adapter(work), work / "two-copies.jsonl"
    more = ["backend.data_parallel=2", f"backend.adapter={adapter}", f"backend.sequences={SEQUENCES // 4}"]
    finish(work, out, "vllm", "", pairs // 8, more)
    check_set(out, pairs // 8)
    made = read_totals(out.with_suffix(".journal")).identity["model"]
    check(made.endswith(f"+{adapter.name}"), "the adapter is part of the model's name")
    atomic_write(work / "test-vllm.json", json.dumps(found, indent=1) + "\n")
    click.echo(work / "test-vllm.json")


def compare(whole: Path, broken: Path) -> float:
    """Share of the pairs that got the same texts in both runs; all pairs must be in both."""
    one, other = texts(whole), texts(broken)
    check(set(one) == set(other), "killed and run again, the set has the same pairs")
    share = sum(one[q] == other[q] for q in one) / len(one)
    click.echo(f"  {share:.1%} of the pairs have the same texts to the letter")
    return share


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        click.echo(f"FAILED: {error}", err=True)
        sys.exit(1)
