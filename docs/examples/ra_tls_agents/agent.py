"""One of two agents that judge each other inside the TLS handshake, before either says a word.

Its certificate carries evidence about the certificate's own key, so whoever speaks with that key is
the attested TEE. Both sides hold the other to the same policy: the app on the image that it names.
"""

import argparse
import socket
import ssl
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import attestkit
from attestkit import AppraisalPolicy, Attester, Collateral, Verifier, ra_tls
from attestkit.errors import AttestKitError, UnsupportedError
from attestkit.ra_tls import PeerRefusedError

LIFETIME = timedelta(hours=1)  # of the certificate, whose evidence is as old as itself
PATIENCE = 30  # seconds to wait for the other side
RETRY = 60  # seconds until a certificate that could not be renewed is tried again
LARGEST = 1024  # bytes of a message


def make_certificate(tee: Attester) -> ra_tls.Issued:
    """Return a new key and its certificate, with evidence, issued by the app's authority."""
    keys = tee.host.app_keys if tee.host else None
    if keys is None or keys.ca_key is None:
        raise UnsupportedError("the app's authority is elsewhere: ask the agent's GetTlsKey")
    return ra_tls.issue(
        subject="an agent",
        attest=tee.attest,
        ca_cert=keys.ca_cert,
        ca_key=keys.ca_key,
        usage_ra_tls=True,  # puts the evidence in
        server_auth=True,
        client_auth=True,
        not_after=int((datetime.now(timezone.utc) + LIFETIME).timestamp()),
    )


def named(connection: ssl.SSLSocket) -> str:
    """Return who the other side was found to be."""
    result = ra_tls.peer(connection)
    app = result.app_info.app_id.hex() if result.app_info else "an unknown app"
    return f"{app}{' SIMULATED' if result.simulated else ''}"


def serve(port: int, make_context: Callable[[], ssl.SSLContext]) -> None:
    """Answer one message a connection, of peers that were accepted."""
    context, renew_at = make_context(), time.monotonic() + LIFETIME.total_seconds() / 2
    with socket.create_server(("127.0.0.1", port)) as listener:
        print(f"ready 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            if time.monotonic() >= renew_at:
                renew_at = time.monotonic() + LIFETIME.total_seconds() / 2
                try:
                    context = make_context()
                except AttestKitError as error:  # a busy device, say; the old one is still good
                    renew_at = time.monotonic() + RETRY
                    print("no new certificate yet:", error, flush=True)
            try:
                with context.wrap_socket(connection, server_side=True) as peer:
                    print("heard", named(peer), "say", repr(peer.recv(LARGEST)), flush=True)
                    peer.sendall(b"well met")
            except PeerRefusedError as error:
                print("refused:", error.reason, "-", error.verify_message, flush=True)
            except OSError as error:  # gone, or no TLS
                print("broken off:", error, flush=True)


def call(host: str, port: int, context: ssl.SSLContext, message: str) -> None:
    """Say something to a server that was accepted, and print its answer."""
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE) as connection,
            context.wrap_socket(connection) as peer,
        ):
            peer.sendall(message.encode())
            print(named(peer), "answers", repr(peer.recv(LARGEST)))
    except OSError as error:  # a PeerRefusedError is one, too
        sys.exit(f"no answer: {error}")


def main() -> None:
    """Read the command line; then serve, or call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["serve", "call"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--message", default="hello")
    parser.add_argument("--policy", type=Path, required=True, help="which app on which image")
    parser.add_argument("--trust-anchor", type=Path, help="one root in place of the makers'")
    parser.add_argument("--collateral", type=Path, help="a file, or:")
    parser.add_argument("--pccs", metavar="URL", help="where collateral is fetched")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the hardware found")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    parser.add_argument("--app-compose", type=Path, help="simulator only: the app")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral and Collateral.load(args.collateral),
        pccs_url=args.pccs,
        policy=AppraisalPolicy.load(args.policy),
    )
    files = {"seed": args.seed_file, "app_compose": args.app_compose}
    options = {name: path.read_bytes() for name, path in files.items() if path}
    with attestkit.open(args.backend, **options) as tee:

        def server_context() -> ssl.SSLContext:
            issued = make_certificate(tee)
            authority = issued.certificate_chain[-1]  # of our app, which the clients are of, too
            return ra_tls.server_context(verifier, issued=issued, peer_ca=authority)

        if args.what == "serve":
            serve(args.port, server_context)
        else:
            context = ra_tls.client_context(verifier, issued=make_certificate(tee))
            call(args.host, args.port, context, args.message)


if __name__ == "__main__":
    main()
