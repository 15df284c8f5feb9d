"""`attestkit emit NAME [HEX]`: a runtime event, in both register and log or in neither."""

from pathlib import Path

import click

from attestkit.cli.input.read_input import read_file
from attestkit.cli.options import option
from attestkit.cli.options.backend import Device, device_options
from attestkit.cli.options.option import TEXT_HINT, Command, read_hex, read_text
from attestkit.cli.output import console
from attestkit.errors import UsageError


@click.command(cls=Command, example="emit model-loaded --text llama-3", codes="0135")
@click.argument("name")
@click.argument("payload", metavar="[HEX]", required=False)
@option.value("--text", "TEXT", "Payload as UTF-8 text.")
@option.file("--file", "Payload as the bytes of a file; - is stdin.")
@device_options
@option.json
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
