"""`attestkit completion SHELL`: what makes a shell complete attestkit's words.

The shell asks attestkit itself, by click's protocol: $_ATTESTKIT_COMPLETE names the shell, and
other variables hold the line so far.
"""

import os
from typing import Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    split_arg_string,
)

from attestkit.cli import COMPLETE

__all__ = ["complete", "completion"]

_EPILOG: Final = (
    '\b\nbash: eval "$(attestkit completion bash)" in ~/.bashrc\n'
    'zsh:  eval "$(attestkit completion zsh)" in ~/.zshrc, behind compinit\n'
    "fish: attestkit completion fish > ~/.config/fish/completions/attestkit.fish\n\n"
    "Exit codes: 0 good, 1 usage."
)
# Bash takes a line apart at = and :, so click's own way could not tell --option seed=11 from three
# words. This asks with the line as it is, and answers with what is behind the last such sign.
_BASH: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' response item type value
    response=$(env COMP_LINE="${COMP_LINE:0:$COMP_POINT}" %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    for item in $response; do
        IFS=',' read -r type value <<< "$item"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            *) COMPREPLY+=("$value"); [[ $value == *= ]] && compopt -o nospace ;;
        esac
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_BREAKS: Final = "=:"


class _Bash(BashComplete):
    """Bash, told the line and not its words."""

    source_template = _BASH

    def source(self) -> str:
        """Return the script; click's own asks first which bash there is."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the one at it."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        last = "" if not line or line[-1].isspace() else words.pop()
        return words[1:], last

    def format_completion(self, item: CompletionItem) -> str:
        """Return a word as bash takes it: without what is before the last sign it broke at."""
        line = os.environ.get("COMP_LINE", "")
        last = "" if not line or line[-1].isspace() else split_arg_string(line)[-1]
        cut = max(last.rfind(sign) for sign in _BREAKS) + 1
        value = item.value[cut:] if item.type == "plain" else item.value
        return f"{item.type},{value}"


_SHELLS: Final[dict[str, type[ShellComplete]]] = {
    "bash": _Bash,
    "zsh": ZshComplete,
    "fish": FishComplete,
}


def complete(group: click.Command, instruction: str) -> int:
    """Answer a shell; return the exit code."""
    shell, _, what = instruction.partition("_")
    if shell not in _SHELLS or what != "complete":
        return 1
    click.echo(_SHELLS[shell](group, {}, "attestkit", COMPLETE).complete())
    return 0


@click.command(epilog=_EPILOG)
@click.argument("shell", metavar="SHELL", type=click.Choice(list(_SHELLS)))
def completion(*, shell: str) -> None:
    """Print what makes a shell complete attestkit's words.

    SHELL is bash, zsh or fish. Commands, options, files, and the names of backends, scenarios,
    faults, algorithms and policies are completed.
    """
    group = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](group, {}, "attestkit", COMPLETE).source())
