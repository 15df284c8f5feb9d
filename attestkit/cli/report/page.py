"""The page of `attestkit report`: one HTML file without scripts that loads nothing.

Everything in it comes from a stranger's file. The template library escapes every value; its policy
for the browser allows the page's own style and nothing else.
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
from attestkit.cli.file_verifier import Outcome
from attestkit.cli.report.endorsements import Link, Part, Row, chain, day, parts, presented_chain
from attestkit.cli.report.events import Register, timelines
from attestkit.cli.report.tcb_levels import TcbTable, tcb_table
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log.display import printable
from attestkit.quote import Quote

if TYPE_CHECKING:
    from jinja2 import Template

    from attestkit.attestation import AppInfo
    from attestkit.verifier.result import AttestationResult, Claims

__all__ = ["Page", "mark", "page", "page_of"]

LONGEST_CONFIG: Final = 6000  # characters
MOST_ADVISORIES: Final = 200
_HEADLINES: Final = {0: "Accepted", 4: "Refused by policy", 5: "Unreadable"}
_TITLES: Final = {
    "identity": ("app", "The app"),
    "registers": ("registers", "Registers and events"),
    "attributes": ("attributes", "Attributes"),
    "chain": ("chain", "Certificate chain"),
    "tcb": ("tcb", "TCB levels"),
    "advisories": ("advisories", "Advisories"),
    "collateral": ("collateral", "Collateral"),
    "config": ("config", "Configuration"),
}
_SIMULATED: Final = (
    "Its certificates lead to a root that was handed in and is not the platform's maker's. Nothing "
    "here says anything about hardware."
)
_NOT_FRESH: Final = (
    "No report data was asked for, so nothing shows that this evidence was made for this request: "
    "it may be an old one, repeated."
)
_OF_KEY: Final = (
    "The evidence is about the certificate's key. Nothing shows that who sent the certificate has "
    "that key, as a TLS handshake would, nor when the evidence was made."
)
_OWN_INSTANT: Final = (
    "It was judged at the instant that the bundle itself names, which whoever made it chose. What "
    "was revoked or expired since then does not show here; without --at it is judged now."
)
_REGISTERS_NOTE: Final = (
    "A register vouches for the digests of its events, in their order. Of runtime events the "
    "digest covers name and payload; what firmware wrote beside its digests is its own account."
)
_NO_LOG_NOTE: Final = (
    "What the platform measured, as its maker's key signed it. Nothing that comes with it explains "
    "how the values came about."
)
# In sentences of the verifier's: something that was not checked, and is no fault either.
_LEFT_OUT: Final = re.compile(
    r"left out|not (?:checked|compared|looked at|name)|names? no |there is no TCB status"
)
# And what was checked, and is not as it should be, or proves nothing.
_CAUTION: Final = re.compile(
    r"caution: |(?:OutOfDate|Revoked)|TCB status (?!UpToDate )|shows nothing|in debug mode"
    r"|security advisories .+ are accepted"
)
_CONFIG_NOTE: Final = (
    "What the attester says of its machine. Nothing signs it by itself: it counts where the steps "
    "above hold a register to it."
)


class Band(NamedTuple):
    """Something nobody should overlook."""

    title: str
    text: str


class Pill(NamedTuple):
    """A word in the bar."""

    text: str
    css: str


class Step(NamedTuple):
    """One thing that was checked, or left out."""

    text: str
    css: str = ""


class Page(NamedTuple):
    """What the template shows; every text as it is, unescaped."""

    headline: str
    file: str
    lead: str
    refused: bool
    refusal: Band
    bands: tuple[Band, ...]
    pills: tuple[Pill, ...]
    summary: tuple[Row, ...]
    steps: tuple[Step, ...]
    footer: str
    identity: tuple[Row, ...] = ()
    registers: tuple[Register, ...] = ()
    attributes: tuple[Row, ...] = ()
    chain: tuple[Link, ...] = ()
    tcb: TcbTable | None = None
    advisories: tuple[str, ...] = ()
    collateral: tuple[Part, ...] = ()
    config: str = ""
    registers_note: str = _REGISTERS_NOTE
    config_note: str = _CONFIG_NOTE

    @property
    def contents(self) -> tuple[tuple[str, str], ...]:
        """The sections that there are: anchor and title."""
        return tuple(entry for name, entry in _TITLES.items() if getattr(self, name))


def page(outcome: Outcome) -> str:
    """Return the report on an outcome as HTML.

    Raises:
        UsageError: The template library is not installed.
    """
    template = _template()
    from attestkit._jinja import style  # found, since the template was

    css = style("attestkit.cli.report", "report.css")
    css_hash = b64encode(sha256(css.encode()).digest()).decode()
    return template.render(page=page_of(outcome), css=css, css_hash=css_hash) + "\n"


@cache
def _template() -> "Template":
    try:  # late: slow to import
        from attestkit._jinja import templates
    except ModuleNotFoundError as error:
        raise UsageError(f"a report needs {error.name}: pip install 'attestkit[cli]'") from error
    return templates("attestkit.cli.report").get_template("report.html.jinja")


def page_of(outcome: Outcome) -> Page:
    """Return what the report on an outcome shows."""
    result, refused = outcome.result, outcome.result is None
    shown = Page(
        headline=_HEADLINES.get(outcome.code, "Rejected"),
        file=printable(outcome.path.name, 200),
        lead=_lead(outcome),
        refused=refused,
        refusal=_refusal(outcome),
        bands=_bands(outcome),
        pills=_pills(outcome),
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
        registers=timelines(evidence, claims.registers),
        attributes=tuple(Row(name, value.hex(), mono=True) for name, value in claims.attributes),
        chain=chain(
            presented_chain(evidence) if result is None else result.certificate_chain, outcome.at
        ),
        tcb=None if outcome.collateral is None else tcb_table(outcome.collateral, evidence),
        advisories=() if result is None else _advisories(result),
        collateral=() if outcome.collateral is None else parts(outcome.collateral, outcome.at),
        config=_config(evidence),
    )


def _has_log(evidence: Attestation | Quote) -> bool:
    return isinstance(evidence, Attestation) and evidence.quote is not None


def _claims(evidence: Attestation | Quote, result: "AttestationResult | None") -> "Claims":
    """Return the fields of evidence: believed ones, or what a refused one says."""
    from attestkit.verifier.evidence_checks import Parcel, claims

    if result is not None:
        return result.claims
    if isinstance(evidence, Quote):
        return claims(Parcel(None, evidence), b"", (), b"")
    return claims(Parcel(evidence, evidence.quote), b"", (), b"")


def _app_info(
    evidence: Attestation | Quote, result: "AttestationResult | None"
) -> "AppInfo | None":
    if result is not None or isinstance(evidence, Quote):
        return None if result is None else result.app_info
    try:
        return evidence.app_info()
    except AttestKitError:  # its parts disagree, or cannot be read
        return None


def _lead(outcome: Outcome) -> str:
    kind = "" if outcome.found is None else f" ({outcome.found.kind})"
    if outcome.result is not None:
        return (
            f"The file{kind} passed every step at {day(outcome.at)} UTC: what follows is "
            "vouched for as far as the steps say."
        )
    return (
        f"The file{kind} was not accepted at {day(outcome.at)} UTC. What follows was read from it "
        "and is unverified: nothing here may be relied on."
    )


def _refusal(outcome: Outcome) -> Band:
    if outcome.error is None:
        return Band("", "")
    word = f" ({outcome.reason})" if outcome.reason else ""
    return Band(f"Why{word}", printable(outcome.problem, 3000))


def _bands(outcome: Outcome) -> tuple[Band, ...]:
    found = []
    if outcome.result is not None and outcome.result.simulated:
        found.append(Band("Simulated evidence", _SIMULATED))
    if outcome.result is not None and not outcome.fresh:
        why = _OF_KEY if outcome.of_key else _NOT_FRESH
        found.append(Band("Freshness was not checked", why))
    if outcome.own_instant:
        found.append(Band("The instant is the bundle's own", _OWN_INSTANT))
    return tuple(found)


def _pills(outcome: Outcome) -> tuple[Pill, ...]:
    result = outcome.result
    if result is None:
        return (Pill(outcome.reason, "no"),) if outcome.reason else ()
    found = [Pill(result.claims.platform, "dim")]
    if result.tcb_status is not None:
        css = "ok" if result.tcb_status == "UpToDate" else "warn"
        found.append(Pill(result.tcb_status.value, css))
    if result.simulated:
        found.append(Pill("simulated", "warn"))
    return tuple(found)


def _summary(outcome: Outcome) -> tuple[Row, ...]:
    result, raw = outcome.result, b"" if outcome.found is None else outcome.found.raw
    rows = []
    if result is not None:
        rows.append(Row("Platform", result.claims.platform))
        if result.tcb_status is not None:
            rows.append(Row("TCB status", result.tcb_status.value))
        if result.tcb.date is not None:
            rows.append(Row("TCB level of", f"{result.tcb.date:%Y-%m-%d}"))
        if result.tcb.fmspc:
            rows.append(Row("FMSPC", result.tcb.fmspc.hex(), mono=True))
        image = printable(outcome.os_image, 1000)
        rows.append(Row("OS image", image, mono=bool(result.claims.os_image_hash)))
        rows.append(Row("Report data", result.claims.report_data.hex(), mono=True))
    rows.append(Row("Policy", printable(outcome.policy, 200)))
    if outcome.own_collateral:
        rows.append(Row("Collateral", "the bundle's own"))
    own = ", the bundle's word" if outcome.own_instant else ""
    rows.append(Row("Instant", f"{day(outcome.at)} UTC{own}"))
    if raw:
        rows.append(Row("File", f"{len(raw)} bytes"))
        rows.append(Row("SHA-256", sha256(raw).hexdigest(), mono=True))
    return tuple(rows)


def _steps(outcome: Outcome) -> tuple[Step, ...]:
    return tuple(Step(printable(text, 1000), mark(text)) for text in outcome.steps)


def mark(step: str) -> str:
    """Return the class of a step: only what was checked and is in order has none."""
    if _LEFT_OUT.search(step):
        return "left-out"
    return "caution" if _CAUTION.search(step) else ""


def _identity(info: "AppInfo | None") -> tuple[Row, ...]:
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
        Row(title, str(fields[name] or "none"), mono=bool(fields[name]))
        for name, title in names.items()
    ]
    provider = info.key_provider_info.decode(errors="replace")
    rows.append(Row("Key provider", printable(provider, 1000) or "none", mono=bool(provider)))
    return tuple(rows)


def _advisories(result: "AttestationResult") -> tuple[str, ...]:
    return tuple(printable(name, 100) for name in result.advisory_ids[:MOST_ADVISORIES])


def _config(evidence: Attestation | Quote) -> str:
    """Return the configuration, indented if it is JSON, cut where it is long."""
    if isinstance(evidence, Quote) or not evidence.config:
        return ""
    text = evidence.config
    try:
        check_depth(text)
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass  # shown as it is
    lines = printable("\0".join(text.splitlines()), LONGEST_CONFIG)
    return lines.replace("\\u0000", "\n")


def _footer(outcome: Outcome) -> str:
    del outcome
    return f"Made by attestkit {own_version()}. The page loads nothing and runs nothing."
