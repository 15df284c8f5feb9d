"""The ways of the data through attestkit: six pictures, each step with the file that does it.

A step names a function or class; drawing fails if it does not exist. The test of the pictures also
checks that each file is reached by imports from the first one, except where the step is chosen at
run time (a dashed arrow).
"""

import importlib
from pkgutil import resolve_name
from typing import Final, NamedTuple

from docs.pictures.canvas import APP, MAKER, OURS, PLAIN, SIGNED, SOFT, Box, Canvas, Colours

__all__ = ["DATA_PATHS", "DataPath", "Step", "draw_data_path"]

_TOP: Final = 74
_STEP: Final = 62  # height of a box
_GAP: Final = 42


class Step(NamedTuple):
    """A step, the object that does it, and what it hands to the next."""

    text: str
    code: str = ""  # "attestkit.module:name" below attestkit; empty for another program
    data: str = ""  # what the next step receives
    beside: str = ""  # what comes in from beside
    colours: Colours = PLAIN
    at_run_time: bool = False  # chosen by name, or reached over a socket: no import leads here


class DataPath(NamedTuple):
    """A picture."""

    title: str
    note: str
    steps: tuple[Step, ...]


DATA_PATHS: Final[dict[str, DataPath]] = {
    "path-attest.svg": DataPath(
        "Attest",
        "in the guest: a nonce becomes evidence",
        (
            Step(
                "the caller's nonce",
                "attestkit.attester:Attester.attest",
                "8 to 64 bytes",
                colours=APP,
            ),
            Step(
                "hashed with a tag of its own",
                "attestkit.report_data:ReportData.for_nonce",
                "64 bytes of report data",
            ),
            Step(
                "one request at a time, with the log",
                "attestkit.attester.tdx_source:TdSource.quote_and_log",
                "the same 64 bytes",
                "runtime events,\nunder the lock of\nthe journal",
                OURS,
            ),
            Step(
                "the kernel's interface",
                "attestkit.backends.configfs_tsm:ConfigfsTsm",
                "quote, signed by the CPU",
                "or another backend",
                MAKER,
                at_run_time=True,
            ),
            Step(
                "log and quote are compared",
                "attestkit.event_log:EventLog.check",
                "both, or ReplayError",
                colours=SIGNED,
            ),
            Step(
                "one piece of evidence",
                "attestkit.attestation:Attestation.to_bytes",
                beside="CBOR, msgpack,\nSCALE, or a CMW",
                colours=OURS,
            ),
        ),
    ),
    "path-verify.svg": DataPath(
        "Verify",
        "anywhere: evidence becomes a result, or an error with its reason",
        (
            Step("untrusted bytes", "attestkit.verifier:Verifier.verify", "evidence", colours=APP),
            Step(
                "parsed, with limits",
                "attestkit.verifier.evidence.formats:parse_evidence",
                "quote, log, documents",
            ),
            Step(
                "authenticated",
                "attestkit.verifier.authenticators:Authenticators.authenticate",
                "what the vendor signed",
                "roots, collateral\nof the vendor",
                MAKER,
            ),
            Step(
                "the log replayed",
                "attestkit.verifier.evidence.checks:replay_event_log",
                "events that explain registers",
                colours=SIGNED,
            ),
            Step(
                "bound to the expected nonce",
                "attestkit.verifier.evidence.checks:check_report_data",
                "fresh evidence",
                "the relying\nparty's nonce",
                SIGNED,
            ),
            Step(
                "appraised",
                "attestkit.verifier.policy.appraisal_policy:AppraisalPolicy",
                "each rule, as a step",
                "the policy: app,\nimage, TCB",
                SIGNED,
            ),
            Step(
                "result",
                "attestkit.verifier:AttestationResult",
                colours=OURS,
                beside="also signed,\nas an EAR",
            ),
        ),
    ),
    "path-connect.svg": DataPath(
        "Connect",
        "a client proves a server on the connection that carries the request",
        (
            Step("your HTTP client", "attestkit.client:connect", "request", colours=APP),
            Step(
                "held back until the proof",
                "attestkit.client.wire.httpx_transport:BlockingTransport",
                "key of the TLS session",
                "or requests, aiohttp,\nwebsockets",
            ),
            Step(
                "one proof at a time",
                "attestkit.client.proofs.server_verifier:ServerVerifier",
                "nonce, on this connection",
                colours=OURS,
            ),
            Step(
                "the service's document",
                "attestkit.client.services.service:Service",
                "evidence, and what it binds",
                "the server: its own\nmiddleware, NEAR AI,\nTinfoil, Chutes …",
                MAKER,
            ),
            Step(
                "verified and compared",
                "attestkit.client.proofs.appraisal:Appraiser.appraise",
                "Proof: key, machine, program",
                "policy, Verifier",
                SIGNED,
            ),
            Step(
                "the request, to this key only",
                "attestkit.client.wire.exchange:WireRecord",
                "answer",
                "sealed where the\nservice has a key",
                OURS,
            ),
            Step(
                "signed answers are checked",
                "attestkit.client.proofs.signed_answers:SignedAnswers",
                colours=SIGNED,
            ),
        ),
    ),
    "path-serve.svg": DataPath(
        "Serve",
        "a request of a container becomes an answer of the guest agent",
        (
            Step(
                "a socket in the guest",
                "attestkit.serve.app_factory:build_server",
                "bytes",
                colours=APP,
            ),
            Step(
                "a bounded request",
                "attestkit.serve.http.protocol:HttpProtocol",
                "request target, body",
                "limits of size,\ntime and number",
            ),
            Step(
                "a message of a method",
                "attestkit.serve.rpc.dispatcher:RpcApp",
                "JSON, protobuf or a query",
            ),
            Step(
                "the method",
                "attestkit.serve.services.guest_v1:version",
                "GetKey, Attest, Info …",
                colours=OURS,
            ),
            Step(
                "the queue of the device",
                "attestkit.serve.job_queue:JobQueue",
                "one call at a time",
                "the simulator does\nnot need it",
            ),
            Step(
                "the attester",
                "attestkit.attester:Attester",
                "quote, key, event",
                "see Attest",
                OURS,
            ),
            Step(
                "the answer",
                "attestkit.serve.rpc.response_template:ResponseTemplate",
                beside="errors become\nstatuses",
            ),
        ),
    ),
    "path-measure.svg": DataPath(
        "Measure",
        "before a boot: files become the registers of their guests",
        (
            Step(
                "an image, checked by its list",
                "attestkit.measure.dstack_guest:dstack_image",
                "firmware, kernel, initrd",
                colours=APP,
            ),
            Step(
                "the machine",
                "attestkit.measure.machine_shape:MachineShape",
                "what the firmware will see",
                "vCPUs, memory,\nQEMU's version",
            ),
            Step(
                "the first pages",
                "attestkit.measure.firmware.tdvf:compute_mrtds",
                "MRTD",
                colours=MAKER,
            ),
            Step(
                "tables and variables",
                "attestkit.measure.rtmr0.rtmr0_events:expected_rtmr0",
                "RTMR0",
                "ACPI tables, from\nQEMU or evidence",
            ),
            Step(
                "kernel and initrd",
                "attestkit.measure.kernel.linux_kernel:direct_boot_events",
                "RTMR1, RTMR2",
            ),
            Step(
                "expected measurements",
                "attestkit.measure.expected:ExpectedMeasurements",
                "values, basis, not_proven",
                colours=OURS,
            ),
            Step(
                "a policy, or a diagnosis",
                "attestkit.measure.diagnosis.evidence_comparison:explain",
                beside="the first event\nthat differs",
                colours=SIGNED,
                at_run_time=True,
            ),
        ),
    ),
    "path-kms.svg": DataPath(
        "Boot with a KMS",
        "a guest proves itself, and receives the keys of its app",
        (
            Step(
                "the measured app",
                "attestkit.kms.boot:boot_with_kms",
                "app id, compose hash",
                "app-compose.json,\nmeasured into RTMR3",
                APP,
            ),
            Step(
                "the pinned KMS",
                "attestkit.kms.client:KmsClient",
                "its TLS chain, to the pin",
                "roots, or the app's\nkey_provider_id",
                SIGNED,
            ),
            Step(
                "a certificate with evidence",
                "attestkit.ra_tls.issuance:Issued",
                "quote over the TLS key",
                colours=OURS,
            ),
            Step(
                "the KMS verifies the guest",
                "attestkit.serve.kms_service.release_engine:ReleaseEngine",
                "app, image, platform",
                "policy and\nauthorization",
                MAKER,
                at_run_time=True,
            ),
            Step(
                "keys of this app",
                "attestkit.kms.release.roots:release_app_keys",
                "disk, environment, k256",
                colours=MAKER,
                at_run_time=True,
            ),
            Step(
                "checked: lengths, signature, root",
                "attestkit.kms.answers:check_received_keys",
                "event key-provider",
                colours=SIGNED,
            ),
            Step(
                "AppKeys",
                "attestkit.keys:AppKeys",
                colours=OURS,
                beside="derive, sign,\nopen environment",
            ),
        ),
    ),
}
"""Each picture's file, and its steps."""


