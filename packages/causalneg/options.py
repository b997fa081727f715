"""Options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from causalneg.search import Search


FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
PATH = click.Path(path_type=Path)
DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be done and write nothing.")
QUIET = click.option("--quiet", is_flag=True, help="No progress.")
SKIP_BAD = click.option("--skip-bad", is_flag=True, help="Leave out malformed lines instead of stopping.")


class _SearchType(click.ParamType["Search"]):
    """A search; the registry is imported when one is given, for it brings faiss along."""

    name = "search"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Search:
        from causalneg.search import SEARCHERS
        from common.config import read_component

        chosen = read_component(SEARCHERS, value, "--index")
        return chosen.name if chosen.name == value else chosen


TRUST = click.option(
    "--trust-remote-code", is_flag=True, help="Let code run that lies in the encoder's folder; read it first."
)
FORCE = click.option("--force", is_flag=True, help="Replace OUT, whatever it is, unless it is read.")
SEARCH = click.option(
    "--index", "search", type=_SearchType(),
    help="The search: bm25, exact, hnsw or ivf; with settings '{name: hnsw, effort: 256}'.  "
    "[default: exact with an encoder, else bm25]",
)  # fmt: skip
LANGUAGE = click.option(
    "--language", help="Language of the corpus, for BM25: chinese, de, other, ...  [default: detected]"
)
DEVICES = click.option(
    "--device", "devices", multiple=True,
    help="Such as cuda:0: encodes there; if repeated, the search is spread over all.  [default: cpu]",
)  # fmt: skip


READING = (
    click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of a text that are read."),
    click.option(
        "--pooling", type=click.Choice(["mean", "last", "cls"]), help="Tokens that make the vector."
    ),
    click.option("--query-prompt", help="What is put in front of a query."),
    click.option("--document-prompt", help="What is put in front of a document."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights."),
)
"""How an encoder is read otherwise than its folder says."""


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Take :data:`READING` as one argument ``reading``."""

    @wraps(command)
    def read(
        max_tokens: int | None,
        pooling: Any,
        query_prompt: str | None,
        document_prompt: str | None,
        dtype: Any,
        **rest: Any,
    ) -> None:
        from causalneg.encoders.saved import Reading

        reading = Reading(
            max_tokens=max_tokens, pooling=pooling, query_prompt=query_prompt,
            document_prompt=document_prompt, dtype=dtype,
        )  # fmt: skip
        command(reading=reading, **rest)

    wrapped: Callable[..., None] = read
    for option in reversed(READING):
        wrapped = option(wrapped)
    return wrapped
