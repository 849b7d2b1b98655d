"""The command group: finds each command's module by its name and imports it when it is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

from pccl.errors import PCCLError

COMMANDS = ("bench", "env", "master", "sim", "status", "why")


class LazyGroup(click.Group):
    """A group whose commands are the ``command`` of pccl.cli.<name>; a PCCLError becomes one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"pccl.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PCCLError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pccl")
def app() -> None:
    """Collective communication among peers that come and go."""