def step_module(step: Step) -> str:
    """Return the dotted module of a step."""
    return step.code.partition(":")[0]


def draw_data_path(path: DataPath) -> str:
    """Draw a picture.

    Raises:
        ImportError, AttributeError: If a step names an object that does not exist.
    """
    steps = path.steps
    height = _TOP + len(steps) * (_STEP + _GAP) - _GAP + 24
    shown = "; ".join(f"{step.text} ({step.code})" for step in steps)
    canvas = Canvas(height, f"{path.title}: {path.note}", f"From above: {shown}.")
    canvas.heading(34, path.title)
    canvas.note((24, 56), path.note, size=15)
    above: Box | None = None
    for number, step in enumerate(steps):
        box = _draw_step(canvas, step, _TOP + number * (_STEP + _GAP))
        if above is not None:
            x = above.bottom(0.2)[0]
            canvas.arrow((x, above.bottom()[1]), (x, box.y), dashed=step.at_run_time)
            lines = steps[number - 1].data.split("\n")
            middle = (above.bottom()[1] + box.y) / 2 + 5 - 9 * (len(lines) - 1)
            for row, line in enumerate(lines):
                canvas.note((x + 14, middle + 17 * row), line)
        above = box
    return canvas.svg()


def _draw_step(canvas: Canvas, step: Step, top: float) -> Box:
    resolve_name(step.code)
    box = canvas.box(Box(24, top, 340, _STEP), f"{step.text}\n`{_file(step)}`", step.colours)
    lines = step.beside.split("\n") if step.beside else []
    if lines:
        canvas.arrow((388, box.right()[1]), box.right(), colour=SOFT)
    for row, line in enumerate(lines):
        canvas.note((394, box.right()[1] + 5 - 9 * (len(lines) - 1) + 18 * row), line)
    return box


def _file(step: Step) -> str:
    """Return the path of the step's module, below attestkit."""
    file = importlib.import_module(step_module(step)).__file__ or ""
    return file.rpartition("/attestkit/")[2].replace("/__init__.py", "/")
