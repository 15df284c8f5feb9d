"""Shell completion of backend names, backend options and option values.

The imports of the functions are lazy, because only completion needs them.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Complete: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"


def _words(list_words: Callable[[], Iterable[str]], otherwise: str = "") -> Complete:
    """Return a function that completes one of the words that `list_words` returns.

    If no word matches, the shell completes a path of the type `otherwise`: `file` or `dir`.
    """

    def complete(
        _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        found = [CompletionItem(word) for word in list_words() if word.startswith(incomplete)]
        if not found and otherwise:
            return [CompletionItem(incomplete, type=otherwise)]
        return found

    return complete


def _backends() -> Iterable[str]:
    from attestkit import backends

    return backends.names()


def _policies() -> Iterable[str]:
    from attestkit.verifier.policy.appraisal_policy import PRESETS

    return PRESETS


def _kernel_faults() -> Iterable[str]:
    from attestkit.backends.simulator.faults.fault_specs import NAMED

    return NAMED


def _simulator_faults() -> Iterable[str]:
    from attestkit.backends.simulator.faults.injection import fault_names

    return fault_names()


def _simulator_platforms() -> Iterable[str]:
    from attestkit.backends.simulator.platforms import PLATFORMS

    return PLATFORMS


def _scenarios() -> Iterable[str]:
    from attestkit.backends.simulator.scenarios.registry import SCENARIOS, gpu_scenarios

    return (*SCENARIOS, *gpu_scenarios())


complete_backend: Complete = _words(_backends)
complete_policy: Complete = _words(_policies, "file")
complete_fault: Complete = _words(_kernel_faults)
complete_scenario: Complete = _words(_scenarios)
complete_file: Complete = _words(tuple, "file")
complete_folder: Complete = _words(tuple, "dir")

_SIMULATOR_VALUES: Final[dict[str, Callable[[], Iterable[str]]]] = {
    "platform": _simulator_platforms,
    "quote_version": lambda: ("4", "5"),
    "scenario": _scenarios,
    "faults": _simulator_faults,
    "tpm": lambda: ("model", "swtpm"),
}


def complete_option(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> "list[CompletionItem]":
    """Complete NAME= of a backend option, then NAME=VALUE if its values are known."""
    from attestkit import backends
    from attestkit.cli.options.backend_values import option_types
    from attestkit.errors import AttestKitError

    backend = ctx.params.get("backend") or backends.backend_from_environment() or "simulator"
    try:
        known = option_types(backends.load(backend))
    except AttestKitError:
        return []
    words = [f"{name}=" for name in known]
    name = incomplete.partition("=")[0]
    if incomplete != name:
        values = _SIMULATOR_VALUES.get(name, tuple) if backend == "simulator" else tuple
        words = [f"{name}={value}" for value in values()]
    return _words(lambda: words)(ctx, param, incomplete)
