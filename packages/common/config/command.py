"""The command that lists every setting of a method."""

from __future__ import annotations

import importlib

import click

from common.errors import ConfigError, suggest


def settings_command(config: str) -> click.Command:
    """``settings [PART]``: one line for each key, with its type, default and meaning.

    Args:
        config: The config dataclass, ``"module:Class"``; imported when the command runs.
    """

    @click.command("settings")
    @click.argument("part", required=False)
    def settings(part: str | None) -> None:
        r"""List every setting of `train`: its key, type, default and meaning.

        PART keeps the keys that hold it: `fit`, `model[twin]`, `learning_rate`. A key such as
        `model[twin].top_k` is written `model.top_k` where `model.name` is `twin`.
        """
        from common.config.listing import settings as all_settings

        module, _, name = config.partition(":")
        listed = all_settings(getattr(importlib.import_module(module), name))
        chosen = [s for s in listed if part is None or part in s.key]
        if not chosen:
            known = [s.key.rsplit(".", 1)[-1] for s in listed]
            raise ConfigError(f"settings: no key holds '{part}'{suggest(str(part), known)}")
        for setting in chosen:
            click.echo(f"{setting.key} = {setting.default}    ({setting.kind})")
            if setting.meaning:
                click.echo(f"    {setting.meaning}")

    return settings
