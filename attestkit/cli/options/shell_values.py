"""Shell completion of backend names, backend options and option values."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = [
    "complete_backend",
    "complete_fault",
    "complete_file",
    "complete_folder",
    "complete_option",
    "complete_policy",
    "complete_scenario",
]

COMPLETE: Final = (
    "_ATTESTKIT_COMPLETE"  # variable that the completion script sets to the shell's name
)


# All imports below are lazy: only completion needs them.


def _complete_words(words: Iterable[str], incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def complete_backend(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete a backend name."""
    from attestkit import backends

    del ctx, param
    return _complete_words(backends.names(), incomplete)


def complete_policy(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete the name of a policy preset, else a file."""
    from click.shell_completion import CompletionItem

    from attestkit.verifier.policy.appraisal_policy import PRESETS

    del ctx, param
    return _complete_words(PRESETS, incomplete) or [CompletionItem(incomplete, type="file")]


def complete_fault(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete a fault name."""
    from attestkit.backends.simulator.faults.fault_specs import NAMED

    del ctx, param
    return _complete_words(NAMED, incomplete)


def complete_scenario(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete a scenario name."""
    del ctx, param
    return _complete_words(_scenarios(), incomplete)


def complete_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete a file name."""
    from click.shell_completion import CompletionItem

    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def complete_folder(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete a folder name."""
    from click.shell_completion import CompletionItem

    del ctx, param
    return [CompletionItem(incomplete, type="dir")]


def complete_option(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete NAME= of a backend option, then NAME=VALUE if its values are known."""
    from attestkit import backends
    from attestkit.cli.options.backend_values import option_types
    from attestkit.errors import AttestKitError

    del param
    backend = ctx.params.get("backend") or backends.backend_from_environment() or "simulator"
    try:
        cls = backends.load(backend)
    except AttestKitError:
        return []
    name, equals, value = incomplete.partition("=")
    if not equals:
        return _complete_words((f"{known}=" for known in option_types(cls)), name)
    values = _VALUES.get(name) if backend == "simulator" else None
    return (
        []
        if values is None
        else _complete_words((f"{name}={v}" for v in values()), f"{name}={value}")
    )


def _scenarios() -> Iterable[str]:
    from attestkit.backends.simulator.scenarios.named import NAMED

    return NAMED


def _faults() -> Iterable[str]:
    from attestkit.backends.simulator.faults.injection import simulator_faults

    words = (line.split()[0] for line in simulator_faults())
    return [word for word in words if "=" not in word]


_VALUES = {
    "platform": lambda: ("tdx", "snp"),
    "quote_version": lambda: ("4", "5"),
    "scenario": _scenarios,
    "faults": _faults,
}
