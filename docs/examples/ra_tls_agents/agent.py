"""One of two agents that verify each other inside the TLS handshake, before application data.

Its certificate contains evidence about the certificate's key, so the key's holder is the attested
TEE. Both sides apply the same policy, which pins app and image.
"""

import argparse
import socket
import ssl
import sys
from pathlib import Path

import attestkit
from attestkit import Attester, Verifier, ra_tls
from attestkit.errors import UnsupportedError
from attestkit.ra_tls import PeerRefusedError

PATIENCE = 30  # timeout for the peer in seconds
LARGEST = 1024  # bytes of a message


def make_certificate(tee: Attester) -> ra_tls.Issued:
    """Return a new key and its certificate, with evidence, issued by the app's authority.

    It lives an hour, and a context renews it while the TEE is open.
    """
    keys = tee.host.app_keys if tee.host else None
    if keys is None or keys.ca_key is None:
        raise UnsupportedError(
            "the app's authority is elsewhere: ask the agent's GetTlsKey", reason="feature"
        )
    return ra_tls.issue(
        subject="an agent",
        attest=tee.attest,
        ca_cert=keys.ca_cert,
        ca_key=keys.ca_key,
        usage_ra_tls=True,  # includes the evidence
        server_auth=True,
        client_auth=True,
    )


def named(connection: ssl.SSLSocket) -> str:
    """Return the verified identity of the peer."""
    result = ra_tls.peer(connection)
    app = result.app_info.app_id.hex() if result.app_info else "an unknown app"
    return f"{app}{' SIMULATED' if result.simulated else ''}"


def serve(port: int, context: ssl.SSLContext) -> None:
    """Answer one message per connection, from accepted peers."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        print(f"ready 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE)
            try:
                with context.wrap_socket(connection, server_side=True) as peer:
                    print("heard", named(peer), "say", repr(peer.recv(LARGEST)), flush=True)
                    peer.sendall(b"well met")
            except PeerRefusedError as error:
                print("refused:", error.reason, "-", error.verify_message, flush=True)
            except OSError as error:  # disconnected, or not TLS
                print("broken off:", error, flush=True)


def call(host: str, port: int, context: ssl.SSLContext, message: str) -> None:
    """Send a message to an accepted server, and print its response."""
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE) as connection,
            context.wrap_socket(connection) as peer,
        ):
            peer.sendall(message.encode())
            print(named(peer), "answers", repr(peer.recv(LARGEST)))
    except OSError as error:  # includes PeerRefusedError
        sys.exit(f"no answer: {error}")


def main() -> None:
    """Parse the command line; then serve or call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["serve", "call"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 selects a free port")
    parser.add_argument("--message", default="hello")
    parser.add_argument("--policy", type=Path, required=True, help="policy that pins app and image")
    parser.add_argument("--trust-anchor", type=Path, help="one root instead of the vendors'")
    parser.add_argument("--collateral", type=Path, help="collateral file; or use --pccs")
    parser.add_argument("--pccs", metavar="URL", help="service for collateral")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    parser.add_argument("--app-compose", type=Path, help="simulator only: the app")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral,
        pccs_url=args.pccs,
        policy=args.policy,
    )
    files = {"seed": args.seed_file, "app_compose": args.app_compose}
    options = {name: path.read_bytes() for name, path in files.items() if path}
    with attestkit.open(args.backend, **options) as tee:
        issued = make_certificate(tee)
        if args.what == "serve":
            authority = issued.certificate_chain[-1]  # of our app, which is also the clients'
            serve(args.port, ra_tls.server_context(verifier, issued=issued, peer_ca=authority))
        else:
            context = ra_tls.client_context(verifier, issued=issued)
            call(args.host, args.port, context, args.message)


if __name__ == "__main__":
    main()
