"""The commands ``causalneg encode``, ``index``, ``search`` and ``serve``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causalneg.options import DEVICES, FILE, FOLDER, PATH, SKIP_BAD, TRUST, reading_options
from common.cli import report
from common.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from causalneg.encoders.saved import Reading

KINDS = ("hnsw", "ivf")

ENCODER = click.option(
    "--encoder", type=FOLDER, help="Where the encoder lies now.  [default: where it lay for encode]"
)
INDEX = click.option(
    "--index", type=click.Choice(["exact", *KINDS]), default="exact", show_default=True,
    help="The search; causalneg index makes hnsw and ivf.",
)  # fmt: skip
EFFORT = click.option(
    "--effort", type=click.IntRange(min=1), default=128, show_default=True,
    help="Candidates that hnsw looks at, lists that ivf looks into.",
)  # fmt: skip


def _share(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, 1
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or not int(found[1]) < int(found[2]):
        raise click.BadParameter(f"'{value}' is not as 0/4, 1/4, 2/4 or 3/4")
    return int(found[1]), int(found[2])


@click.command()
@click.argument("data", type=PATH)
@click.argument("out", type=FOLDER)
@click.option(
    "--encoder",
    type=FOLDER,
    default="minilm",
    show_default=True,
    help="An encoder's folder, a run, or minilm.",
)
@click.option("--queries", is_flag=True, help="Encode the queries instead of the documents.")
@click.option("--split", help="Only the judged queries of this split.  [default: all queries]")
@click.option(
    "--format", "form", type=click.Choice(["npy", "safetensors"]), default="npy", show_default=True,
    help="File of the vectors.",
)  # fmt: skip
@click.option(
    "--shard", "share", callback=_share, metavar="N/OF",
    help="Encode this share only (0/4): processes fill one OUT together.",
)  # fmt: skip
@click.option("--batch-tokens", type=click.IntRange(min=1), help="Tokens per forward pass.")
@reading_options
@TRUST
@DEVICES
@SKIP_BAD
@click.option("--quiet", is_flag=True, help="No progress.")
def encode(
    data: Path,
    out: Path,
    encoder: Path,
    queries: bool,
    split: str | None,
    form: Any,
    share: tuple[int, int],
    batch_tokens: int | None,
    reading: Reading,
    trust_remote_code: bool,
    devices: tuple[str, ...],
    skip_bad: bool,
    quiet: bool,
) -> None:
    """Encode the documents (or queries) of DATA into a folder OUT: vectors, ids, and who made them.

    Killed, the same command goes on. Vectors of other texts or of another encoder are never mixed into a
    folder.
    """
    if split is not None and not queries:
        raise ConfigError("--split: only queries have a split; add --queries")
    from causalneg.serving.actions import encode_data, open_encoder

    model = open_encoder(encoder, reading, devices=devices, trust_remote_code=trust_remote_code)
    finished = encode_data(
        data, out, model, name=str(encoder.resolve() if encoder.is_dir() else encoder), reading=reading,
        queries=queries, split=split, form=form, share=share, batch_tokens=batch_tokens, skip_bad=skip_bad,
        report=None if quiet else report,
    )  # fmt: skip
    if model.cut:
        report(f"{model.cut} texts were longer than the encoder takes; their ends were not read")
    if not finished:
        report(f"{out}: this share is done; the others are not")
    click.echo(out)


@click.command()
@click.argument("vectors", type=FOLDER)
@click.option(
    "--kind", type=click.Choice(KINDS), default="hnsw", show_default=True, help="Kind of the index."
)
def index(vectors: Path, kind: Any) -> None:
    """Build an index of faiss over the folder VECTORS that encode made; it is kept in that folder.

    An exact search needs none. One that was made of the same vectors is left as it is.
    """
    from causalneg.search.stored import write_index
    from causalneg.search.vectors import VectorFolder

    click.echo(write_index(VectorFolder.open(vectors), kind))


@click.command()
@click.argument("vectors", type=FOLDER)
@click.argument("queries", type=PATH, required=False)
@click.option(
    "--query", "asked", multiple=True, help="A query as a text, instead of QUERIES; may be repeated."
)
@click.option("--split", help="Judged queries of this split, where QUERIES is a data set.  [default: all]")
@click.option("--depth", type=click.IntRange(min=1), default=100, show_default=True, help="Hits per query.")
@click.option(
    "--out",
    type=FILE,
    help="Run file of TREC, or JSON lines where it ends in .jsonl.  [default: JSON lines, shown]",
)
@click.option(
    "--ignore-identical/--keep-identical", default=None,
    help="The document with the query's own id is no hit.  [default: where ids coincide]",
)  # fmt: skip
@INDEX
@EFFORT
@ENCODER
@TRUST
@DEVICES
@SKIP_BAD
def search(
    vectors: Path,
    queries: Path | None,
    asked: tuple[str, ...],
    split: str | None,
    depth: int,
    out: Path | None,
    ignore_identical: bool | None,
    index: str,
    effort: int,
    encoder: Path | None,
    trust_remote_code: bool,
    devices: tuple[str, ...],
    skip_bad: bool,
) -> None:
    """Find the best documents of VECTORS for QUERIES: a data set, a .jsonl, a .tsv, or a query a line.

    The exact search gives what evaluate gives.
    """
    if (queries is None) == (not asked):
        raise ConfigError("search: name QUERIES or --query, one of them")
    from causalneg.data.schema import Query
    from causalneg.serving.actions import json_lines, open_search, search_queries, write_hits
    from causalneg.serving.texts import read_queries

    found = (
        [Query(id=str(number), text=text) for number, text in enumerate(asked, start=1)]
        if queries is None
        else read_queries(queries, split=split, skip_bad=skip_bad, report=report)
    )
    opened = open_search(
        vectors, encoder=encoder, index=index, effort=effort, devices=devices,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    hits = search_queries(
        opened, found, depth=depth, ignore_identical=False if queries is None else ignore_identical
    )
    if out is None:
        for line in json_lines(found, hits):
            click.echo(line)
        return
    write_hits(out, found, hits)
    click.echo(out)


@click.command()
@click.argument("vectors", type=FOLDER)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free."
)
@click.option(
    "--data", type=PATH, help="Data set whose documents' texts hits show.  [default: ids and scores]"
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Texts of a batch at most."
)
@INDEX
@EFFORT
@ENCODER
@TRUST
@DEVICES
def serve(
    vectors: Path,
    host: str,
    port: int,
    data: Path | None,
    batch: int,
    index: str,
    effort: int,
    encoder: Path | None,
    trust_remote_code: bool,
    devices: tuple[str, ...],
) -> None:
    r"""Serve the folder VECTORS that encode made over HTTP.

    \b
    POST /encode   {"texts": ["..."], "query": false}     vectors
    POST /search   {"queries": ["..."], "k": 10}          ids and scores, best first
    GET  /health, /metrics (Prometheus)

    Requests that wait at the same time share a pass of the encoder and of the search.
    """
    import socket

    try:
        import uvicorn

        from causalneg.serving.service import make_app
    except ImportError as error:
        raise BackendError(
            f"causalneg serve needs FastAPI and uvicorn ({error}); pip install 'causalneg-lain[serve]'"
        ) from None
    from causalneg.data import read_dataset
    from causalneg.serving.actions import open_search
    from common.errors import DataError

    opened = open_search(
        vectors, encoder=encoder, index=index, effort=effort, devices=devices,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    texts = None
    if data is not None:
        texts = {document.id: document.content for document in read_dataset(data, splits=[]).documents}
        missing = next((id for id in opened.folder.ids if id not in texts), None)
        if missing is not None:
            raise DataError(f"{data}: has no document '{missing}', whose vector is in {vectors}")
    app = make_app(opened, texts=texts, most=batch)
    with socket.create_server((host, port), backlog=2048) as listening:
        report(f"listening on http://{host}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])
