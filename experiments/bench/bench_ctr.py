"""Training speed of every backbone, with and without LAIN, beside LongCTR's.

    make bench-ctr [PEER=CHECKOUT [PEER_PYTHON=PYTHON]]
    python experiments/bench/bench_ctr.py [--max-length N] [--profile] ...

Generates data in the reczoo layout, trains on it for a bounded time and prints a table. Rows per second
are of whole training: loading, forward, loss, backward, clipping, optimiser. Each side runs in a process
of its own, both take turns in the same run, and medians over batches are compared; base and LAIN take
turns batch by batch. Sizes are LongCTR's own config templates with embedding 64 and MLP 1024-512-256.
LongCTR's DIEN takes minutes for a batch of 512, so it gets batches of 64 (``--peer-rows``) and, where one
of them takes longer than a turn may, one batch. Its time is nearly all in steps over the longest history,
so rows per second hardly depend on the batch.
Both sides run as they are: ours keeps freed memory (``common.machine``), as ``lain train`` does.
The floor is the time that the matrix products of a step would take at the machine's rate for large float32
products, measured in the same run; a sparse product counts by its stored entries, so padding is not in it.

``--peer`` needs a FuxiCTR checkout and an interpreter that has what FuxiCTR needs (torch, pandas, pyarrow,
polars, h5py, scikit-learn, keras_preprocessing, PyYAML, tqdm, six); nothing of it is part of this repository.
``--profile`` also writes which operators a step's time goes to, base and LAIN, beside the results.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench_serving import bench_serving
from common.cli import run_command
from common.errors import ConfigError
from common.files import atomic_folder, atomic_write
from common.report.tables import format_number, markdown_table
from sides import SideProcess

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = ("din", "dien", "sim", "sdim", "twin", "eta")
ARMS = ("base", "lain")
ROUNDS = 3
THREADS = 2
BATCH_SIZE = 512
TRAINING = {"embedding_l2": 1e-5, "clip": 10.0, "threads": THREADS}
SIZES = {
    "embedding": {"dim": 64},
    "head": {"name": "mlp", "hidden": [1024, 512, 256], "dropout": 0.1, "batch_norm": True},
}
_ATTENTION = {"short_length": 50, "attention_dim": 64, "heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "din": {"attention_hidden": [64], "attention_activation": "dice"},
    "dien": {},
    "sim": _ATTENTION | {"top_k": 50},
    "sdim": _ATTENTION | {"hashes": 2, "hash_bits": 4},
    "twin": _ATTENTION | {"top_k": 50},
    "eta": _ATTENTION | {"top_k": 50, "hash_bits": 32},
}
_PEER_ALL = {
    "embedding_dim": 64,
    "dnn_hidden_units": [1024, 512, 256],
    "dnn_activations": "ReLU",
    "net_dropout": 0.1,
    "batch_norm": True,
    "learning_rate": 1e-3,
    "net_regularizer": 0,
    "attention_dropout": 0,
    "accumulation_steps": 1,
}
_PEER_SEARCH = _PEER_ALL | {"attention_dim": 64, "num_heads": 2, "short_seq_len": 50}
PEER_SIZES: dict[str, dict[str, Any]] = {
    "din": _PEER_ALL
    | {
        "attention_hidden_units": [64],
        "attention_hidden_activations": "Dice",
        "attention_output_activation": None,
        "din_use_softmax": False,
    },
    "dien": _PEER_ALL
    | {
        "gru_type": "AUGRU",
        "attention_type": "bilinear_attention",
        "use_attention_softmax": True,
        "enable_sum_pooling": False,
    },
    "sim": _PEER_SEARCH | {"topk": 50, "gsu_type": "soft", "alpha": 1, "beta": 1},
    "sdim": _PEER_SEARCH | {"num_hashes": 2, "hash_bits": 4, "use_qkvo": True, "reuse_hash": True},
    "twin": _PEER_SEARCH | {"topk": 50},
    "eta": _PEER_SEARCH | {"topk": 50, "hash_bits": 32, "reuse_hash": True},
}
TARGET_RATIO = {"din": 4.0, "dien": 2.5, "sim": 4.0, "sdim": 4.0, "twin": 4.0, "eta": 4.0, "loader": 20.0}
TARGET_EXTRA_TIME = 0.05
TARGET_LENGTH = 1000
PEER_ROWS = {"dien": 64}
"""Rows of the peer's batches where they are not ours."""
PATIENCE = 20.0
"""Seconds: a peer's first batch that takes longer is not a warm-up but its measurement."""
PROFILED = 4
"""Batches that a profile is the mean of."""


