"""`attestkit keys fetch`: the keys of this app from its KMS."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from attestkit.cli.options import option
from attestkit.cli.options.backend import Device, device_options
from attestkit.cli.options.option import Group
from attestkit.cli.options.output import Output, output_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import is_device, is_stdout, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.kms.answers import FetchedKeys

_FIRST_USE: Final = "first-use"


@click.group(cls=Group)
def keys() -> None:
    """Get keys from a KMS."""


@keys.command(
    example="keys fetch --kms-url https://kms.example.com --kms-root root.json --json",
    codes="01235",
    meanings={2: "the KMS refused, or its keys were rejected"},
)
@option.value(
    "--kms-url", "URL", "https URL of a KMS, in order.", many=True, parameter="urls", required=True
)
@option.value(
    "--kms-root",
    "FILE",
    "JSON of KmsRoot; or first-use: trust any.",
    many=True,
    parameter="roots",
    required=True,
)
@output_options("Write all keys, mode 0600, in the form of .appkeys.json.")
@device_options
def fetch(*, urls: tuple[str, ...], roots: tuple[str, ...], out: Output, device: Device) -> None:
    """Request the keys of this app, and check them.

    The evidence of this machine is sent to the KMS, whose root keys must be those of --kms-root. No
    event is emitted. Public keys are printed; secret keys are only written to -o.
    """
    output = out.output
    if output is not None and is_stdout(output):
        message = "-o: secret keys are not written to stdout; give a file, -o FILE"
        raise UsageError(message, reason="conflict")
    if _FIRST_USE in roots and len(roots) > 1:
        raise UsageError(f"--kms-root: give files, or only {_FIRST_USE}", reason="conflict")
    files = [Path(text) for text in roots if text != _FIRST_USE]
    out.check((*device.inputs, *files), [("--record", device.record)])
    from attestkit.kms.client import KmsClient  # lazy, like the import below: not for --help
    from attestkit.kms.root import KmsRoot

    pins = [KmsRoot.load(path) for path in files]
    with device.open() as attester:
        client = KmsClient(
            urls, roots=pins or "first-use", attester=attester, vm_config=attester.vm_config
        )
        with console.progress("fetching keys"):
            fetched = client.fetch_app_keys()
        fields = {"backend": attester.backend.name, "simulated": attester.simulated}
    with fetched.app_keys as found:
        if output is not None:
            if is_device(output):  # such as a pipe to a program that encrypts
                write_output("-o", output, found.to_json())
            else:
                found.save(output)
        public = _public_fields(fetched)
    if out.as_json:
        console.as_json({**public, **fields, "output": out.name})
        return
    shown = {name.replace("_", " "): _text(value) for name, value in public.items()}
    console.fields(None, shown)
    if output is not None:
        console.verdict(f"{output}: secret keys of the app", good=True)


def _public_fields(fetched: "FetchedKeys") -> dict[str, object]:
    """Return the fetched values that are not secret, by the names of --json; bytes are hex.

    They are the KMS's URL and keys, the app's root public key and its signature, the gateway's app
    id, the hash of the KMS's OS image, and what is not proven.
    """
    app_keys, root = fetched.app_keys, fetched.root
    k256 = root.k256_public_key
    return {
        "kms": fetched.url,
        "key_provider_id": root.provider_id,
        "kms_k256_public_key": "" if k256 is None else k256.hex(),
        "root_public_key": app_keys.root_public_key.hex(),
        "k256_signature": app_keys.k256_signature.hex(),
        "gateway_app_id": app_keys.gateway_app_id,
        "os_image_hash": fetched.os_image_hash.hex(),
        "not_proven": list(fetched.not_proven),
    }


def _text(value: object) -> str:
    return ", ".join(value) or "nothing" if isinstance(value, list) else str(value)
