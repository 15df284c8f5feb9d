"""The section on GPUs and switches in the report: a picture of each, and what binds them."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.cli.report.endorsements import State, describe_chain, format_minute
from attestkit.errors import AttestKitError, FormatError

if TYPE_CHECKING:
    from attestkit.cli.file_outcome import FileOutcome
    from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
    from attestkit.gpu.result import DeviceResult, GpuResult

COLUMNS: Final = 16  # cells in a row
_CELL: Final = 30  # width and height of a cell with its gap
_STEP: Final = 62  # between the centres of two devices in the picture of connections
_TITLES: Final = {
    "matched": "equals the reference manifest",
    "skipped": "not compared: video decoder 0 is off",
    "differs": "differs, as the policy accepts",
    "unused": "no reference value",
}


class Cell(NamedTuple):
    """A square in the picture of measurements.

    Attributes:
        number: Index of the measurement in the report and in the manifests.
        x: Left edge, in units of the SVG.
        y: Upper edge.
        css: CSS class of the state.
        title: Text of the state.
    """

    number: int  # index in the report and in the manifests
    x: int
    y: int
    css: str
    title: str


class MeasurementStrip(NamedTuple):
    """The measurements of a device, in rows of cells, with the size of the SVG in its units.

    `legend` has CSS class and text of each state that occurs.
    """

    cells: tuple[Cell, ...]
    width: int
    height: int
    legend: tuple[tuple[str, str], ...]  # CSS class and text


def build_strip(
    count: int,
    *,
    matched: Collection[int] = (),
    skipped: Collection[int] = (),
    mismatches: Collection[int] = (),
    compared: bool = True,
) -> MeasurementStrip:
    """Return the picture of `count` measurements.

    Args:
        count: Number of measurements in the report.
        matched: Indexes of those that equal the reference manifest.
        skipped: Indexes of those that were not compared.
        mismatches: Indexes of those that differ.
        compared: False if no measurement was compared.
    """
    titles = _TITLES if compared else {**_TITLES, "unused": "not compared"}
    states = {**dict.fromkeys(matched, "matched"), **dict.fromkeys(skipped, "skipped")}
    states |= dict.fromkeys(mismatches, "differs")
    cells = []
    for index in range(count):
        css = states.get(index, "unused")
        x, y = index % COLUMNS * _CELL, index // COLUMNS * _CELL
        cells.append(Cell(index, x, y, css, titles[css]))
    found = [cell.css for cell in cells]
    legend = [(css, f"{found.count(css)}: {titles[css]}") for css in titles if css in found]
    height = (count + COLUMNS - 1) // COLUMNS * _CELL
    return MeasurementStrip(tuple(cells), COLUMNS * _CELL, height, tuple(legend))


class Node(NamedTuple):
    """A device in the picture of connections: its label, and its x in units of the SVG."""

    x: int
    label: str


class ConnectionPicture(NamedTuple):
    """GPUs above, switches below, and a line for each connection.

    `width` is in units of the SVG; `connected` is whether each GPU is connected with each switch.
    """

    gpus: tuple[Node, ...]
    switches: tuple[Node, ...]
    width: int
    connected: bool  # each GPU with each switch, as the reports of both state


def draw_connections(
    gpus: Collection[int], switches: Collection[int], *, connected: bool
) -> ConnectionPicture:
    """Return the picture of the connections of devices, named by their index in the evidence.

    `connected` is whether each GPU is connected with each switch.
    """
    width = max(len(gpus), len(switches)) * _STEP
    return ConnectionPicture(
        _row(gpus, "GPU", width), _row(switches, "switch", width), width, connected
    )


def _row(positions: Collection[int], kind: str, width: int) -> tuple[Node, ...]:
    gap = width / max(len(positions), 1)
    return tuple(
        Node(round((at + 0.5) * gap), f"{kind} {position}") for at, position in enumerate(positions)
    )


OPEN: Final = 2  # maximum number of devices whose details are unfolded

_BINDINGS: Final = {
    "report_data": ("ok", "report data", "the CPU's report data commit to the GPU evidence"),
    "runtime_event": (
        "warn",
        "event log",
        "the CPU's measured event log has the hash of the GPU evidence, as of boot",
    ),
    "nonce": ("warn", "nonce only", "CPU and GPUs have only a nonce in common"),
}
_UNBOUND: Final = ("dim", "not verified", "not verified")
_MODES: Final = {
    "single": "single GPU (SPT)",
    "multi": "multi-GPU passthrough (MPT)",
    "protected_pcie": "protected PCIe",
    None: "not stated by the report",
}
_KINDS: Final = {"gpu": "GPU", "switch": "Switch"}
_MEASUREMENTS: Final = {"gpu": 64, "switch": 31}  # of a report
_NOTE: Final = (
    "Each square is a measurement of the device by its index, from a report with the device's "
    "signature. NVIDIA's reference manifests (RIMs) have the expected values of some of them."
)
_UNVERIFIED_NOTE: Final = (
    "These values are those of the GPU evidence; no signature was verified, and no measurement was "
    "compared."
)
_ALWAYS_UNPROVEN: Final = (
    (
        "The machine of the GPUs: a report does not name it. Software in the guest that is allowed "
        "to relay could pass on those of another machine; pin this software."
    ),
    "The meaning of each measurement: NVIDIA publishes names and values only.",
    (
        "Developer tools mode, in which memory is not protected: it is not known whether a report "
        "shows it otherwise than by a measurement that differs."
    ),
)


class GpuCard(NamedTuple):
    """Content of the report about one GPU or switch.

    Attributes:
        title: Title, such as `GPU 0`.
        css: CSS class of the state.
        state: Text of the state.
        binding: CSS class, short text and text: how the GPU is bound to the CPU's evidence.
        facts: Texts by title.
        strip: Picture of the measurements; None without any.
        chain: Title, state and fields of each certificate.
        rims: Identifier, version, product, signer and end of validity of each manifest.
        ocsp: Certificate, CSS class, status, start and end of each OCSP answer.
        error: Reason why the evidence is malformed; empty without an error.
    """

    title: str
    css: str  # of the state
    state: str
    binding: tuple[str, str, str]  # CSS class, short text and text
    facts: dict[str, str]
    strip: MeasurementStrip | None
    chain: list[tuple[str, State, dict[str, str]]]  # title, state and fields
    rims: list[tuple[str, str, str, str, str]]  # identifier, version, product, signer, end
    ocsp: list[tuple[str, str, str, str, str]]  # certificate, CSS class, status, start, end
    error: str = ""


class GpuSection(NamedTuple):
    """Content of the section on GPUs.

    Attributes:
        note: Text above the devices.
        facts: Texts by title.
        cards: The devices.
        connections: Picture of connections; None without switches.
        connections_note: Text below it; may be empty.
        not_proven: Texts about what is not proven.
        open: Whether the cards are unfolded.
    """

    note: str
    facts: dict[str, str]
    cards: tuple[GpuCard, ...]
    connections: ConnectionPicture | None
    connections_note: str
    not_proven: tuple[str, ...]
    open: bool  # unfold the cards


def build_gpu_section(outcome: "FileOutcome") -> GpuSection | None:
    """Return the report's section on GPUs; None for evidence without GPUs."""
    found = _evidence(outcome)
    result = None if outcome.result is None else outcome.result.gpu
    if result is not None:
        return _verified(result, found, outcome.at)
    if found is None:
        return None
    cards = tuple(_unverified(at, one, outcome.at) for at, one in enumerate(found.devices))
    return GpuSection(_UNVERIFIED_NOTE, {}, cards, None, "", (), len(cards) <= OPEN)


