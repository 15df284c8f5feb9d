"""What `quote` and `attest` have in common: what they are asked for, and where it goes."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.options.backend import Device, device_options
from attestkit.cli.options.click_types import PATH, gathered, json_option
from attestkit.cli.options.report_data import Sealed, report_data_options
from attestkit.cli.options.simulator_trust import SimulatedTrust, simulated_trust_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import (
    check_outputs,
    print_bytes,
    refuse_stdout,
    write_output,
)

if TYPE_CHECKING:
    from attestkit.attester import Attester

__all__ = ["Request", "request_options"]


class Request(NamedTuple):
    """What a TEE is asked to sign, which TEE, and where to write it."""

    sealed: Sealed
    output: Path | None
    device: Device
    trust: SimulatedTrust
    as_json: bool

    @contextlib.contextmanager
    def open(self) -> "Iterator[Attester]":
        """Open the TEE once all outputs can be; at the end write what it takes to believe it.

        Raises:
            UsageError: An output is an input, or another output; or as `Device.open`.
            AttestKitError: As `Device.open` and `SimulatedTrust.write`.
        """
        refuse_stdout(self.output, as_json=self.as_json)
        outputs = (("-o", self.output), *self.trust.outputs(), ("--record", self.device.record))
        check_outputs(outputs, (*self.sealed.inputs, *self.device.inputs))
        with self.device.open() as attester:
            yield attester
            self.trust.write(attester.backend)

    def deliver(self, raw: bytes, what: str, told: Mapping[str, object], text: str) -> None:
        """Write the bytes, or show them, or show a JSON object.

        Args:
            raw: The bytes.
            what: Their name in the object.
            told: What else the object says of them.
            text: What they are, for people; told if they are in a file.
        """
        output = self.output
        written = output is not None and write_output("-o", output, raw)
        if self.as_json:
            mine = {"report_data": self.sealed.report_data.hex(), "size": len(raw), what: raw.hex()}
            console.as_json({**told, **mine, "output": None if output is None else str(output)})
        elif written:
            console.verdict(f"{output}: {text}, {len(raw)} bytes", good=True)
        elif output is None:
            print_bytes(raw)


request_options: Final = gathered(
    "request",
    (
        report_data_options,
        click.option("-o", "--output", metavar="FILE", type=PATH, help="Write it there, raw."),
        device_options,
        simulated_trust_options,
        json_option,
    ),
    Request,
)
