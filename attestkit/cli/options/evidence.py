"""Options and output of `quote` and `attest`."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from attestkit.cli.options.backend import Device, device_options
from attestkit.cli.options.click_types import PATH, group_options, json_option
from attestkit.cli.options.report_data import ReportDataInput, report_data_options
from attestkit.cli.options.simulator_trust import TrustOutputs, simulated_trust_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import (
    check_outputs,
    print_bytes,
    refuse_stdout,
    write_output,
)

if TYPE_CHECKING:
    from attestkit.attester import Attester

__all__ = ["EvidenceRequest", "request_options"]


class EvidenceRequest(NamedTuple):
    """Report data, backend and outputs of a quote or of evidence."""

    report_data: ReportDataInput
    output: Path | None
    device: Device
    trust: TrustOutputs
    as_json: bool

    @contextlib.contextmanager
    def open(self) -> "Iterator[Attester]":
        """Check the outputs, open the backend, and finally write the simulator's trust files.

        Raises:
            UsageError: If an output is an input or another output; or as `Device.open`.
            AttestKitError: As `Device.open` and `TrustOutputs.write`.
        """
        refuse_stdout(self.output, as_json=self.as_json)
        outputs = (("-o", self.output), *self.trust.outputs(), ("--record", self.device.record))
        check_outputs(outputs, (*self.report_data.inputs, *self.device.inputs))
        with self.device.open() as attester:
            yield attester
            self.trust.write(attester.backend)

    def write_result(
        self, raw: bytes, name: str, fields: Mapping[str, object], description: str
    ) -> None:
        """Write the bytes to a file or to stdout, or print a JSON object.

        Args:
            raw: The bytes.
            name: Their member of the JSON object.
            fields: Other members of the object.
            description: A description of the bytes, printed if they are written to a file.
        """
        output = self.output
        written = output is not None and write_output("-o", output, raw)
        if self.as_json:
            own = {"report_data": self.report_data.value.hex(), "size": len(raw), name: raw.hex()}
            console.as_json({**fields, **own, "output": None if output is None else str(output)})
        elif written:
            console.verdict(f"{output}: {description}, {len(raw)} bytes", good=True)
        elif output is None:
            print_bytes(raw)


request_options: Final = group_options(
    "request",
    (
        report_data_options,
        click.option("-o", "--output", metavar="FILE", type=PATH, help="Write raw bytes to FILE."),
        device_options,
        simulated_trust_options,
        json_option,
    ),
    EvidenceRequest,
)
