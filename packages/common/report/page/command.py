"""What commands do with a page: print it as text, and write it as HTML where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from common.cli import report
from common.errors import DataError
from common.files import atomic_write

if TYPE_CHECKING:
    from common.report.page.render import Page

PAGE = click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False), help="Write it as one HTML file, too."
)
"""The option of a command that shows something."""


def show_page(page: Page, path: Path | None) -> None:
    """Print a page as text, and write it as HTML.

    Args:
        page: The page.
        path: The HTML file; None: text alone.

    Raises:
        DataError: The folder of the file is not there.
    """
    from common.report.page.render import render
    from common.report.page.text import page_text

    if path is not None and not path.parent.is_dir():
        raise DataError(f"{path.parent}: there is no such folder to write {path.name} into")
    click.echo(page_text(page), nl=False)
    if path is not None:
        atomic_write(path, render(page))
        report(f"wrote {path}")
