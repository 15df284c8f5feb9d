"""Dashboard at `/`: the app's identity, measurements and containers, and its static files.

All values are untrusted text: the template engine escapes them, and the content security policy
lets a browser load only the server's own files.

A log may have 65,536 events, and an event ten megabytes. The page shows the first and the last
events with the start of their payloads; `/prpc/Worker.Info` returns the whole log.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from attestkit._sanitize import printable
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.backends.base import GuestAgent
from attestkit.errors import AttestKitError
from attestkit.event_log import Event
from attestkit.event_log.event import event_name, preview
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from attestkit.serve.docker.engine import Container
from attestkit.serve.http.views import Header, ViewRequest, ViewResponse
from attestkit.serve.lazy_import import load
from attestkit.serve.machine_info import Figures, has_nvidia_gpu, read_figures
from attestkit.serve.services.backend_errors import backend_error
from attestkit.serve.services.context import AppIdentity, AppMeasurements, Guest

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

ASSETS: Final = {
    "dashboard.css": b"text/css; charset=utf-8",
    "dashboard.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
"""Names of the static files, and their content types."""


class Asset(NamedTuple):
    """A static file; its URL contains `digest`, so that browsers may cache it forever."""

    content: bytes
    digest: str


@cache
def get_asset(name: str) -> Asset:
    """Return the static file `name`, a key of ASSETS."""
    from hashlib import sha256
    from importlib.resources import files

    content = (files("attestkit.serve.pages") / "templates" / name).read_bytes()
    return Asset(content, sha256(content).hexdigest()[:16])


def asset_path(name: str) -> str:
    """Return the path of the static file `name`, with its digest, so that it may be cached."""
    return f"/assets/{name}?v={get_asset(name).digest}"


FIRST: Final = 100  # events shown at the start of a span
LAST: Final = 100  # and at its end
LONGEST_TEXT: Final = 128 * 1024  # characters of tcb_info


class EventSpan(NamedTuple):
    """A part of the log: all of its events, or the first and the last ones with a gap."""

    total: int
    entries: tuple[tuple[int, Event], ...]  # with the number in the whole log, from 0
    gap_after: int = 0  # entries before the gap; 0 without a gap
    gap: int = 0  # events in it


class Measurements(NamedTuple):
    """Measurements to show; empty if the app hides them."""

    registers: Mapping[str, bytes] = MappingProxyType({})
    boot: EventSpan = EventSpan(0, ())
    runtime: EventSpan = EventSpan(0, ())
    text: str = ""  # tcb_info, cut at LONGEST_TEXT
    length: int = 0  # characters of the whole text

    @property
    def is_cut(self) -> bool:
        """Whether the text is truncated."""
        return len(self.text) < self.length


def measurements(measured: AppMeasurements | None) -> Measurements:
    """Return the measurements to show: those in `measured`, or nothing for None."""
    if measured is None:
        return Measurements()
    events, text = measured.log.events, measured.tcb_info
    # Not by is_runtime, which is slower: 65,536 events would block the event loop.
    runtime = [at for at, event in enumerate(events) if event.event_type == RUNTIME_EVENT_TYPE]
    boot = [at for at, event in enumerate(events) if event.event_type != RUNTIME_EVENT_TYPE]
    registers = measured.registers.items()
    return Measurements(
        {name: value for name, value in registers if value is not None},
        _span(events, boot),
        _span(events, runtime),
        text.start(LONGEST_TEXT),
        text.length,
    )


def _span(events: Sequence[Event], indexes: Sequence[int]) -> EventSpan:
    """Return the first and last of the events at `indexes`, or all if they are few."""
    gap = max(0, len(indexes) - FIRST - LAST)
    shown = [*indexes[:FIRST], *indexes[-LAST:]] if gap else indexes
    entries = tuple([(at, events[at]) for at in shown])
    return EventSpan(len(indexes), entries, FIRST if gap else 0, gap)


_POLICY: Final = (
    b"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final[Sequence[Header]] = (
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
_LINKS: Final = (
    ("/prpc/Worker.Info", "The app's identity and measurements, as JSON"),
    ("/prpc/Worker.Version", "The release of the guest agent API, as JSON"),
    ("/metrics", "System information and counters of the server, for Prometheus"),
    ("/docs", "Documentation of the API, with examples"),
    ("/openapi.json", "OpenAPI description of the API"),
)
_PLATFORMS: Final = {
    parts.PLATFORM_NAMES[kind]: title
    for kind, title in (
        (parts.Tdx, "Intel TDX"),
        (parts.GcpTdx, "Intel TDX on Google Cloud"),
        (parts.AzureTdx, "Intel TDX on Azure"),
        (parts.SevSnp, "AMD SEV-SNP"),
        (parts.GcpSnp, "AMD SEV-SNP on Google Cloud"),
        (parts.AzureSnp, "AMD SEV-SNP on Azure"),
        (parts.NitroTpm, "AWS NitroTPM"),
        (parts.NitroEnclave, "AWS Nitro Enclave"),
        (parts.Tpm, "TPM without a TEE"),
    )
}
_WITHOUT_TPM: Final = frozenset(
    parts.PLATFORM_NAMES[kind] for kind in (parts.Tdx, parts.SevSnp, parts.NitroEnclave)
)
_UNITS: Final = ("B", "KB", "MB", "GB", "TB", "PB", "EB")
_LONGEST: Final = 300  # characters shown of untrusted text
_MOST_CONTAINERS: Final = 200
_ENGINE_SECONDS: Final = 5.0  # time limit of the engine
_KEPT_SECONDS: Final = 1.0  # for which the list of containers is cached


class _ContainerTable(NamedTuple):
    """Containers to show, or the reason why they are unknown."""

    total: int = 0  # of all containers, which may be more than are listed
    listed: Sequence[Container] = ()
    problem: str = ""  # why they are unknown; empty if they are known


class Dashboard:
    """Dashboard of one guest.

    Args:
        mounted: Paths that the listener serves; only these are linked.
    """

    def __init__(self, mounted: Collection[str]) -> None:
        self._mounted = frozenset(mounted)
        self._shown: tuple[AppIdentity, Markup] | None = None
        self._found: tuple[float, _ContainerTable] | None = None
        self._asking = asyncio.Lock()

    async def show(self, guest: Guest, _: ViewRequest) -> ViewResponse:
        """Return the current page; without containers, but with the problem, if the engine fails.

        Raises:
            BackendError: If the platform produces no evidence, or the system information cannot be
                read.
        """
        hidden = not guest.app_compose.public_tcbinfo
        try:
            identity = await guest.on_device(lambda: guest.identity(hidden=hidden))
        except AttestKitError as error:
            raise backend_error("Failed to get worker info", error) from error
        await load("psutil")
        page, part = await _templates()
        containers = await self._containers(guest)
        text = page.render(
            simulated=guest.attester.simulated,
            app=identity.app,
            platform=_platform(guest, identity),
            figures=_figures(guest),
            nvidia_gpu=getattr(guest.attester.backend, "has_gpus", False) or has_nvidia_gpu(),
            containers=containers,
            public_logs="/logs/" in self._mounted,
            measurements=self._measurements(part, identity, guest.attester.event_register),
            hidden=hidden,
            links=[(path, what) for path, what in _LINKS if path in self._mounted],
            now=datetime.fromtimestamp(guest.now(), timezone.utc),
        )
        return ViewResponse(b"text/html; charset=utf-8", text.encode("utf-8", "replace"), _HEADERS)

    async def _containers(self, guest: Guest) -> _ContainerTable:
        """Return the containers, cached for a second: any client may request the page."""
        async with self._asking:
            known = self._found
            if known is None or not 0 <= guest.now() - known[0] < _KEPT_SECONDS:
                found = await _list_containers(guest)
                known = self._found = guest.now(), found
            return known[1]

    def _measurements(self, template: "Template", identity: AppIdentity, register: str) -> "Markup":
        """Return the section on measurements as HTML, cached for the last identity.

        Args:
            template: Template of the section.
            identity: The app's identity with its measurements.
            register: Name of the register that runtime events extend: `RTMR3` or `PCR 14`.
        """
        if self._shown is None or self._shown[0] is not identity:
            from attestkit._formats.html_templates import filled  # lazy: slow import

            page = filled(
                template,
                measured=measurements(identity.measured),
                event_register=register,
                has_tpm=identity.platform not in _WITHOUT_TPM,
            )
            self._shown = identity, page
        return self._shown[1]


def _platform(guest: Guest, identity: AppIdentity) -> str:
    """Return the name of the platform whose evidence the backend returns."""
    if isinstance(guest.attester.backend, GuestAgent):
        return "TEE of another guest agent"
    return _PLATFORMS[identity.platform]


def _figures(guest: Guest) -> Figures | None:
    """Return the system information; None if the app does not publish it."""
    if not guest.app_compose.public_sysinfo:
        return None
    try:
        return read_figures(guest.data_disks)
    except AttestKitError as error:
        raise backend_error("Failed to get worker info", error) from error


async def _list_containers(guest: Guest) -> _ContainerTable:
    """Return the containers, or a table with the problem."""
    try:
        found = await asyncio.wait_for(guest.containers.list_containers(), _ENGINE_SECONDS)
    except asyncio.TimeoutError:
        return _ContainerTable(problem=f"It did not respond within {_ENGINE_SECONDS:g} seconds.")
    except AttestKitError as error:
        return _ContainerTable(problem=str(error))
    return _ContainerTable(len(found), found[:_MOST_CONTAINERS])


async def _templates() -> "tuple[Template, Template]":
    """Return the templates of page and measurements.

    The first call loads them in a thread, as that would block the event loop.
    """
    if _load_templates.cache_info().currsize:
        return _load_templates()
    return await asyncio.to_thread(_load_templates)


@cache
def _load_templates() -> "tuple[Template, Template]":
    from attestkit._formats.html_templates import templates  # lazy: slow import

    environment = templates("attestkit.serve.pages")
    environment.globals["asset"] = asset_path
    environment.filters["size"] = size_text
    environment.filters["duration"] = duration_text
    environment.filters["grouped"] = "{:,}".format
    environment.filters["shown"] = partial(printable, most=_LONGEST)
    environment.filters["event_name"] = event_name
    environment.filters["preview"] = preview
    environment.filters["segment"] = partial(quote, safe="", errors="replace")
    page, measurements = map(
        environment.get_template, ("dashboard.html.jinja", "measurements.html.jinja")
    )
    return page, measurements


def size_text(size: float) -> str:
    """Return a size in bytes as text: `1.50 KB` for 1536. Each unit is 1024 times the previous."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.2f} {_UNITS[unit]}"


def duration_text(seconds: int) -> str:
    """Return a duration in days, hours, minutes and seconds, without leading zeros: `1h 0m 5s`."""
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts)
