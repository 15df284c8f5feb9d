"""Entry point of the command line, `attestkit` and `python -m attestkit`."""

import gc
import sys

from attestkit._system.process_hardening import hide_memory, hide_seed
from attestkit.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line with `arguments` (default: `sys.argv`); return the exit status.

    0: success, 1: usage error, 2: evidence is not valid, 3: network or device error, 4: evidence
    not accepted by the policy, 5: the input cannot be parsed.
    """
    words = sys.argv[1:] if arguments is None else arguments
    own_process = arguments is None  # do not change the settings of a caller's process
    if words[:1] == ["serve"]:  # without the terminal libraries, to start fast
        from attestkit.serve.__main__ import main as serve

        return serve(words[1:], own_process=own_process)
    if own_process:
        gc.set_threshold(20_000)  # a tenth of the start of a command was garbage collection
        hide_seed()
    if own_process and _reads_key(words):
        try:
            hide_memory()
        except OSError as error:
            sys.stderr.write(f"attestkit: the memory of this process cannot be hidden: {error}\n")
            return 3
    try:
        from attestkit.cli import run_command

        return run_command(words)
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write(
            f"attestkit: the command line needs {error.name}; pip install 'attestkit[cli]'\n"
        )
        return 1
    except UsageError as error:  # the environment selects an unavailable native core
        sys.stderr.write(f"attestkit: {error}\n")
        return 1


def _reads_key(words: list[str]) -> bool:
    """Return whether a command line, without the program, reads private keys of user or app."""
    signs = any(word.partition("=")[0] == "--ear-key" for word in words)
    return words[:1] in (["env"], ["key"], ["keys"]) or signs


if __name__ == "__main__":
    sys.exit(main())
