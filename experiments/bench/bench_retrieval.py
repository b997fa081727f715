"""Speed and memory of training, encoding and mining, beside sentence-transformers where it is installed.

    python experiments/bench/bench_retrieval.py [--turns N] [--seconds S] [--quick] [--only PART]

Generates text like Wikipedia's passages in length and word frequencies, and a BERT-mini with random weights
(4 layers, 256 wide, 4 heads, inner width 1024). Each side runs in a process of its own, so that its peak
memory is its own; both take turns, and the median of the turns is compared, with its range. Both get the same
texts, weights, vocabulary, batch size, dropout, threads and kind of optimiser, each in the way that its users
call it: preprocessing, loss, backward pass and optimiser for the peer, with its default mini-batches.

- Training: 1 positive and 7 negatives per query on average, 1 to 13 for ours. The peer wants as many for
  every query, so it gets exactly 7, and the same texts in every batch. No text is twice in a batch.
- A step of cached gradients on 256 queries may take minutes; then each side takes one.
- Encoding: tokenising and encoding, again in every turn; the peer as it does by default.
- Mining: from texts to negatives with ranks 11 to 100, below 95 % of the positive, by fixed word vectors,
  since the other rows measure the encoder. The peer at its defaults, and with faiss. It needs
  ``datasets``; where that is not installed, a table with the few methods that it calls stands in. BM25 has no
  counterpart there.
- Regularisers: forward and backward pass, beside a loop over the queries in the same process.

The floor is the time that the matrix products on the true tokens would take at the machine's rate for large
float32 products, measured between the parts: 3 passes for plain training, 4 for cached gradients, 1 for
encoding; the products of all queries with all documents for dense mining. Memory is the whole process:
interpreter, libraries, texts.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import click
import numpy as np

from common.cli import run_command
from common.errors import BackendError
from common.files import atomic_write
from common.report.tables import format_number, format_seconds, markdown_table
from sides import SideProcess

ROOT = Path(__file__).resolve().parents[2]
PEER = "sentence_transformers"
THREADS = 2
TURNS = 3
PATIENCE = 30.0
"""Seconds: a kind of step that takes longer gets one turn."""

PARTS = ("regularisers", "training", "encoding", "mining")
TARGET_TRAINING = 1.3
TARGET_ENCODING = 1.0
TARGET_MEMORY = 2.0
TARGET_REGULARISERS = 20.0
REGULARISERS = ("query_view_entropy", "distribution_matching")

FUNCTION_WORDS = (
    "the of and in to a was is for as on with by he that at from his it an were which are this or be had "
    "first has their its new after but who not they have her also been two she one there when during into"
).split()
"""The most frequent words of encyclopaedic English, in this order."""


@dataclass(frozen=True)
class Text:
    """What the generated text is like.

    Word frequencies follow Zipf and Mandelbrot, ``p(rank) ~ 1 / (rank + 2.7)``; lengths of passages are
    log-normal.

    Args:
        words: Words of the vocabulary.
        mean: Mean length of a passage in words.
        median: Its median.
        shortest: Least words of a passage.
        query: Words of a query, on average.
        seed: Decides everything.
    """

    words: int = 30_000
    mean: float = 110.0
    median: float = 95.0
    shortest: int = 10
    query: float = 9.0
    seed: int = 0


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        text: What the text is like.
        model: Settings of the BERT.
        vocabulary: Tokens of its vocabulary.
        max_tokens: Tokens of a text that are read.
        plain: Queries of a batch of plain training.
        cached: Queries of a batch of cached gradients.
        negatives: Negatives of a query, on average.
        encoded: Documents that are encoded in a step.
        documents: Documents of the corpus that is mined; as many as wiki-mix has.
        queries: Queries that are mined for; as many as wiki-mix trains on.
        width: Width of the word vectors that are mined with.
        depth: Ranks that are looked at.
        regulariser_queries: Queries of the regularisers.
        regulariser_negatives: Their negatives, on average.
        matrix: Rows and columns of the matrices that the machine's rate is measured with.
    """

    text: Text = Text()
    model: Mapping[str, Any] = field(
        default_factory=lambda: {
            "model_type": "bert",
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        }
    )
    vocabulary: int = 16_384
    max_tokens: int = 256
    plain: int = 16
    cached: int = 256
    negatives: int = 7
    encoded: int = 512
    documents: int = 17_428
    queries: int = 8_718
    width: int = 256
    depth: int = 100
    regulariser_queries: int = 256
    regulariser_negatives: int = 18
    matrix: int = 2048