PROFILE_HEAD = f"""# Where the time of a training step goes

Milliseconds that the CPU spent in each operator itself, without what it calls, and its calls; per step, the
mean of {PROFILED} steps of each arm on the same batches. First the operators that take most, then those in
which LAIN differs most. The profiler slows many small operators down more than few large ones, so it
overstates LAIN's part.
"""


@dataclass(frozen=True)
class World:
    """What is generated: as many behaviours and rows as the measurements can use up.

    Histories are log-normal with this median and mean, cut at ``longest``; a row is a user at the end
    of his history, users drawn in proportion to its length, so most rows have long histories.

    Args:
        users: Users, each with one history.
        items: Items, each with a category and a frozen vector.
        categories: Categories.
        vector: Width of the frozen vector.
        rows: Training rows; valid and test get a sixteenth each.
        median: Median length of a history.
        mean: Mean length of a history before the cut.
        longest: Length that histories are cut at.
        seed: Decides everything.
    """

    users: int = 20_000
    items: int = 20_000
    categories: int = 500
    vector: int = 64
    rows: int = 40_960
    median: float = 77
    mean: float = 140
    longest: int = 1000
    seed: int = 0

    def write(self, folder: Path) -> None:
        """Write the reczoo layout, with the schema that describes it."""
        rng = np.random.default_rng(self.seed)
        sigma = math.sqrt(2 * math.log(self.mean / self.median))
        length = rng.lognormal(math.log(self.median), sigma, self.users).round().astype(np.int64)
        length = length.clip(1, self.longest)
        popularity = np.cumsum(rng.gamma(0.7, size=self.items) + 0.05)

        def draw(count: int) -> np.ndarray:
            return np.asarray(1 + np.searchsorted(popularity, rng.random(count) * popularity[-1]))

        ends = np.append(0, np.cumsum(length)).astype(np.int32)
        history = pa.ListArray.from_arrays(pa.array(ends), pa.array(draw(int(ends[-1])).astype(np.int32)))
        pq.write_table(pa.table({"full_item_seq": history}), folder / "user_info.parquet")
        category = rng.integers(1, self.categories + 1, self.items + 1)
        vectors = rng.normal(size=(self.items + 1, self.vector)).astype(np.float32)
        category[0], vectors[0] = 0, 0
        number = np.arange(self.items + 1)
        items = {
            "item_index": pa.array(number),
            "video_id": pa.array(number),
            "cate_id": pa.array(category),
            "image_emb": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.vector),
        }
        pq.write_table(pa.table(items), folder / "item_info.parquet")
        for split, rows in (("train", self.rows), ("valid", self.rows // 16), ("test", self.rows // 16)):
            user = rng.choice(self.users, rows, p=length / length.sum())
            columns = {
                "user_index": user,
                "item_index": draw(rows),
                "seq_len": length[user],
                "is_click": rng.integers(0, 2, rows),
            }
            pq.write_table(pa.table(columns), folder / f"{split}.parquet")
        schema = {
            "name": "bench-ctr",
            "columns": {"label": "is_click"},
            "features": {
                "item_id": {"source": "item"},
                "cate_id": {"source": "item", "size": self.categories + 1},
                "image_emb": {"source": "item", "kind": "vector", "width": self.vector},
            },
        }
        (folder / "schema.yaml").write_text(json.dumps(schema, indent=1) + "\n")

    def columns(self) -> list[dict[str, Any]]:
        """The columns in the peer's terms; the vector is used as it is, not trained."""
        found: list[dict[str, Any]] = [
            {"name": name, "active": True, "dtype": "int", "type": "meta"}
            for name in ("user_index", "item_index", "seq_len")
        ]
        item = {"active": True, "source": "item"}
        for name, size in (("video_id", self.items + 1), ("cate_id", self.categories + 1)):
            found.append(item | {"name": name, "dtype": "int", "type": "categorical", "vocab_size": size})
        vector = {"type": "embedding", "embedding_dim": self.vector, "pretrain_dim": self.vector}
        return [
            *found,
            item | vector | {"name": "image_emb", "dtype": "float", "feature_encoder": "nn.Identity()"},
        ]


QUICK = World(users=60, items=300, categories=20, rows=256, longest=200)


def make_data(world: World, folder: Path) -> None:
    """Generate and prepare the data, unless it is there already."""
    about = folder / "world.json"
    wanted = json.dumps(asdict(world), indent=1) + "\n"
    if about.is_file() and about.read_text() == wanted:
        return
    if folder.is_dir() and any(folder.iterdir()) and not about.is_file():
        raise ConfigError(f"--data {folder}: the folder holds something else; name another")
    from lain.formats import prepare

    click.echo(f"generating {world.rows} rows in {folder}", err=True)
    with atomic_folder(folder, replace=True) as new:
        (new / "source").mkdir()
        world.write(new / "source")
        prepare(
            "reczoo", new / "source", new / "prepared", schema=new / "source" / "schema.yaml", progress=False
        )
        (new / "world.json").write_text(wanted)


class Worker(SideProcess):
    """One side, which has opened its loader and models.

    Args:
        name: What to call it in messages.
        python: Its interpreter.
        request: What it shall open.
    """

    def __init__(self, name: str, python: Path | str, request: Mapping[str, Any]) -> None:
        script = Path(__file__).with_name("bench_ctr_worker.py")
        super().__init__(name, script, python=str(python), threads=THREADS)
        self.request = dict(request)

    def __enter__(self) -> Self:
        """Start the process and open loader and models."""
        super().__enter__()
        try:
            self.parameters: dict[str, int] = self.ask(do="open", **self.request)["parameters"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def measure(self, seconds: float, most: int, train: bool = True) -> list[dict[str, Any]]:
        """Batches for so many seconds, or so many batches."""
        found: list[dict[str, Any]] = self.ask(do="measure", seconds=seconds, most=most, train=train)[
            "batches"
        ]
        return found


def flat(turns: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The batches of all turns."""
    return [batch for turn in turns for batch in turn]


def speed(batches: Sequence[dict[str, Any]], arm: str | None) -> float:
    """Median rows per second: loading and the arm's step, or loading alone."""
    return median(float(b["rows"] / (b["load"] + (b["steps"][arm] if arm else 0))) for b in batches)


@dataclass(frozen=True)
class Turns:
    """Batches of both sides, turn by turn; a slow peer has one turn for all of ours."""

    own: list[list[dict[str, Any]]]
    peer: list[list[dict[str, Any]]]

    def compare(self, arm: str | None) -> dict[str, Any]:
        """Rows per second of both, their ratio, and the smallest and largest ratio of a turn."""
        own, peer = flat(self.own), flat(self.peer)
        found: dict[str, Any] = {"rows_per_second": speed(own, arm), "batches": len(own)}
        if not peer:
            return found | dict.fromkeys(("peer_rows_per_second", "ratio", "spread", "peer_batches"))
        of_peer = arm and "peer"
        other = speed(peer, of_peer)
        ratios = [
            speed(turn, arm) / speed(self.peer[min(number, len(self.peer) - 1)], of_peer)
            for number, turn in enumerate(self.own)
        ]
        return found | {
            "peer_rows_per_second": other,
            "ratio": found["rows_per_second"] / other,
            "spread": [min(ratios), max(ratios)],
            "peer_batches": len(peer),
        }


@dataclass(frozen=True)
class Bench:
    """A run: what is measured, for how long, against what.

    Args:
        data: Folder of :func:`make_data`.
        world: What was generated there.
        scratch: Folder for what the peer writes.
        peer: The peer's checkout; None leaves it out.
        peer_python: The peer's interpreter.
        rounds: Turns of each side.
        seconds: Length of one of our turns.
        peer_seconds: Length of one of the peer's turns.
        most: Batches at most in a turn.
        batch_size: Rows per batch, on both sides.
        peer_rows: Rows per batch of the peer, by backbone, where they differ.
        matrix: Rows and columns of the matrices that the machine's rate is measured with.
    """

    data: Path
    world: World
    scratch: Path
    peer: Path | None
    peer_python: Path | str
    rounds: int
    seconds: float
    peer_seconds: float
    most: int
    batch_size: int
    peer_rows: Mapping[str, int]
    matrix: int

    def own(self, backbone: str, arms: Sequence[str], max_length: int) -> Worker:
        """This repository's process."""
        request = TRAINING | {
            "batch_size": self.batch_size,
            "side": "own",
            "data": str(self.data / "prepared"),
            "backbone": backbone,
            "arms": list(arms),
            "max_length": max_length,
            "sizes": SIZES,
            "model": MODELS[backbone],
        }
        return Worker(backbone, sys.executable, request)

    def rows_of_peer(self, backbone: str) -> int:
        """Rows of the peer's batches."""
        return min(self.batch_size, self.peer_rows.get(backbone, self.batch_size))

    def other(self, backbone: str, max_length: int) -> Worker:
        """The peer's process."""
        request = TRAINING | {
            "batch_size": self.rows_of_peer(backbone),
            "side": "peer",
            "checkout": str(self.peer),
            "scratch": str(self.scratch),
            "data": str(self.data / "source"),
            "columns": self.world.columns(),
            "backbone": backbone,
            "max_length": max_length,
            "sizes": PEER_SIZES[backbone],
        }
        return Worker(f"peer's {backbone}", self.peer_python, request)

    def turns(self, own: Worker, peer: Worker | None, train: bool = True) -> Turns:
        """Warm both sides up, then let them take turns."""
        own.measure(0, 1, train)
        own_turns, peer_turns = [], []
        if peer is not None:
            first = peer.measure(0, 1, train)
            if sum(b["load"] + sum(b["steps"].values()) for b in first) > PATIENCE:
                peer_turns.append(first)
        slow = bool(peer_turns)
        for _ in range(self.rounds):
            own_turns.append(own.measure(self.seconds, self.most, train))
            if peer is not None and not slow:
                peer_turns.append(peer.measure(self.peer_seconds, self.most, train))
        return Turns(own_turns, peer_turns)

    def loader(self, max_length: int) -> dict[str, Any]:
        """The loaders alone."""
        with ExitStack() as stack:
            own = stack.enter_context(self.own("twin", ["base"], max_length))
            peer = stack.enter_context(self.other("twin", max_length)) if self.peer else None
            found = self.turns(own, peer, train=False).compare(None)
        return {"backbone": "loader", "arm": "base", "max_length": max_length} | found

    def profile(self, backbone: str, max_length: int) -> str:
        """Where the time of a step goes, base and LAIN; for readers."""
        with self.own(backbone, ARMS, max_length) as own:
            own.measure(0, 1)
            found = own.ask(do="profile", batches=1 if self.most == 1 else PROFILED)
        return profile_table(f"{backbone}, maximum length {max_length}", found["operators"])

    def backbone(self, backbone: str, max_length: int) -> list[dict[str, Any]]:
        """One backbone, base and LAIN."""
        with ExitStack() as stack:
            own = stack.enter_context(self.own(backbone, ARMS, max_length))
            peer = stack.enter_context(self.other(backbone, max_length)) if self.peer else None
            rate = own.ask(do="rate", size=self.matrix)["rate"]
            turns = self.turns(own, peer)
            rate = max(rate, own.ask(do="rate", size=self.matrix)["rate"])
            needed = own.ask(do="flops")
            peer_parameters = peer.parameters["peer"] if peer else None
            peer_memory = peer.peak_memory() if peer else None
        batches = flat(turns.own)
        extra = sorted(b["steps"]["lain"] / b["steps"]["base"] - 1 for b in batches)
        rows = []
        for arm in ARMS:
            with self.own(backbone, [arm], max_length) as alone:
                alone.measure(math.inf, 2)
                memory = alone.peak_memory()
            row = {"backbone": backbone, "arm": arm, "max_length": max_length} | turns.compare(arm)
            more = own.parameters[arm] / own.parameters["base"] - 1
            row |= {
                "floor_share": row["rows_per_second"] * needed["flops_per_row"][arm] / rate,
                "flops_per_row": needed["flops_per_row"][arm],
                "matrix_flops_per_second": rate,
                "behaviours_per_row": needed["behaviours_per_row"],
                "peak_memory_bytes": memory,
                "peer_peak_memory_bytes": peer_memory,
                "batch_rows": self.batch_size,
                "peer_batch_rows": self.rows_of_peer(backbone) if self.peer else None,
                "parameters": own.parameters[arm],
                "peer_parameters": peer_parameters,
                "extra_time": median(extra) if arm == "lain" else None,
                "extra_time_quartiles": (
                    [extra[len(extra) // 4], extra[3 * len(extra) // 4]] if arm == "lain" else None
                ),
                "extra_parameters": more if arm == "lain" else None,
            }
            rows.append(row)
        return rows


def profile_table(title: str, operators: Mapping[str, Mapping[str, Sequence[float]]], most: int = 12) -> str:
    """The operators that a step spends most time in, and those that LAIN spends more or less time in.

    Args:
        title: Heading.
        operators: Per arm and operator, milliseconds of its own (without what it calls) and calls, per step.
        most: Operators of each kind to show.
    """
    base, lain = (operators[arm] for arm in ARMS)
    more = {name: lain.get(name, (0, 0))[0] - base.get(name, (0, 0))[0] for name in sorted({*base, *lain})}
    first = sorted(base, key=lambda name: -base[name][0])[:most]
    first += [n for n in sorted(more, key=lambda name: -abs(more[name]))[:most] if n not in first]
    whole = [sum(time for time, _ in operators[arm].values()) for arm in ARMS]
    cells = [["all", f"{whole[0]:.1f}", "", f"{whole[1]:.1f}", "", f"{whole[1] - whole[0]:+.1f}"]]
    for name in first:
        (a, calls), (b, other_calls) = base.get(name, (0, 0)), lain.get(name, (0, 0))
        cells.append([f"`{name}`", f"{a:.1f}", f"{calls:g}", f"{b:.1f}", f"{other_calls:g}", f"{b - a:+.1f}"])
    headers = ["operator", "base ms", "calls", "LAIN ms", "calls", "difference"]
    return f"## {title}\n\n{markdown_table(headers, cells, 'lrrrrr')}\n"


def verdict(row: Mapping[str, Any]) -> str:
    """The targets of a row: what is to be reached, and whether it is."""
    if row["max_length"] != TARGET_LENGTH:
        return ""
    found = []
    if row["ratio"] is not None:
        target = TARGET_RATIO[row["backbone"]]
        found.append(f"{'met' if row['ratio'] >= target else 'short of'} {target:g}x")
    if row.get("extra_time") is not None:
        reached = row["extra_time"] <= TARGET_EXTRA_TIME
        found.append(f"{'met' if reached else 'short of'} +{TARGET_EXTRA_TIME:.0%} time")
    return ", ".join(found)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows for readers."""

    def percent(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{100 * value:{sign}.1f} %"

    cells = []
    for row in rows:
        ratio = peer = ""
        if row["ratio"] is not None:
            low, high = row["spread"]
            ratio = f"{row['ratio']:.1f} ({low:.1f} to {high:.1f})"
            peer = format_number(row["peer_rows_per_second"], 1)
            rows_of_peer = row.get("peer_batch_rows")
            if rows_of_peer is not None and rows_of_peer < row["batch_rows"]:
                peer += f" (batches of {rows_of_peer})"
        memory = row.get("peak_memory_bytes")
        peer_memory = row.get("peer_peak_memory_bytes")
        cells.append(
            [
                row["backbone"],
                row["arm"],
                str(row["max_length"]),
                format_number(row["rows_per_second"], 0),
                peer,
                ratio,
                percent(row.get("floor_share")),
                "" if memory is None else format_number(memory / 1e9),
                "" if peer_memory is None else format_number(peer_memory / 1e9),
                percent(row.get("extra_time"), "+"),
                percent(row.get("extra_parameters"), "+"),
                verdict(row),
            ]
        )
    headers = [
        "backbone",
        "arm",
        "max length",
        "rows/s",
        "LongCTR rows/s",
        "ratio",
        "of the floor",
        "GB",
        "LongCTR GB",
        "LAIN time",
        "LAIN parameters",
        "target",
    ]
    return markdown_table(headers, cells, "ll" + "r" * 9 + "l")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--peer", type=click.Path(path_type=Path), help="FuxiCTR checkout to run LongCTR from.")
@click.option("--peer-python", default=sys.executable, help="Interpreter for the peer; this one by default.")
@click.option("--backbone", "backbones", multiple=True, type=click.Choice(BACKBONES), help="Only these.")
@click.option(
    "--max-length", "lengths", multiple=True, type=click.IntRange(1), help="Behaviours kept; 1000 by default."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the generated data.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file of the results.")
@click.option("--seconds", default=4.0, show_default=True, help="Of one of our turns; there are 3.")
@click.option("--peer-seconds", default=10.0, show_default=True, help="Of one of the peer's turns.")
@click.option("--peer-rows", type=click.IntRange(1), help="Rows of a batch of LongCTR's DIEN; 64 by default.")
@click.option("--profile", is_flag=True, help="Also write where a step's time goes: OUT with -profile.md.")
@click.option("--quick", is_flag=True, help="Some hundred rows, one batch: shows that it runs, not how fast.")
@click.option("--serving", is_flag=True, help="Latency of scoring instead: see bench_serving.py.")
def main(
    peer: Path | None,
    peer_python: str,
    backbones: tuple[str, ...],
    lengths: tuple[int, ...],
    data: Path | None,
    out: Path | None,
    seconds: float,
    peer_seconds: float,
    peer_rows: int | None,
    profile: bool,
    quick: bool,
    serving: bool,
) -> None:
    """Measure training speed on generated data and print a table, with --peer beside LongCTR's."""
    if serving:
        found = bench_serving(
            {backbone: {} for backbone in backbones or BACKBONES},
            {},
            arms=ARMS,
            length=max(lengths, default=100 if quick else TARGET_LENGTH),
            seconds=0 if quick else seconds,
            out=out or ROOT / "runs" / "bench-serving.json",
        )
        click.echo(found, nl=False)
        return
    if peer is not None and not (peer / "model_zoo" / "LongCTR").is_dir():
        raise ConfigError(f"--peer {peer}: no model_zoo/LongCTR in it; give a checkout of FuxiCTR")
    name = "bench-ctr-quick" if quick else "bench-ctr"
    data = (data or ROOT / "runs" / f"{name}-data").resolve()
    out = out or ROOT / "runs" / f"{name}.json"
    world = QUICK if quick else World()
    make_data(world, data)
    rows: list[dict[str, Any]] = []
    profiles = [PROFILE_HEAD]
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            data=data,
            world=world,
            scratch=Path(scratch),
            peer=peer.resolve() if peer else None,
            peer_python=peer_python,
            rounds=1 if quick else ROUNDS,
            seconds=0 if quick else seconds,
            peer_seconds=0 if quick else peer_seconds,
            most=1 if quick else 1_000_000,
            batch_size=64 if quick else BATCH_SIZE,
            peer_rows=PEER_ROWS if peer_rows is None else {"dien": peer_rows},
            matrix=512 if quick else 2048,
        )
        for max_length in lengths or ((100,) if quick else (TARGET_LENGTH,)):
            click.echo(f"measuring the loader, maximum length {max_length}", err=True)
            rows.append(bench.loader(max_length))
            for backbone in backbones or BACKBONES:
                click.echo(f"measuring {backbone}, maximum length {max_length}", err=True)
                rows += bench.backbone(backbone, max_length)
                atomic_write(out, json.dumps(rows, indent=1) + "\n")
                if profile:
                    profiles.append(bench.profile(backbone, max_length))
                    atomic_write(out.with_name(f"{out.stem}-profile.md"), "\n".join(profiles))
    click.echo(table(rows), nl=False)


if __name__ == "__main__":
    run_command(lambda: main(standalone_mode=False))