def _evidence(outcome: "FileOutcome") -> "GpuEvidence | None":
    """Return the GPU evidence of the options, or that enclosed in the CPU's evidence; else None.

    Output of `nvattest attest` at boot has no reports or certificates to show.
    """
    given = outcome.gpu_evidence
    if given is not None or not isinstance(outcome.evidence, Attestation):
        return None if isinstance(given, bytes) else given
    try:
        return outcome.evidence.gpu_evidence
    except AttestKitError:  # the report says why it was refused
        return None


def _verified(result: "GpuResult", evidence: "GpuEvidence | None", at: datetime) -> GpuSection:
    binding = _UNBOUND if result.binding is None else _BINDINGS[result.binding]
    facts = {
        "Bound to the CPU by": binding[2],
        "Trust anchors": "given, not NVIDIA's" if result.simulated else "NVIDIA's",
        "Nonce of the reports": result.nonce.hex(),
        "SHA-256 of the evidence": result.evidence_sha256.hex(),
    }
    if result.nras is not None:
        facts["NVIDIA's service"] = f"accepted; tokens of {len(result.nras)} devices"
    chains = () if evidence is None else evidence.devices
    cards = tuple(_card(one, binding, chains, at) for one in result.devices)
    left = [step.text for step in result.steps if step.outcome != "passed"]
    topology = next((one for one in result.steps if one.check == "gpu_topology"), None)
    connections = None
    if result.switches:
        gpus, switches = ([one.position for one in x] for x in (result.gpus, result.switches))
        passed = topology is not None and topology.outcome == "passed" and bool(gpus)
        connections = draw_connections(gpus, switches, connected=passed)
    return GpuSection(
        _NOTE,
        facts,
        cards,
        connections,
        "" if topology is None else topology.text,
        (*left, *_ALWAYS_UNPROVEN),
        len(cards) <= OPEN,
    )


