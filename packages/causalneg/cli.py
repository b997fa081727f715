"""The command ``causalneg``; its commands are not there yet."""

from __future__ import annotations

import sys

import click


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def main(arguments: tuple[str, ...]) -> None:
    """Dense retrieval with counterfactual hard negatives. The commands of this method are not there yet."""
    click.echo("error: causalneg has no commands yet; the method is still to be built", err=True)
    sys.exit(2)
