"""`attestkit emit NAME [HEX]`: a runtime event, in both register and log or in neither."""

from pathlib import Path
from typing import Final

import click

from attestkit.cli.input.read_input import read_file
from attestkit.cli.options.backend import DEVICE_EXIT_CODES, Device, device_options
from attestkit.cli.options.click_types import PATH, TEXT_HINT, json_option, read_hex, read_text
from attestkit.cli.output import console
from attestkit.errors import UsageError

_EPILOG: Final = "Example: attestkit emit model-loaded --text llama-3\n\n" + DEVICE_EXIT_CODES


@click.command(epilog=_EPILOG)
@click.argument("name")
@click.argument("payload", metavar="[HEX]", required=False)
@click.option("--text", help="Payload as UTF-8 text.")
@click.option("--file", type=PATH, help="Payload as the bytes of a file; - is stdin.")
@device_options
@json_option
def emit(
    *,
    name: str,
    payload: str | None,
    text: str | None,
    file: Path | None,
    device: Device,
    as_json: bool,
) -> None:
    """Extend RTMR3 by an event and log it.

    On a NitroTPM, the event extends PCR 14. All later evidence contains the event, until the
    machine is rebooted. NAME is the name of the event, HEX its optional payload.
    """
    from attestkit.backends.base import EventPcr  # lazy: not for --help

    data = _payload(payload, text, file)
    with device.open() as attester:
        event = attester.emit_event(name, data)
        backend, register = attester.backend, attester.event_register
        simulated = attester.simulated
    found = {
        "name": event.name,
        "payload": event.payload.hex(),
        "register": backend.event_pcr if isinstance(backend, EventPcr) else event.register,
        "version": event.version,
        "digest": event.digest.hex(),
    }
    if as_json:
        console.as_json({"backend": backend.name, "simulated": simulated, "event": found})
        return
    console.verdict(f"{register} extended by {event.name}", good=True)
    console.fields(None, {"payload": found["payload"] or "none", "digest": found["digest"]})


def _payload(payload: str | None, text: str | None, file: Path | None) -> bytes:
    if sum(given is not None for given in (payload, text, file)) > 1:
        raise UsageError("HEX, --text and --file: mutually exclusive", reason="conflict")
    if file is not None:
        return read_file(file)
    if text is not None:
        return read_text("--text", text)
    return b"" if payload is None else read_hex("HEX", payload, TEXT_HINT)
