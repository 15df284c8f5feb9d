"""`attestkit completion SHELL`: a completion script.

The script calls attestkit by click's protocol: $_ATTESTKIT_COMPLETE names the shell, and other
variables contain the command line so far.
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

from attestkit.cli.options.shell_values import COMPLETE

__all__ = ["complete", "completion"]

_EPILOG: Final = (
    '\b\nbash: eval "$(attestkit completion bash)" in ~/.bashrc\n'
    'zsh:  eval "$(attestkit completion zsh)" in ~/.zshrc, after compinit\n'
    "fish: attestkit completion fish > ~/.config/fish/completions/attestkit.fish\n\n"
    "Exit codes: 0 good, 1 usage."
)
# Bash splits words at = and :, so click's script sees --option seed=11 as three words. This script
# passes the unsplit line and gets the part after the last = or :.
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
_WORD_BREAKS: Final = "=:"
# Click's scripts do not complete the path of --option=PATH.
_ZSH: Final = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a plain described response
    local type key descr
    (( ! $+commands[%(prog_name)s] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for type key descr in ${response}; do
        case $type in
            plain) [[ $descr == _ ]] && plain+=("$key") || described+=("$key:$descr") ;;
            dir) [[ $PREFIX == -*=* ]] && compset -P 1 '*='; _path_files -/ ;;
            file) [[ $PREFIX == -*=* ]] && compset -P 1 '*='; _path_files -f ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
_FISH: Final = """\
function %(complete_func)s
    set -l option (string match -r -- '^-[^=]*=' (commandline -t))
    for answer in (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) \
            COMP_CWORD=(commandline -t) %(prog_name)s)
        set -l parts (string split -m 1 , -- $answer)
        switch $parts[1]
            case dir
                for path in (__fish_complete_directories $parts[2])
                    string join '' -- $option $path
                end
            case file
                for path in (__fish_complete_path $parts[2])
                    string join '' -- $option $path
                end
            case plain
                echo -- $parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _WholeWords(ShellComplete):
    """Completion for shells that need whole words: --option=VALUE, not VALUE."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return the completions of a word."""
        found = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if not equals or not option.startswith("-"):
            return found
        return [
            CompletionItem(f"{option}={item.value}", item.type, item.help)
            if item.type == "plain"
            else item
            for item in found
        ]


class _Bash(_WholeWords, BashComplete):
    """Bash completion with the unsplit line."""

    source_template = _BASH

    def source(self) -> str:
        """Return the script without click's check of the bash version."""
        return ShellComplete.source(self)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the cursor, and the word at the cursor."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)
        last = "" if not line or line[-1].isspace() else words.pop()
        return words[1:], last

    def format_completion(self, item: CompletionItem) -> str:
        """Return a completion without its part up to the last = or :, where bash splits words."""
        line = os.environ.get("COMP_LINE", "")
        last = "" if not line or line[-1].isspace() else split_arg_string(line)[-1]
        cut = max(last.rfind(sign) for sign in _WORD_BREAKS) + 1
        value = item.value[cut:] if item.type == "plain" else item.value
        return f"{item.type},{value}"


class _Zsh(_WholeWords, ZshComplete):
    """Zsh completion."""

    source_template = _ZSH


class _Fish(_WholeWords, FishComplete):
    """Fish completion."""

    source_template = _FISH


_SHELLS: Final[dict[str, type[ShellComplete]]] = {
    "bash": _Bash,
    "zsh": _Zsh,
    "fish": _Fish,
}


def complete(group: click.Command, instruction: str) -> int:
    """Print completions for a shell and return the exit code."""
    shell, _, action = instruction.partition("_")
    if shell not in _SHELLS or action != "complete":
        return 1
    click.echo(_SHELLS[shell](group, {}, "attestkit", COMPLETE).complete())
    return 0


@click.command(epilog=_EPILOG)
@click.argument("shell", metavar="SHELL", type=click.Choice(list(_SHELLS)))
def completion(*, shell: str) -> None:
    """Print a completion script for a shell.

    SHELL is bash, zsh or fish. The script completes commands, options, files, and the names of
    backends, scenarios, faults, algorithms and policies.
    """
    group = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](group, {}, "attestkit", COMPLETE).source())
