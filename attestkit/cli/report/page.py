"""The page of `attestkit report`: one HTML file without scripts or external resources.

Its content is untrusted. The template engine escapes every value, and the page's Content Security
Policy allows only its own style sheet.
"""

import json
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._formats.strict_json import check_depth
from attestkit._version import own_version
from attestkit.attestation import Attestation
from attestkit.cli.file_verifier import FileOutcome
from attestkit.cli.report.endorsements import (
    ChainCertificate,
    CollateralPart,
    Fact,
    describe_chain,
    describe_parts,
    format_minute,
    presented_chain,
)
from attestkit.cli.report.events import RegisterTimeline, build_timelines
from attestkit.cli.report.tcb_levels import TcbTable, tcb_table
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log.display import printable
from attestkit.quote import Quote

if TYPE_CHECKING:
    from jinja2 import Template

    from attestkit.attestation import AppInfo
    from attestkit.verifier.result import AttestationResult, Claims

__all__ = ["Page", "build_page", "render_page", "step_class"]

LONGEST_CONFIG: Final = 6000  # characters
MOST_ADVISORIES: Final = 200
_HEADLINES: Final = {0: "Accepted", 4: "Refused by policy", 5: "Unreadable"}
_TITLES: Final = {
    "identity": ("app", "App"),
    "registers": ("registers", "Registers and events"),
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
_NOT_FRESH: Final = (
    "No report data was expected, so this evidence may be a replay of older evidence."
)
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
# Steps that were not checked, without being a problem; matched in the verifier's texts.
_LEFT_OUT: Final = re.compile(
    r"left out|not (?:checked|compared|looked at|name)|names? no |there is no TCB status"
)
# Steps that were checked, with a result that needs attention.
_CAUTION: Final = re.compile(
    r"caution: |(?:OutOfDate|Revoked)|TCB status (?!UpToDate )|does not show freshness"
    r"|in debug mode|security advisories .+ are accepted"
)
_CONFIG_NOTE: Final = (
    "Configuration from the attester, not signed by itself. It is trustworthy only where a step "
    "above compares it with a register."
)


class Notice(NamedTuple):
    """A warning at the top of the page."""

    title: str
    text: str


class Badge(NamedTuple):
    """A label in the title bar."""

    text: str
    css: str


class Step(NamedTuple):
    """One verification step, checked or omitted."""

    text: str
    css: str = ""


class Page(NamedTuple):
    """Values of the template, unescaped."""

    headline: str
    file: str
    lead: str
    refused: bool
    refusal: Notice
    notices: tuple[Notice, ...]
    badges: tuple[Badge, ...]
    summary: tuple[Fact, ...]
    steps: tuple[Step, ...]
    footer: str
    identity: tuple[Fact, ...] = ()
    registers: tuple[RegisterTimeline, ...] = ()
    attributes: tuple[Fact, ...] = ()
    chain: tuple[ChainCertificate, ...] = ()
    tcb: TcbTable | None = None
    advisories: tuple[str, ...] = ()
    collateral: tuple[CollateralPart, ...] = ()
    config: str = ""
    registers_note: str = _REGISTERS_NOTE
    config_note: str = _CONFIG_NOTE

    @property
    def contents(self) -> tuple[tuple[str, str], ...]:
        """Anchors and titles of the sections that are not empty."""
        return tuple(section for name, section in _TITLES.items() if getattr(self, name))


def render_page(outcome: FileOutcome) -> str:
    """Return the report on an outcome as HTML.

    Raises:
        UsageError: If Jinja is not installed.
    """
    template = _template()
    from attestkit._jinja import style  # importable, because the template was loaded

    css = style("attestkit.cli.report", "report.css")
    css_hash = b64encode(sha256(css.encode()).digest()).decode()
    return template.render(page=build_page(outcome), css=css, css_hash=css_hash) + "\n"


@cache
def _template() -> "Template":
    try:  # lazy: slow to import
        from attestkit._jinja import templates
    except ModuleNotFoundError as error:
        raise UsageError(
            f"report: {error.name} is not installed; run pip install 'attestkit[cli]'",
            reason="missing_dependency",
        ) from error
    return templates("attestkit.cli.report").get_template("report.html.jinja")


def build_page(outcome: FileOutcome) -> Page:
    """Return the template values of the report on an outcome."""
    result, refused = outcome.result, outcome.result is None
    shown = Page(
        headline=_HEADLINES.get(outcome.code, "Rejected"),
        file=printable(outcome.path.name, 200),
        lead=_lead(outcome),
        refused=refused,
        refusal=_refusal(outcome),
        notices=_notices(outcome),
        badges=_badges(outcome),
        summary=_summary(outcome),
        steps=_steps(outcome),
        footer=_footer(outcome),
    )
    evidence = outcome.evidence
    if evidence is None:
        return shown
    claims, info = _claims(evidence, result), _app_info(evidence, result)
    return shown._replace(
        identity=_identity(info),
        registers_note=_REGISTERS_NOTE if _has_log(evidence) else _NO_LOG_NOTE,
        registers=build_timelines(evidence, claims.registers),
        attributes=tuple(Fact(name, value.hex(), mono=True) for name, value in claims.attributes),
        chain=describe_chain(
            presented_chain(evidence) if result is None else result.certificate_chain, outcome.at
        ),
        tcb=None if outcome.collateral is None else tcb_table(outcome.collateral, evidence),
        advisories=() if result is None else _advisories(result),
        collateral=()
        if outcome.collateral is None
        else describe_parts(outcome.collateral, outcome.at),
        config=_config(evidence),
    )


def _has_log(evidence: Attestation | Quote) -> bool:
    return isinstance(evidence, Attestation) and evidence.quote is not None


def _claims(evidence: Attestation | Quote, result: "AttestationResult | None") -> "Claims":
    """Return verified claims, or the unverified ones of rejected evidence."""
    from attestkit.verifier.evidence_checks import ParsedEvidence, claims

    if result is not None:
        return result.claims
    if isinstance(evidence, Quote):
        return claims(ParsedEvidence(None, evidence), b"", (), b"")
    return claims(ParsedEvidence(evidence, evidence.quote), b"", (), b"")


def _app_info(
    evidence: Attestation | Quote, result: "AttestationResult | None"
) -> "AppInfo | None":
    if result is not None or isinstance(evidence, Quote):
        return None if result is None else result.app_info
    try:
        return evidence.app_info()
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


def _refusal(outcome: FileOutcome) -> Notice:
    if outcome.error is None:
        return Notice("", "")
    word = f" ({outcome.reason})" if outcome.reason else ""
    return Notice(f"Why{word}", printable(outcome.problem, 3000))


def _notices(outcome: FileOutcome) -> tuple[Notice, ...]:
    found = []
    if outcome.result is not None and outcome.result.simulated:
        found.append(Notice("Simulated evidence", _SIMULATED))
    if outcome.result is not None and not outcome.fresh:
        text = _BOUND_TO_KEY if outcome.bound_to_key else _NOT_FRESH
        found.append(Notice("Freshness was not checked", text))
    if outcome.own_instant:
        found.append(Notice("Verified at the time of the bundle", _OWN_INSTANT))
    return tuple(found)


def _badges(outcome: FileOutcome) -> tuple[Badge, ...]:
    result = outcome.result
    if result is None:
        return (Badge(outcome.reason, "no"),) if outcome.reason else ()
    found = [Badge(result.claims.platform, "dim")]
    if result.tcb_status is not None:
        css = "ok" if result.tcb_status == "UpToDate" else "warn"
        found.append(Badge(result.tcb_status.value, css))
    if result.simulated:
        found.append(Badge("simulated", "warn"))
    return tuple(found)


def _summary(outcome: FileOutcome) -> tuple[Fact, ...]:
    result, raw = outcome.result, b"" if outcome.content is None else outcome.content.raw
    rows = []
    if result is not None:
        rows.append(Fact("Platform", result.claims.platform))
        if result.tcb_status is not None:
            rows.append(Fact("TCB status", result.tcb_status.value))
        if result.tcb.date is not None:
            rows.append(Fact("TCB level of", f"{result.tcb.date:%Y-%m-%d}"))
        if result.tcb.fmspc:
            rows.append(Fact("FMSPC", result.tcb.fmspc.hex(), mono=True))
        image = printable(outcome.os_image, 1000)
        rows.append(Fact("OS image", image, mono=bool(result.claims.os_image_hash)))
        rows.append(Fact("Report data", result.claims.report_data.hex(), mono=True))
    rows.append(Fact("Policy", printable(outcome.policy, 200)))
    if outcome.own_collateral:
        rows.append(Fact("Collateral", "from the bundle"))
    own = ", the time of the bundle" if outcome.own_instant else ""
    rows.append(Fact("Verified at", f"{format_minute(outcome.at)} UTC{own}"))
    if raw:
        rows.append(Fact("File", f"{len(raw)} bytes"))
        rows.append(Fact("SHA-256", sha256(raw).hexdigest(), mono=True))
    return tuple(rows)


def _steps(outcome: FileOutcome) -> tuple[Step, ...]:
    return tuple(Step(printable(text, 1000), step_class(text)) for text in outcome.steps)


def step_class(step: str) -> str:
    """Return the CSS class of a step; empty if it was checked and needs no attention."""
    if _LEFT_OUT.search(step):
        return "left-out"
    return "caution" if _CAUTION.search(step) else ""


def _identity(info: "AppInfo | None") -> tuple[Fact, ...]:
    if info is None:
        return ()
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
    rows = [
        Fact(title, str(fields[name] or "none"), mono=bool(fields[name]))
        for name, title in names.items()
    ]
    provider = info.key_provider_info.decode(errors="replace")
    rows.append(Fact("Key provider", printable(provider, 1000) or "none", mono=bool(provider)))
    return tuple(rows)


def _advisories(result: "AttestationResult") -> tuple[str, ...]:
    return tuple(printable(name, 100) for name in result.advisory_ids[:MOST_ADVISORIES])


def _config(evidence: Attestation | Quote) -> str:
    """Return the configuration, indented if it is JSON, and truncated."""
    if isinstance(evidence, Quote) or not evidence.config:
        return ""
    text = evidence.config
    try:
        check_depth(text)
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass  # not JSON
    lines = printable("\0".join(text.splitlines()), LONGEST_CONFIG)
    return lines.replace("\\u0000", "\n")


def _footer(outcome: FileOutcome) -> str:
    del outcome
    return f"Made by attestkit {own_version()}. The page has no scripts and loads no resources."