def _card(
    device: "DeviceResult",
    binding: tuple[str, str, str],
    evidence: Sequence["DeviceEvidence"],
    at: datetime,
) -> GpuCard:
    position = device.position
    certificates = evidence[position].certificates if position < len(evidence) else ()
    strip = build_strip(
        _MEASUREMENTS[device.kind],
        matched=device.matched_indexes,
        skipped=device.skipped,
        mismatches=device.mismatches,
    )
    return GpuCard(
        title=f"{_KINDS[device.kind]} {position}",
        css="warn" if device.mismatches or not device.matched else "ok",
        state=_count(device),
        binding=binding,
        facts=_facts(device),
        strip=strip if device.matched else None,
        chain=describe_chain(certificates, at),
        rims=[
            (one.identifier, one.version, one.product, one.signer, format_minute(one.valid_until))
            for one in device.rims
        ],
        ocsp=[
            (
                one.subject,
                "ok" if one.status == "good" else "warn",
                one.status,
                format_minute(one.this_update),
                format_minute(one.next_update),
            )
            for one in device.ocsp
        ],
    )


def _facts(device: "DeviceResult") -> dict[str, str]:
    facts = {
        "Chip": f"{device.chip} ({device.architecture})",
        "Driver": device.driver_version or "",
        "VBIOS": device.vbios_version,
    }
    if device.kind == "gpu":
        facts["Mode"] = _MODES[device.mode]
    if device.nvdec0 is not None:
        facts["Video decoder 0"] = "on" if device.nvdec0 else "off"
    facts |= {"Device serial": device.device_serial, "PDI": device.pdi.hex(), "UEID": device.ueid}
    return {name: value for name, value in facts.items() if value}


def _count(device: "DeviceResult") -> str:
    if not device.matched:
        return "no measurement compared"
    differing = f", {len(device.mismatches)} differ" if device.mismatches else ""
    return f"{device.matched} measurements match{differing}"


def _unverified(position: int, device: "DeviceEvidence", at: datetime) -> GpuCard:
    # lazy: only with GPUs
    from attestkit.cli.output.gpu_text import describe_device
    from attestkit.gpu.device.report import Report
    from attestkit.gpu.device.topology import device_mode

    fields = describe_device(device)
    stated = {
        "Architecture": device.architecture,
        "Chip": fields["chip"],
        "Driver": fields["driver_version"],
        "VBIOS": fields["vbios_version"],
        "Device serial": fields["device_serial"],
        "UEID": fields["ueid"],
        "Nonce": fields["nonce"],
    }
    strip = None
    with suppress(FormatError):  # `fields` has the error
        report = Report.parse(device.report, strip_nul=True)
        strip = build_strip(len(report.measurements), compared=False)
        stated["Mode"] = _MODES[device_mode(report)]
    return GpuCard(
        title=f"Device {position}",
        css="no",
        state="unverified",
        binding=_UNBOUND,
        facts={name: value for name, value in stated.items() if value},
        strip=strip,
        chain=describe_chain(device.certificates, at),
        rims=[],
        ocsp=[],
        error=fields["error"] or "",
    )
