"""`attestkit key PATH`: an app key, which is a secret."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options import option
from attestkit.cli.options.backend import Device, device_options
from attestkit.cli.options.option import Command
from attestkit.cli.options.output import Output, output_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.keys import DerivedKey, KeyDeriver

_SHARED: Final = ("secp256k1", "k256", "ed25519")
_SEPARATED: Final = ("p256", "x25519")


@click.command(cls=Command, example="key wallet/eth -o key.hex", codes="0135")
@click.argument("path")
@option.value("--purpose", "TEXT", "Purpose in the signature chain.")
@click.option(
    "--algorithm",
    metavar="NAME",
    type=click.Choice([*_SHARED, *_SEPARATED]),
    default="secp256k1",
    help="secp256k1 (default), k256 (the same), ed25519; with --separated p256, x25519.",
)
@option.flag("--separated", text="Another key for each algorithm, unlike the guest agent.")
@option.flag("--v1", text="Key of the v1 API (dstack 0.6), with PATH as its domain.")
@option.flag("--public", text="Print only the public key, in hex.")
@output_options("Write the key in hex, mode 0600; - is stdout, key only.")
@device_options
def key(
    *,
    path: str,
    purpose: str | None,
    algorithm: str,
    separated: bool,
    v1: bool,
    public: bool,
    out: Output,
    device: Device,
) -> None:
    """Derive an app key.

    The same PATH gives the same key wherever the app runs. The secret key and the public key are
    printed in hex, unless --public or -o is given.
    """
    if not path:  # often an unset variable
        raise UsageError("PATH: the value is empty", reason="missing")
    output = out.output
    if public and output is not None:
        raise UsageError(
            "--public and -o: -o writes the secret key; give one of them", reason="conflict"
        )
    out.check(device.inputs, [("--record", device.record)])
    with device.open() as attester:
        derived = _derive(attester.keys, path, purpose, algorithm, separated=separated, v1=v1)
        fields = {"backend": attester.backend.name, "simulated": attester.simulated}
    secret = derived.key.hex()
    written = output is not None and write_output("-o", output, f"{secret}\n", mode=0o600)
    if out.as_json:
        request = {"path": path, "purpose": purpose or "", "separated": separated, "v1": v1}
        algorithm_field = {"algorithm": "secp256k1" if algorithm == "k256" else algorithm}
        hidden = public or output is not None
        chain = [signature.hex() for signature in derived.signature_chain]
        public_fields = {"public_key": derived.public_key.hex(), "signature_chain": chain}
        found = {"key": None if hidden else secret, **public_fields}
        console.as_json({**request, **algorithm_field, **fields, **found, "output": out.name})
    else:
        _show(derived, output, public=public, written=written)


def _show(derived: "DerivedKey", output: Path | None, *, public: bool, written: bool) -> None:
    """Print the public key and the secret key, both in hex.

    Args:
        derived: The derived key.
        output: File of -o for the secret key, which is then not printed; None: no file.
        public: Print the public key alone.
        written: Whether the file was written, and not stdout; otherwise nothing more is printed.
    """
    public_key = derived.public_key.hex()
    if public:
        click.echo(public_key)
    elif written:
        console.verdict(f"{output}: secret key of {public_key}", good=True)
    elif output is None:
        console.fields(None, {"public key": public_key, "key": derived.key.hex()})


def _derive(
    keys: "KeyDeriver",
    path: str,
    purpose: str | None,
    algorithm: str,
    *,
    separated: bool,
    v1: bool,
) -> "DerivedKey":
    if separated and v1:
        raise UsageError("--separated and --v1: mutually exclusive", reason="conflict")
    if algorithm in _SEPARATED and not separated:
        raise UsageError(f"--algorithm {algorithm}: requires --separated", reason="conflict")
    if not separated and not v1:
        return keys.derive_compat(path, purpose or "", algorithm)
    if purpose is not None:
        option = "--v1" if v1 else "--separated"
        raise UsageError(
            f"--purpose and {option}: the signature chain of such a key has no purpose",
            reason="conflict",
        )
    return keys.derive_v1(path, algorithm) if v1 else keys.derive(path, algorithm)
