"""`attestkit connect URL`: prove a server, and show what was proven and what was not."""

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestkit.cli.exit_codes import print_error
from attestkit.cli.options import option
from attestkit.cli.options.connection import (
    ConnectionOptions,
    connection_options,
    warn_of_weak_policy,
)
from attestkit.cli.options.option import Command, read_instant
from attestkit.cli.options.verification import OWN_INSTANT
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_outputs, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.client import Proof


@click.command(
    cls=Command,
    example="connect https://app.example.com --policy policy.toml",
    codes="012345",
    meanings={0: "proven", 2: "refused", 5: "unreadable answer"},
)
@click.argument("url", metavar="[URL]", required=False)
@connection_options
@option.file("--save-bundle", "Write what was verified, for later.")
@option.file("--bundle", "Verify this one, offline, instead of a URL.")
@option.at(f"Time of this, else now; {OWN_INSTANT}: that of FILE.")
@option.value(
    "--serve", "HOST:PORT", "Then forward requests from this address.", parameter="listen"
)
@option.json
def connect(
    *,
    url: str | None,
    connection: ConnectionOptions,
    save_bundle: Path | None,
    bundle: Path | None,
    at: str | None,
    listen: str | None,
    as_json: bool,
) -> None:
    """Prove a server, before anything is sent to it.

    A server is proven if its evidence is accepted and belongs to the TLS connection. Before that,
    only the request for the evidence is sent. With --serve, programs in other languages reach the
    server by plain HTTP over the loopback interface; each connection to the server is proven before
    it carries a request.
    """
    if bundle is not None:
        connection.check_offline({"URL": url, "--save-bundle": save_bundle, "--serve": listen})
        _show(_saved_proof(bundle, at, connection), as_json=as_json)
    elif url is None:
        raise UsageError("URL: missing; give the server's URL, or --bundle FILE", reason="missing")
    elif at is not None:
        raise UsageError("--at: only with --bundle FILE", reason="conflict")
    else:
        _prove(url, connection, save_bundle, listen, as_json=as_json)


def _prove(
    url: str,
    connection: ConnectionOptions,
    save_bundle: Path | None,
    listen: str | None,
    *,
    as_json: bool,
) -> None:
    check_outputs((("--save-bundle", save_bundle),), connection.inputs, writable=True)
    if listen is not None:  # before the network is used
        from attestkit.client.local_proxy import listen_address  # lazy: few serve

        listen_address(listen)
    with connection.connect(url) as endpoint:
        proof = endpoint.proof
        is_free = True
        if save_bundle is not None:
            text = proof.bundle.to_json()
            is_free = write_output("--save-bundle", save_bundle, text, mode=0o600)
        _show(proof, as_json=as_json, is_free=is_free)
        if listen is not None:
            from attestkit.client.local_proxy import LocalProxy, listen_address  # lazy: as above

            sys.stdout.flush()
            proxy = LocalProxy(endpoint, listen_address(listen))
            proxy.run(lambda own: print_error(f"listening on {own}, for {endpoint.origin}"))


def _saved_proof(path: Path, at: str | None, connection: ConnectionOptions) -> "Proof":
    from attestkit.client import ProofBundle  # lazy: not for --help

    if at == OWN_INSTANT:
        moment = None
    elif at is not None:
        moment = read_instant(at, OWN_INSTANT)
    else:
        moment = datetime.now(timezone.utc)
    return connection.verify(ProofBundle.load(path), moment)


def _show(proof: "Proof", *, as_json: bool, is_free: bool = True) -> None:
    """Print a proof, as JSON or text, and warnings about it.

    If `is_free` is False, stdout has a bundle, and only warnings are printed, on stderr.
    """
    if is_free and as_json:
        console.as_json(proof.to_dict())
    elif is_free:
        console.lines(str(proof).splitlines(), hang=13)  # the column of its values
    warn_of_weak_policy(proof)
