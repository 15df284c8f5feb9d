"""`attestkit completion SHELL`: click's completion script for a shell."""

from typing import Final

import click
from click.shell_completion import (
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    get_completion_class,
)

from attestkit.cli.options.option import Command

_EXAMPLES: Final = (
    '\b\nbash: eval "$(attestkit completion bash)" in ~/.bashrc\n'
    'zsh:  eval "$(attestkit completion zsh)" in ~/.zshrc, after compinit\n'
    "fish: attestkit completion fish > ~/.config/fish/completions/attestkit.fish"
)


class _WholeWords(ShellComplete):
    """Completion of --option=VALUE as a whole word, which zsh and fish replace."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return the completions of the word `incomplete`; `args` are the words before it."""
        found = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("-"):
            for item in found:
                item.value = f"{option}={item.value}"
        return found


@add_completion_class
class _Zsh(_WholeWords, ZshComplete):
    """Zsh completion, with --option=VALUE as a whole word."""


@add_completion_class
class _Fish(_WholeWords, FishComplete):
    """Fish completion, with --option=VALUE as a whole word."""


@click.command(cls=Command, example=_EXAMPLES, codes="01")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print a completion script for a shell.

    SHELL is bash, zsh or fish. The script completes commands, options, files, and the names of
    backends, scenarios, faults, algorithms and policies.
    """
    shell_class = get_completion_class(shell)
    assert shell_class is not None
    group = click.get_current_context().find_root().command
    click.echo(shell_class(group, {}, "attestkit", "_ATTESTKIT_COMPLETE").source())
