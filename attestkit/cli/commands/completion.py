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

from attestkit.cli.options.shell_values import COMPLETE

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
# Click's own complete a path as if the word were the path alone, which --option=PATH is not.
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
    """A shell that wants words as they stand in the line: --option=VALUE, and not VALUE."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Return what a word that begins so can become."""
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


class _Zsh(_WholeWords, ZshComplete):
    """Zsh."""

    source_template = _ZSH


class _Fish(_WholeWords, FishComplete):
    """Fish."""

    source_template = _FISH


_SHELLS: Final[dict[str, type[ShellComplete]]] = {
    "bash": _Bash,
    "zsh": _Zsh,
    "fish": _Fish,
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
