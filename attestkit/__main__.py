"""The command line: `attestkit` and `python -m attestkit` are this same program."""

import sys

from attestkit._system.process_hardening import hide_memory, hide_seed
from attestkit.errors import UsageError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line on `arguments` (default: the process's own); return the exit code.

    0 good, 1 usage, 2 evidence rejected, 3 network or device, 4 policy, 5 unreadable input.
    """
    words = sys.argv[1:] if arguments is None else arguments
    own_process = arguments is None  # else it is the caller's, and stays as it is
    if words[:1] == ["serve"]:  # needs no terminal library, and must start fast
        from attestkit.serve.__main__ import main as serve

        return serve(words[1:], own_process=own_process)
    if own_process:
        hide_seed()
    if own_process and _reads_key(words):
        try:
            hide_memory()
        except OSError as error:
            sys.stderr.write(f"attestkit: the memory of this process cannot be hidden: {error}\n")
            return 3
    try:
        from attestkit.cli import run_words

        return run_words(words)
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        missing = UsageError(f"the command line needs {error.name}: pip install 'attestkit[cli]'")
        sys.stderr.write(f"attestkit: {missing}\n")
        return 1
    except UsageError as error:  # the environment wants a core that cannot be
        sys.stderr.write(f"attestkit: {error}\n")
        return 1


def _reads_key(words: list[str]) -> bool:
    """Tell whether a command reads a private key of its user's."""
    signs = any(word.partition("=")[0] == "--ear-key" for word in words)
    return words[:1] == ["key"] or signs


if __name__ == "__main__":
    sys.exit(main())