QUICK = Sizes(
    text=Text(words=2_000, mean=30, median=25),
    model={
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    vocabulary=512,
    max_tokens=48,
    plain=4,
    cached=8,
    encoded=16,
    documents=300,
    queries=40,
    width=32,
    depth=30,
    regulariser_queries=16,
    matrix=512,
)


class Source:
    """Generated text.

    Args:
        text: What it is like.
    """

    def __init__(self, text: Text) -> None:
        self._text, self._rng = text, np.random.default_rng(text.seed)
        weights = 1 / (np.arange(1, text.words + 1) + 2.7)
        self._ends = np.cumsum(weights / weights.sum())
        self._words = np.array([*FUNCTION_WORDS, *self._content(text.words - len(FUNCTION_WORDS))])

    def _content(self, count: int) -> list[str]:
        """Different words of syllables, frequent ones short."""
        starts, vowels, ends = (
            "b c d f g h l m n p r s t v st tr pl".split(),
            "aeiou",
            ["", "n", "r", "s", "l"],
        )
        taken: dict[str, None] = {}
        while len(taken) < count:
            syllables = 2 + int(self._rng.random() < 0.2 + 0.7 * len(taken) / count)
            parts = [
                starts[self._rng.integers(len(starts))]
                + vowels[self._rng.integers(len(vowels))]
                + ends[self._rng.integers(len(ends))]
                for _ in range(syllables)
            ]
            taken.setdefault("".join(parts))
        return list(taken)

    def _draw(self, count: int) -> np.ndarray:
        ranks = np.searchsorted(self._ends, self._rng.random(count))
        return np.asarray(self._words[np.minimum(ranks, len(self._words) - 1)])

    def passages(self, count: int) -> list[str]:
        """Passages, in sentences of 8 to 30 words."""
        text = self._text
        sigma = math.sqrt(2 * math.log(text.mean / text.median))
        lengths = self._rng.lognormal(math.log(text.median), sigma, count).round().astype(np.int64)
        lengths = lengths.clip(text.shortest)
        drawn = iter(np.split(self._draw(int(lengths.sum())), np.cumsum(lengths)[:-1]))
        out = []
        for words in drawn:
            sentences, place = [], 0
            while place < len(words):
                step = int(self._rng.integers(8, 31))
                sentences.append(" ".join(words[place : place + step]).capitalize() + ".")
                place += step
            out.append(" ".join(sentences))
        return out

    def query(self, passage: str) -> str:
        """A query for a passage: two thirds of its words are the passage's."""
        count = max(3, int(self._rng.poisson(self._text.query)))
        of_passage = np.array(passage.lower().replace(".", "").split())
        words = np.concatenate(
            [self._rng.choice(of_passage, 2 * count // 3), self._draw(count - 2 * count // 3)]
        )
        return " ".join(words) + "?"


def negative_counts(queries: int, mean: int, rng: np.random.Generator) -> list[int]:
    """Ragged numbers of negatives, 1 to ``2 * mean - 1``; each pair of queries has twice the mean."""
    half = rng.integers(1, 2 * mean, (queries + 1) // 2)
    return [int(x) for x in np.stack([half, 2 * mean - half], 1).reshape(-1)[:queries]]


@dataclass(frozen=True)
class Files:
    """What both sides read.

    Args:
        folder: Where it lies.
    """

    folder: Path

    def __truediv__(self, name: str) -> str:
        """A file or folder."""
        return str(self.folder / name)


def make_data(sizes: Sizes, folder: Path) -> Files:
    """Generate texts and encoders, the latter once in our form and once in the peer's."""
    from causalneg.data import write_dataset
    from causalneg.data.schema import Document, Query
    from causalneg.encoders import build_encoder

    source, rng = Source(sizes.text), np.random.default_rng(sizes.text.seed)
    training = []
    for count in negative_counts(2 * sizes.cached, sizes.negatives, rng):
        positive, *negatives = source.passages(1 + count)
        training.append({"query": source.query(positive), "positive": positive, "negatives": negatives})
    encoded = source.passages(sizes.encoded)
    corpus = source.passages(sizes.documents)
    gold = rng.permutation(sizes.documents)[: sizes.queries]
    asked = [source.query(corpus[row]) for row in gold]
    (folder / "training.json").write_text(json.dumps(training))
    (folder / "encoded.json").write_text(json.dumps(encoded))
    write_dataset(
        folder / "mining",
        [Document(id=f"d{row}", text=text) for row, text in enumerate(corpus)],
        [Query(id=f"q{number}", text=text) for number, text in enumerate(asked)],
        {"train": {f"q{number}": {f"d{row}": 1} for number, row in enumerate(gold)}},
    )
    options = {"config": dict(sizes.model), "vocabulary": sizes.vocabulary, "max_tokens": sizes.max_tokens}
    bert = build_encoder("transformer", options, texts=corpus[:2048] + asked[:256])
    words = build_encoder("static", {"dim": sizes.width}, texts=corpus)
    for name, encoder in (("bert", bert), ("words", words)):
        encoder.save(folder / name)
        encoder.export_sentence_transformers(folder / f"{name}-peer")
    return Files(folder)


class Asked(Protocol):
    """A side that can be asked."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        ...

    def peak_memory(self) -> int:
        """The most main memory that the side has held so far, in bytes."""
        ...


def start_side(name: str) -> SideProcess:
    """A side in a process of its own."""
    script = Path(__file__).with_name("bench_retrieval_worker.py")
    quiet = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
    return SideProcess(name, script, python=sys.executable, threads=THREADS, environment=quiet)


Start = Callable[[str], AbstractContextManager[Asked]]
"""Starts a side of this name."""


@dataclass(frozen=True)
class Turn:
    """What a side did in one turn.

    Args:
        steps: Units, seconds and needed operations of each step.
        peak: Largest memory of its process so far, in bytes.
    """

    steps: Sequence[Mapping[str, float]]
    peak: int

    @property
    def speed(self) -> float:
        """Median units per second."""
        return median(step["units"] / step["seconds"] for step in self.steps)


def row(
    what: str,
    unit: str,
    own: Sequence[float],
    peer: Sequence[float],
    *,
    target: float | None = None,
    less: bool = False,
    peaks: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """A row of the results from the figures of the turns.

    Args:
        what: What was measured.
        unit: Unit of the figures.
        own: Of this repository, turn by turn.
        peer: The peer's; empty without one.
        target: Ratio to reach.
        less: Whether less is better; the ratio is then the peer's figure over ours.
        peaks: Peak memory of both, in bytes.
    """
    ratios = [b / a if less else a / b for a, b in zip(own, peer, strict=False)]
    ratio = median(ratios) if ratios else None
    several = len(ratios) > 1
    return {
        "what": what,
        "ours": median(own),
        "peer": median(peer) if peer else None,
        "ratio": ratio,
        "low": min(ratios) if several else None,
        "high": max(ratios) if several else None,
        "unit": unit,
        "target": target,
        "met": None if target is None or ratio is None else ratio >= target,
        "share_of_floor": None,
        "peak_gb": None if peaks[0] is None else peaks[0] / 1e9,
        "peer_peak_gb": None if peaks[1] is None else peaks[1] / 1e9,
        "turns": len(own),
    }


@dataclass(frozen=True)
class Bench:
    """A run: what is measured, for how long, against what.

    Args:
        sizes: How much.
        files: Texts and encoders.
        start: Starts a side.
        with_peer: Whether the peer is there.
        turns: Turns of each side.
        seconds: Least length of a turn; a step is never cut.
        parts: Which of :data:`PARTS` are measured.
    """

    sizes: Sizes
    files: Files
    start: Start
    with_peer: bool
    turns: int
    seconds: float
    parts: tuple[str, ...] = PARTS

    def rows(self, report: Callable[[str], None], keep: Callable[[list[dict[str, Any]]], None]) -> None:
        """Measure every part.

        Args:
            report: Called with each part as it begins.
            keep: Given all rows so far after each part.
        """
        sizes = self.sizes
        found: list[dict[str, Any]] = []
        rate = 0.0

        def add(rows: list[dict[str, Any]]) -> None:
            nonlocal rate
            rate = max(rate, float(side.ask(do="rate", size=sizes.matrix)["rate"]))
            found.extend(rows)
            keep([finished(one, rate) for one in found])

        with self.start("regularisers") as side:
            if "regularisers" in self.parts:
                report("regularisers")
                add(self.regularisers(side))
            kinds = (("plain", False, sizes.plain), ("cached gradients", True, sizes.cached))
            for name, cached, batch in kinds if "training" in self.parts else ():
                report(f"training, {name}")
                request = {"data": self.files / "training.json", "batch_size": batch, "cached": cached}
                what = f"training, {name}, batch {batch}"
                add(self.pair(what, "queries/s", "train", request, "bert", TARGET_TRAINING))
            if "encoding" in self.parts:
                report("encoding")
                request = {"data": self.files / "encoded.json"}
                add(self.pair("encoding", "documents/s", "encode", request, "bert", TARGET_ENCODING))
            for part in self.mining(report) if "mining" in self.parts else ():
                add(part)

    def regularisers(self, side: Asked) -> list[dict[str, Any]]:
        """Both regularisers, batched and query by query, in turns."""
        sizes = self.sizes
        queries, negatives = sizes.regulariser_queries, sizes.regulariser_negatives
        self._open(side, "regularisers", {"queries": queries, "negatives": negatives, "width": sizes.width})
        found = []
        for name in REGULARISERS:
            turns: dict[str, list[Turn]] = {"batched": [], "loop": []}
            for number in range(self.turns):
                for arm in list(turns)[:: -1 if number % 2 else 1]:
                    turns[arm].append(self._turn(side, min(self.seconds, 2.0), f"{name}/{arm}"))
            speeds = [[turn.speed for turn in turns[arm]] for arm in ("batched", "loop")]
            what = f"{name}, {queries} queries x {negatives} negatives (peer: loop)"
            found.append(row(what, "calls/s", *speeds, target=TARGET_REGULARISERS))
        return found

    def mining(self, report: Callable[[str], None]) -> Iterator[list[dict[str, Any]]]:
        """Dense mining beside the peer's, time and memory; and BM25."""
        sizes = self.sizes
        size = f"{sizes.documents:,} documents x {sizes.queries:,} queries"
        common = {"data": self.files / "mining", "count": sizes.negatives, "depth": sizes.depth}
        for faiss in (False, True) if self.with_peer else (False,):
            name = f"mining, dense{', peer with faiss' if faiss else ''}"
            report(name)
            yield self.pair(
                f"{name}, {size}",
                "queries/s",
                "mine",
                common | {"faiss": faiss},
                "words",
                None,
                memory_target=None if faiss else TARGET_MEMORY,
                most=2,
            )
        report("mining, BM25")
        yield self.pair(f"mining, BM25, {size}", "queries/s", "mine", common, None, None, most=1)

    def pair(
        self,
        what: str,
        unit: str,
        kind: str,
        request: Mapping[str, Any],
        encoder: str | None,
        target: float | None,
        *,
        memory_target: float | None = None,
        most: int | None = None,
    ) -> list[dict[str, Any]]:
        """A kind of work, both sides in turns; for mining a second row compares peak memory.

        Args:
            what: Name of the row.
            unit: Unit of the speed.
            kind: Kind of side.
            request: What it shall open.
            encoder: Name of the encoder; None for none, which leaves out the peer too.
            target: Ratio of speeds to reach.
            memory_target: Ratio of peak memories to reach.
            most: Turns at most.
        """
        names = ["own", "peer"] if self.with_peer and encoder else ["own"]
        with ExitStack() as stack:
            sides = {name: stack.enter_context(self.start(f"{what}: {name}")) for name in names}

            def open_side(name: str) -> list[float]:
                folder = encoder and self.files / (encoder if name == "own" else f"{encoder}-peer")
                return self._open(sides[name], f"{kind} {name}", {**request, "encoder": folder})

            with ThreadPoolExecutor(len(names)) as pool:
                samples = list(pool.map(open_side, names))
            if not np.allclose(samples[0], samples[-1], rtol=0, atol=1e-4):
                raise BackendError(f"{what}: the sides' vectors differ, so they cannot be compared")
            turns: dict[str, list[Turn]] = {name: [] for name in names}
            for number in range(min(self.turns, most or self.turns)):
                for name in names[:: -1 if number % 2 else 1]:
                    turns[name].append(self._turn(sides[name], self.seconds))
                if max(step["seconds"] for one in turns.values() for step in one[-1].steps) > PATIENCE:
                    break
        own, peer = turns["own"], turns.get("peer", [])
        steps = [step for turn in own for step in turn.steps]
        flops, seconds = (sum(step.get(key, 0.0) for step in steps) for key in ("flops", "seconds"))
        peaks = (own[-1].peak, peer[-1].peak if peer else None)
        speeds = [[turn.speed for turn in side] for side in (own, peer)]
        found = [row(what, unit, *speeds, target=target, peaks=peaks) | {"flops_per_second": flops / seconds}]
        if kind == "mine" and peer:
            used = [[turn.peak / 1e9 for turn in side] for side in (own, peer)]
            found.append(
                row(f"{what}: peak memory", "GB", *used, target=memory_target, less=True, peaks=peaks)
            )
        return found

    def _open(self, side: Asked, kind: str, request: Mapping[str, Any]) -> list[float]:
        found: list[float] = side.ask(do="open", side=kind, threads=THREADS, **request)["sample"]
        return found

    def _turn(self, side: Asked, seconds: float, arm: str = "") -> Turn:
        found = side.ask(do="measure", seconds=seconds, arm=arm)
        return Turn(found["steps"], side.peak_memory())


def finished(one: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """A row with its share of the floor, given the machine's operations per second."""
    rest = {key: value for key, value in one.items() if key != "flops_per_second"}
    needed = one.get("flops_per_second")
    return rest | {"share_of_floor": needed / rate if needed else None, "matrix_flops_per_second": rate}


def verdict(one: Mapping[str, Any]) -> str:
    """What was to be reached, and whether it was."""
    if one["target"] is None:
        return ""
    if one["met"] is None:
        return f"{one['target']:g}x, nothing to compare with"
    return f"{'met' if one['met'] else 'short of'} {one['target']:g}x"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for readers."""

    def number(value: float | None) -> str:
        digits = 0 if value is not None and value >= 100 else 1 if value is not None and value >= 10 else 2
        return "" if value is None else format_number(value, digits)

    cells = []
    for one in rows:
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        if one["low"] is not None:
            ratio += f" ({one['low']:.2f} to {one['high']:.2f})"
        share = one["share_of_floor"]
        cells.append(
            [
                one["what"],
                number(one["ours"]),
                number(one["peer"]),
                one["unit"],
                ratio,
                verdict(one),
                "" if share is None else f"{100 * share:.1f} %",
                number(one["peak_gb"]),
                number(one["peer_peak_gb"]),
            ]
        )
    headers = ["what", "ours", "peer", "unit", "times better", "target", "of the floor", "GB", "peer GB"]
    return markdown_table(headers, cells, "lrrlrlrrr")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--turns", default=TURNS, show_default=True, type=click.IntRange(1), help="Turns of each side.")
@click.option("--seconds", default=4.0, show_default=True, help="Least length of a turn; no step is cut.")
@click.option("--quick", is_flag=True, help="Tiny sizes, one turn: shows that it runs, not how fast.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part; may be repeated.")
@click.option("--serving", is_flag=True, help="Latency and throughput of search instead: bench_search.py.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file of the results.")
def main(
    turns: int, seconds: float, quick: bool, only: tuple[str, ...], serving: bool, out: Path | None
) -> None:
    """Measure training, encoding and mining, and print a table, beside sentence-transformers."""
    begin = time.perf_counter()
    sizes = QUICK if quick else Sizes()
    name = f"bench-{'search' if serving else 'retrieval'}{'-quick' if quick else ''}"
    out = out or ROOT / "runs" / f"{name}.json"
    with_peer = importlib.util.find_spec(PEER) is not None
    if not with_peer and not serving:
        click.echo("sentence-transformers is not installed: there is nothing to compare with", err=True)

    def report(part: str) -> None:
        click.echo(f"{time.perf_counter() - begin:4.0f} s  {part}", err=True)

    rows: list[dict[str, Any]] = []

    def keep(found: list[dict[str, Any]]) -> None:
        rows[:] = found
        atomic_write(out, json.dumps(rows, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        report("generating texts")
        files = make_data(sizes, Path(folder))
        if serving:
            from bench_search import bench_search

            click.echo(bench_search(Path(folder), seconds=0.2 if quick else seconds, out=out, report=report))
            return
        bench = Bench(
            sizes=sizes,
            files=files,
            start=start_side,
            with_peer=with_peer,
            turns=1 if quick else turns,
            seconds=0.0 if quick else seconds,
            parts=only or PARTS,
        )
        bench.rows(report, keep)
    click.echo(table(rows), nl=False)
    click.echo(f"\n{format_seconds(time.perf_counter() - begin)}, {THREADS} threads; kept in {out}", err=True)


if __name__ == "__main__":
    run_command(lambda: main(standalone_mode=False))
