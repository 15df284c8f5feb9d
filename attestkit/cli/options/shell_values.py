"""Shell completion of option values.

Modules with the values are imported lazily, because only completion needs them.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Complete: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"


def complete_words(list_words: Callable[[], Iterable[str]], otherwise: str = "") -> Complete:
    """Return a function that completes one of the words that `list_words` returns.

    If no word matches, the shell completes a path of the type `otherwise`: `file` or `dir`; "":
    none.
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


def words_of(module: str, name: str) -> Callable[[], Iterable[str]]:
    """Return a function that lists the words in the member `name` of `attestkit.MODULE`.

    The member is a collection of words, or a function that returns one.
    """

    def find_words() -> Iterable[str]:
        found: Any = getattr(import_module(f"attestkit.{module}"), name)
        return cast("Iterable[str]", found() if callable(found) else found)

    return find_words


def scenarios() -> Iterable[str]:
    """Return the names of the simulator's scenarios."""
    from attestkit.backends.simulator.scenarios.registry import SCENARIOS, gpu_scenarios

    return (*SCENARIOS, *gpu_scenarios())


complete_policy: Complete = complete_words(
    words_of("verifier.policy.appraisal_policy", "PRESETS"), "file"
)
complete_fault: Complete = complete_words(
    words_of("backends.simulator.faults.fault_specs", "NAMED")
)
complete_scenario: Complete = complete_words(scenarios)
complete_file: Complete = complete_words(tuple, "file")
complete_folder: Complete = complete_words(tuple, "dir")
