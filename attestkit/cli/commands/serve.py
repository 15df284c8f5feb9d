"""`attestkit serve`: the guest agent API, with the options of the server's command line."""

from typing import TYPE_CHECKING

import click

from attestkit.cli.options.option import Command

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class _Serve(Command):
    """A command whose options are parsed by the server."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        """Return the server's options that begin with `incomplete`; for other words, a file."""
        del ctx
        from click.shell_completion import CompletionItem

        # Lazy: the server is an extra, and slow to import.
        from attestkit.serve.config.command_line import option_names

        if not incomplete.startswith("-"):
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in option_names() if name.startswith(incomplete)]


@click.command(
    cls=_Serve,
    example="serve --backend simulator",
    codes="01235",
    meanings={
        0: "stopped by a signal",
        2: "the KMS refused the app, or was rejected",
        130: "SIGINT during startup",
    },
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> int:
    """Serve the guest agent API, like python -m attestkit.serve."""
    from attestkit.serve.__main__ import main  # lazy: an extra, slow to import

    return main(list(options))
