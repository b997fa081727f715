"""Command-line options made of a constructor's signature, so that nothing is declared twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import click

from common.config.leaves import members, range_text
from common.config.registry import Parameter, parameters

F = TypeVar("F", bound=Callable[..., Any])


def options(
    constructor: Callable[..., Any], *, only: Collection[str] = (), without: Collection[str] = ()
) -> Callable[[F], F]:
    """A click decorator with an option for each setting of a constructor.

    The option ``--top-k`` of the parameter ``top_k`` has its type, its default and, as help, its line in the
    docstring; a setting that is true or false becomes ``--flag/--no-flag``. The command receives the values
    by the names of the parameters. Ranges are the constructor's own to check.

    Args:
        constructor: A class or function with typed keyword parameters.
        only: The parameters that become options, in this order; all when empty.
        without: Parameters that become none.
    """
    known = parameters(constructor, without)
    chosen = [known[name] for name in only] if only else list(known.values())

    def decorate(command: F) -> F:
        for parameter in reversed(chosen):
            command = _option(parameter)(command)
        return command

    return decorate


def _option(parameter: Parameter) -> Callable[[F], F]:
    flag = "--" + parameter.name.replace("_", "-")
    inner = members(parameter.kind)[0]
    bare = get_args(inner)[0] if get_origin(inner) is Annotated else inner
    limits = range_text(parameter.kind)
    meaning = parameter.meaning + (f" ({limits})" if limits else "")
    shown: dict[str, Any] = {
        "help": meaning,
        "show_default": parameter.default not in (None, inspect.Parameter.empty),
    }
    shown |= {"required": True} if parameter.required else {"default": parameter.default}
    if bare is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", parameter.name, **shown)
    if get_origin(bare) is Literal:
        return click.option(flag, parameter.name, type=click.Choice(get_args(bare)), **shown)
    if get_origin(bare) in (list, tuple):
        return click.option(flag, parameter.name, multiple=True, **shown)
    kind: Any = click.Path(path_type=Path) if bare is Path else bare
    return click.option(flag, parameter.name, type=kind, **shown)
