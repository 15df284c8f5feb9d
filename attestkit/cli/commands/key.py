"""`attestkit key PATH`: a key of the app, which is a secret."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options.backend import DEVICE_EXIT_CODES, Device, device_options
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_outputs, refuse_stdout, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.keys import DerivedKey, KeyDeriver

__all__ = ["key"]

_SHARED: Final = ("secp256k1", "k256", "ed25519")
_SEPARATED: Final = ("p256", "x25519")
_EPILOG: Final = "Example: attestkit key wallet/eth -o key.hex\n\n" + DEVICE_EXIT_CODES


@click.command(epilog=_EPILOG)
@click.argument("path")
@click.option("--purpose", metavar="TEXT", help="What the signature chain says it is for.")
@click.option(
    "--algorithm",
    metavar="NAME",
    type=click.Choice([*_SHARED, *_SEPARATED]),
    default="secp256k1",
    show_default=True,
    help="secp256k1 (or k256), ed25519; with --separated also p256 and x25519.",
)
@click.option(
    "--separated",
    is_flag=True,
    help="A key of this algorithm alone; else secp256k1 and ed25519 share their 32 bytes, as the "
    "guest agent's API has it.",
)
@click.option("--public", is_flag=True, help="The public key alone, in hex; no secret is shown.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=PATH,
    help="Write the key there in hex, mode 0600, and show the public one; - is stdout, key alone.",
)
@device_options
@json_option
def key(
    *,
    path: str,
    purpose: str | None,
    algorithm: str,
    separated: bool,
    public: bool,
    output: Path | None,
    device: Device,
    as_json: bool,
) -> None:
    """Derive a key of the app.

    The same PATH gives the same key, wherever the app runs. The key is a secret, and goes to stdout
    in hex beside the public one, unless --public or -o says otherwise.
    """
    if not path:  # often a variable that is not set
        raise UsageError("the path is empty: attestkit key PATH")
    if public and output is not None:
        raise UsageError("--public and -o: a file gets the key, which --public leaves out")
    refuse_stdout(output, as_json=as_json)
    check_outputs((("-o", output), ("--record", device.record)), device.inputs)
    with device.open() as attester:
        derived = _derived(attester.keys, path, purpose, algorithm, separated=separated)
        told = {"backend": attester.backend.name, "simulated": attester.simulated}
    secret = derived.key.hex()
    written = output is not None and write_output("-o", output, f"{secret}\n", mode=0o600)
    if as_json:
        asked = {"path": path, "purpose": purpose or "", "separated": separated}
        named = {"algorithm": "secp256k1" if algorithm == "k256" else algorithm}
        hidden = public or output is not None
        found = {"key": None if hidden else secret, **_shown(derived)}
        place = None if output is None else str(output)
        console.as_json({**asked, **named, **told, **found, "output": place})
    else:
        _show(derived, output, public=public, written=written)


def _shown(derived: "DerivedKey") -> dict[str, object]:
    """Return what of a key is no secret."""
    chain = [signature.hex() for signature in derived.signature_chain]
    return {"public_key": derived.public_key.hex(), "signature_chain": chain}


def _show(derived: "DerivedKey", output: Path | None, *, public: bool, written: bool) -> None:
    """Show people the key, unless it went elsewhere."""
    shared = derived.public_key.hex()
    if public:
        click.echo(shared)
    elif written:
        console.verdict(f"{output}: the key of {shared}", good=True)
    elif output is None:
        console.fields(None, {"public key": shared, "key": derived.key.hex()})


def _derived(
    keys: "KeyDeriver", path: str, purpose: str | None, algorithm: str, *, separated: bool
) -> "DerivedKey":
    if not separated:
        if algorithm in _SEPARATED:
            raise UsageError(f"--algorithm {algorithm} needs --separated")
        return keys.derive(path, purpose or "", algorithm)
    if purpose is not None:
        raise UsageError("--purpose and --separated: the chain of a separated key has no purpose")
    return keys.derive_separated(path, algorithm)
