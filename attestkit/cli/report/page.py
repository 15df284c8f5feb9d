"""The page of `attestkit report`: one HTML file without scripts or external resources.

Its content is untrusted. The template engine escapes every value, and the page's Content Security
Policy allows only its own style sheet.
"""

import json
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import needs_extra
from attestkit._formats.strict_json import check_depth
from attestkit._package import own_version
from attestkit._sanitize import printable
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import is_of_dstack
from attestkit.cli.file_outcome import FileOutcome
from attestkit.cli.report.endorsements import (
    describe_chain,
    describe_parts,
    format_minute,
    presented_chain,
    tcb_table,
)
from attestkit.cli.report.gpu_section import build_gpu_section
from attestkit.cli.report.registers import build_timelines, build_tpm_section
from attestkit.errors import AttestKitError
from attestkit.event_log.event import event_name, preview
from attestkit.event_log.event_types import NO_ACTION
from attestkit.quote import Quote

if TYPE_CHECKING:
    from jinja2 import Template

    from attestkit.attestation import AppInfo
    from attestkit.verifier.claims import Claims
    from attestkit.verifier.result import AttestationResult

LONGEST_CONFIG: Final = 6000  # characters
LONGEST: Final = 6100  # characters of other values
MOST_ADVISORIES: Final = 200
_HEADLINES: Final = {0: "Accepted", 4: "Refused by policy", 5: "Unreadable"}
_TITLES: Final = {
    "identity": ("app", "App"),
    "registers": ("registers", "Registers and events"),
    "vtpm": ("tpm", "TPM"),
    "gpus": ("gpus", "GPUs"),
    "attributes": ("attributes", "Attributes"),
    "chain": ("chain", "Certificate chain"),
    "tcb": ("tcb", "TCB levels"),
    "advisories": ("advisories", "Advisories"),
    "collateral": ("collateral", "Collateral"),
    "config": ("config", "Configuration"),
}
_SIMULATED: Final = (
    "The certificate chain ends at a given trust anchor that is not the vendor's. The evidence "
    "proves nothing about hardware."
)
_NOT_FRESH: Final = "No nonce was expected, so this evidence may be a replay of older evidence."
_BOUND_TO_KEY: Final = (
    "The evidence is bound to the certificate's key. Possession of the key, which a TLS handshake "
    "proves, and the age of the evidence were not checked."
)
_OWN_INSTANT: Final = (
    "The evidence was verified at the time that the bundle names, which its creator chose. Later "
    "revocation or expiry does not show; omit --at to verify it now."
)
_REGISTERS_NOTE: Final = (
    "A register authenticates the digests of its events, in order. The digest of a runtime event "
    "covers its name and payload; other fields of firmware events are not authenticated."
)
_NO_LOG_NOTE: Final = (
    "Measurements of the platform, signed with the vendor's key. There is no event log to replay."
)
_STEP_CLASSES: Final = {"passed": "", "skipped": "left-out", "caution": "caution"}


def render_page(outcome: FileOutcome) -> str:
    """Return the report on the verification of one file as an HTML page.

    Raises:
        UsageError: If Jinja is not installed.
    """
    template = _template()
    # Importable, because the template was loaded.
    from attestkit._formats.html_templates import style

    css = style("attestkit.cli.report", "report.css")
    css_hash = b64encode(sha256(css.encode()).digest()).decode()
    evidence = outcome.evidence
    try:
        sections = {} if evidence is None else _sections(outcome, evidence)
    except AttestKitError:
        if outcome.result is not None:
            raise
        sections = {}  # the verification names the part that cannot be read
    page = {
        "headline": _HEADLINES.get(outcome.code, "Rejected"),
        "file": outcome.path.name,
        "lead": _lead(outcome),
        "refused": outcome.result is None,
        "refusal": "" if outcome.error is None else outcome.problem,
        "reason": outcome.reason,
        "notices": _notices(outcome),
        "badges": _badges(outcome),
        "summary": _summary(outcome),
        "steps": [(str(step), _STEP_CLASSES[step.outcome]) for step in outcome.steps],
        "version": own_version(),
        **{name: sections.get(name) for name in _TITLES},
        "registers_note": _REGISTERS_NOTE if _has_log(evidence) else _NO_LOG_NOTE,
        "contents": [title for name, title in _TITLES.items() if sections.get(name)],
    }
    return template.render(page=page, css=css, css_hash=css_hash) + "\n"


@cache
def _template() -> "Template":
    with needs_extra("report", "cli"):
        from attestkit._formats.html_templates import templates  # lazy: slow to import
    environment = templates("attestkit.cli.report")
    environment.finalize = _printable
    environment.tests["hex"] = re.compile("[0-9a-f]{12,}").fullmatch
    environment.globals.update(event_name=event_name, preview=preview, NO_ACTION=NO_ACTION)
    return environment.get_template("report.html.jinja")


def _printable(value: object) -> object:
    """Escape control characters in text of the template, and truncate it; Markup is unchanged."""
    own = hasattr(value, "__html__")
    return printable(value, LONGEST) if isinstance(value, str) and not own else value


