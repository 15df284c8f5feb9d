"""`attestkit connect URL`: prove a server, and show what was proven and what was not."""

from pathlib import Path
from typing import Final

import click

from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.options.connection import (
    ConnectionOptions,
    connection_options,
    warn_of_weak_policy,
)
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_outputs, check_writable, write_output

_EPILOG: Final = (
    "Example: attestkit connect https://app.example.com --policy policy.toml\n\n"
    "Exit codes: 0 proven, 1 usage, 2 refused, 3 network, 4 refused by policy, 5 unreadable answer."
)


@click.command(epilog=_EPILOG)
@click.argument("url", metavar="URL")
@connection_options
@click.option(
    "--save-bundle",
    type=PATH,
    help="Write what was verified, for a later verification: JSON, mode 0600.",
)
@click.option(
    "--serve",
    "listen",
    metavar="HOST:PORT",
    help="Then forward requests from this address of this machine, until interrupted.",
)
@json_option
def connect(
    *,
    url: str,
    connection: ConnectionOptions,
    save_bundle: Path | None,
    listen: str | None,
    as_json: bool,
) -> None:
    """Prove a server.

    Nothing is sent but the question for its evidence. With --serve, programs in other languages
    reach the server by plain HTTP over the loopback interface; each connection to the server is
    proven before it carries a request.
    """
    check_outputs((("--save-bundle", save_bundle),), connection.inputs)
    check_writable((("--save-bundle", save_bundle),))
    if listen is not None:
        from attestkit.client.local_proxy import LocalProxy, listen_address  # lazy: few serve

        address = listen_address(listen)
    with connection.connect(url) as endpoint:
        if save_bundle is not None:
            bundle = endpoint.proof.bundle.to_json()
            write_output("--save-bundle", save_bundle, bundle, mode=0o600)
        if as_json:
            console.as_json(endpoint.proof.to_dict())
        else:
            console.lines(str(endpoint.proof).splitlines())
        warn_of_weak_policy(endpoint)
        if listen is not None:
            LocalProxy(endpoint, address).run()
