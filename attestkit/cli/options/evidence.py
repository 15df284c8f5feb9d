"""Options and output of `quote` and `attest`."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.cli.options import option
from attestkit.cli.options.backend import Device, device_options
from attestkit.cli.options.output import Output, output_options
from attestkit.cli.options.report_data import ReportDataInput, report_data_options
from attestkit.cli.output.write_output import require_file, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.backends.base import Backend

_ANCHOR: Final = "--save-trust-anchor"
_COLLATERAL: Final = "--save-collateral"


class EvidenceRequest(NamedTuple):
    """Report data, backend and outputs of a quote or of evidence.

    Attributes:
        report_data: Report data of the request.
        out: File of -o, and whether JSON is printed.
        device: The backend.
        save_trust_anchor: File for the simulator's trust anchor; None: not written.
        save_collateral: File for the simulator's collateral; None: not written.
    """

    report_data: ReportDataInput
    out: Output
    device: Device
    save_trust_anchor: Path | None
    save_collateral: Path | None

    @contextlib.contextmanager
    def open(self, outputs: Iterable[tuple[str, Path | None]] = ()) -> "Iterator[Attester]":
        """Context manager: check the output files, open the backend, and close it on exit.

        `outputs` are the command's other output files: option, and path if given.
        On exit without an error, the files of --save-trust-anchor and --save-collateral are
        written.

        Raises:
            UsageError: If an output file is also an input or another output, if
                --save-trust-anchor or --save-collateral names stdout or is used with a backend
                that is not the simulator, or for the reasons of `Device.open`.
            UnsupportedError: If the platform has no collateral, such as SEV-SNP.
            AttestKitError: If `Device.open` fails.
        """
        trust = (
            (_ANCHOR, self.save_trust_anchor),
            (_COLLATERAL, self.save_collateral),
            *outputs,
        )
        for name, path in trust:
            require_file(name, path)
        inputs = (*self.report_data.inputs, *self.device.inputs)
        self.out.check(inputs, (*trust, ("--record", self.device.record)))
        with self.device.open() as attester:
            yield attester
            self._write_trust(attester.backend)

    def _write_trust(self, backend: "Backend") -> None:
        """Write the simulator's trust anchor and collateral to the files that options name.

        The anchor is PEM, or JSON for a file `*.json`; the collateral is JSON. They are for tests
        of verifiers.

        Raises:
            UsageError: If a file is named and the backend is not the simulator.
        """
        if self.save_trust_anchor is None and self.save_collateral is None:
            return
        from attestkit.backends.base import SimulatedBackend  # lazy: not for --help

        backend = getattr(backend, "of", None) or backend  # the recorded backend of --record
        anchor: bytes | None = getattr(backend, "trust_anchor", None)
        collateral = getattr(backend, "collateral", None)
        if not backend.simulated or anchor is None or collateral is None:
            text = f"{_ANCHOR} and {_COLLATERAL}: not supported by backend {backend.name}"
            raise UsageError(f"{text}; use the simulator", reason="not_applicable")
        if self.save_trust_anchor is not None:
            from attestkit._crypto.pem import encode_pem  # lazy: few runs need it

            content: str | bytes = encode_pem("CERTIFICATE", anchor)
            if self.save_trust_anchor.suffix == ".json" and isinstance(backend, SimulatedBackend):
                content = backend.roots.to_json()
            write_output(_ANCHOR, self.save_trust_anchor, content)
        if self.save_collateral is not None:
            write_output(_COLLATERAL, self.save_collateral, collateral().to_json())

    def write_result(
        self, raw: bytes, name: str, fields: Mapping[str, object], description: str
    ) -> None:
        """Write the bytes to a file or to stdout, or print a JSON object.

        Args:
            raw: The bytes.
            name: Name of the member of the JSON object that contains the bytes in hex.
            fields: Other members of the object; `report_data` replaces that of the options.
            description: A description of the bytes, printed if they are written to a file.

        Raises:
            UsageError: If the file cannot be written.
        """
        own = {"size": len(raw), name: raw.hex(), "output": self.out.name}
        bound = {"report_data": self.report_data.value.hex()}
        self.out.write(raw, {**bound, **fields, **own}, f"{description}, {len(raw)} bytes")


request_options: Final = option.group(
    "request",
    (
        report_data_options,
        output_options("Write raw bytes to FILE."),
        device_options,
        *option.section(
            "Simulator",
            option.file(_ANCHOR, "Write its root; NAME.json: all its roots."),
            option.file(_COLLATERAL, "Write its collateral, for verify --collateral."),
        ),
    ),
    EvidenceRequest,
)
