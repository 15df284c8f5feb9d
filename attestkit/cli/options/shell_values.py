"""Words that a shell completes: names of backends, of their options, and of some values."""

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

COMPLETE: Final = "_ATTESTKIT_COMPLETE"  # in which a shell that completes names itself


# All imports below are late: they are for the shell's questions alone.


def _matching(words: Iterable[str], incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def complete_backend(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the backends whose names begin so."""
    from attestkit import backends

    del ctx, param
    return _matching(backends.names(), incomplete)


def complete_policy(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the presets whose names begin so; a shell adds files."""
    from click.shell_completion import CompletionItem

    from attestkit.verifier.policy.appraisal_policy import PRESETS

    del ctx, param
    return _matching(PRESETS, incomplete) or [CompletionItem(incomplete, type="file")]


def complete_fault(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the faults whose names begin so."""
    from attestkit.backends.simulator.faults.fault_specs import NAMED

    del ctx, param
    return _matching(NAMED, incomplete)


def complete_scenario(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return the scenarios whose names begin so."""
    del ctx, param
    return _matching(_scenarios(), incomplete)


def complete_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Have the shell complete a file."""
    from click.shell_completion import CompletionItem

    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def complete_folder(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Have the shell complete a folder."""
    from click.shell_completion import CompletionItem

    del ctx, param
    return [CompletionItem(incomplete, type="dir")]


def complete_option(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Return NAME= for the options of the backend, then NAME=VALUE for those with known values."""
    from attestkit import backends
    from attestkit.cli.options.backend_values import option_types
    from attestkit.errors import AttestKitError

    del param
    backend = ctx.params.get("backend") or backends.named_by_environment() or "simulator"
    try:
        cls = backends.load(backend)
    except AttestKitError:
        return []
    name, equals, value = incomplete.partition("=")
    if not equals:
        return _matching((f"{known}=" for known in option_types(cls)), name)
    values = _VALUES.get(name) if backend == "simulator" else None
    return [] if values is None else _matching((f"{name}={v}" for v in values()), f"{name}={value}")


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