def _sections(outcome: FileOutcome, evidence: Attestation | Quote) -> dict[str, object]:
    """Return the content of the sections by name; None or empty for those without content."""
    result, collateral = outcome.result, outcome.collateral
    claims = _claims(evidence, result)
    of_tpm = () if claims.vtpm is None else claims.vtpm.registers()
    registers = [register for register in claims.registers if register not in of_tpm]
    chain = presented_chain(evidence) if result is None else result.certificate_chain
    return {
        "identity": _identity(_app_info(evidence, result)),
        "registers": build_timelines(evidence, registers),
        "vtpm": build_tpm_section(evidence, result),
        "gpus": build_gpu_section(outcome),
        "attributes": {name: value.hex() for name, value in claims.attributes},
        "chain": describe_chain(chain, outcome.at),
        "tcb": None if collateral is None else tcb_table(collateral, evidence),
        "advisories": () if result is None else result.advisory_ids[:MOST_ADVISORIES],
        "collateral": None if collateral is None else describe_parts(collateral, outcome.at),
        "config": _config(evidence),
    }


def _has_log(evidence: Attestation | Quote | None) -> bool:
    if not isinstance(evidence, Attestation) or evidence.quote is None:
        return False
    return is_of_dstack(evidence.evidence.platform)


def _claims(evidence: Attestation | Quote, result: "AttestationResult | None") -> "Claims":
    """Return the claims of a verified result; without it (None), the evidence's unverified ones."""
    from attestkit.verifier.evidence.checks import ParsedEvidence
    from attestkit.verifier.evidence.platform_claims import collect_claims
    from attestkit.verifier.os_image import VerifiedImage

    if result is not None:
        return result.claims
    if isinstance(evidence, Quote):
        return collect_claims(ParsedEvidence(None, evidence), None, (), VerifiedImage())
    return collect_claims(ParsedEvidence(evidence, evidence.quote), None, (), VerifiedImage())


def _app_info(
    evidence: Attestation | Quote, result: "AttestationResult | None"
) -> "AppInfo | None":
    if result is not None or isinstance(evidence, Quote):
        return None if result is None else result.app_info
    try:
        return evidence.app_info
    except AttestKitError:  # inconsistent or unreadable
        return None


def _lead(outcome: FileOutcome) -> str:
    kind = "" if outcome.content is None else f" ({outcome.content.kind})"
    if outcome.result is not None:
        return (
            f"The file{kind} passed every verification step at {format_minute(outcome.at)} UTC. "
            "The steps below list what was verified."
        )
    return (
        f"The file{kind} was not accepted at {format_minute(outcome.at)} UTC. The content below "
        "is unverified and must not be relied on."
    )


def _notices(outcome: FileOutcome) -> list[tuple[str, str]]:
    found = []
    if outcome.result is not None and outcome.result.simulated:
        found.append(("Simulated evidence", _SIMULATED))
    if outcome.result is not None and not outcome.fresh:
        text = _BOUND_TO_KEY if outcome.bound_to_key else _NOT_FRESH
        found.append(("Freshness was not checked", text))
    if outcome.own_instant:
        found.append(("Verified at the time of the bundle", _OWN_INSTANT))
    return found


def _badges(outcome: FileOutcome) -> list[tuple[str, str]]:
    """Return the labels of the title bar, each with its CSS class."""
    result = outcome.result
    if result is None:
        return [(outcome.reason, "no")] if outcome.reason else []
    found = [(result.claims.platform, "dim")]
    if result.tcb.status is not None:
        css = "ok" if result.tcb.status == "UpToDate" else "warn"
        found.append((result.tcb.status.value, css))
    if result.simulated:
        found.append(("simulated", "warn"))
    return found


def _summary(outcome: FileOutcome) -> dict[str, str]:
    result, raw = outcome.result, b"" if outcome.content is None else outcome.content.raw
    rows: dict[str, str] = {}
    if result is not None:
        rows["Platform"] = result.claims.platform
        if result.tcb.status is not None:
            rows["TCB status"] = result.tcb.status.value
        if result.tcb.date is not None:
            rows["TCB level of"] = f"{result.tcb.date:%Y-%m-%d}"
        if result.tcb.fmspc:
            rows["FMSPC"] = result.tcb.fmspc.hex()
        rows["OS image"] = outcome.os_image  # its hash, or a reason of verifier/os_image.py
        rows["Report data"] = result.claims.report_data.hex()
    rows["Policy"] = outcome.policy
    if outcome.own_collateral:
        rows["Collateral"] = "from the bundle"
    own = ", the time of the bundle" if outcome.own_instant else ""
    rows["Verified at"] = f"{format_minute(outcome.at)} UTC{own}"
    if raw:
        rows |= {"File": f"{len(raw)} bytes", "SHA-256": sha256(raw).hexdigest()}
    return rows


def _identity(info: "AppInfo | None") -> dict[str, str]:
    if info is None:
        return {}
    names = {
        "app_id": "App id",
        "compose_hash": "Compose hash",
        "instance_id": "Instance id",
        "device_id": "Device id",
        "os_image_hash": "OS image hash",
        "mr_system": "MR system",
        "mr_aggregated": "MR aggregated",
    }
    fields = info.to_dict()
    provider = info.key_provider_info.decode(errors="replace")
    rows = {title: str(fields[name] or "none") for name, title in names.items()}
    return {**rows, "Key provider": provider or "none"}


def _config(evidence: Attestation | Quote) -> list[str]:
    """Return the lines of the configuration in evidence, indented if it is JSON, and truncated."""
    if isinstance(evidence, Quote) or not evidence.config:
        return []
    text = evidence.config
    try:
        check_depth(text)
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass  # not JSON
    if len(text) > LONGEST_CONFIG:
        text = f"{text[:LONGEST_CONFIG]} ... {len(text)} characters"
    return text.splitlines()
