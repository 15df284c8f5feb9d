"""The page at `/`: who the app is, what the TEE measured, what runs, for a person to read.

Everything shown is text from somewhere else: the template library escapes all of it, and the
policy that goes with the page lets a browser run and load the server's own files and nothing more.
"""

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from attestkit.backends.base import GuestAgent
from attestkit.errors import AttestKitError, BackendError
from attestkit.event_log.display import printable
from attestkit.serve.docker.engine import Container
from attestkit.serve.http.views import Answer, Asked, Header
from attestkit.serve.lazy_import import load
from attestkit.serve.machine_info import read_figures
from attestkit.serve.pages.dashboard_rows import LONGEST, Row, identity_rows, machine_rows
from attestkit.serve.pages.event_timeline import measurements
from attestkit.serve.pages.static_files import asset_path
from attestkit.serve.services.context import Guest, Identity

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

__all__ = ["Dashboard"]

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
    ("/prpc/Worker.Info", "Who the app is, and its measurements, as JSON"),
    ("/prpc/Worker.Version", "Which release of the guest agent API is served, as JSON"),
    ("/metrics", "Figures of the machine and counts of the server, for Prometheus"),
    ("/docs", "Every call of the API, to read and to try"),
    ("/openapi.json", "The same, for programs"),
)
_MOST_CONTAINERS: Final = 200  # in the table
_ENGINE_SECONDS: Final = 5.0  # that the engine may take
_KEPT_SECONDS: Final = 1.0  # for which its answer is good


class _Listed(NamedTuple):
    """A container in the table."""

    id: str
    name: str
    status: str
    state: str
    image: str
    logs: str  # where they are


class _Found(NamedTuple):
    """The containers there are, or why nobody knows."""

    total: int = 0
    listed: Sequence[_Listed] = ()
    trouble: str = ""


class Dashboard:
    """The page of one guest.

    Args:
        mounted: Paths of everything that is served besides; links lead to these only.
    """

    def __init__(self, mounted: Collection[str]) -> None:
        self._mounted = frozenset(mounted)
        self._shown: tuple[Identity, Markup] | None = None
        self._found: tuple[float, _Found] | None = None
        self._asking = asyncio.Lock()

    async def show(self, guest: Guest, _: Asked) -> Answer:
        """Show the page as things are now."""
        hidden = not guest.app_compose.public_tcbinfo
        try:
            identity = await guest.on_device(lambda: guest.identity(hidden=hidden))
        except AttestKitError as error:
            raise BackendError(f"Failed to get worker info: {error}") from error
        await load("psutil")
        page, part = await _templates()
        containers = await self._containers(guest)
        text = page.render(
            simulated=guest.attester.simulated,
            app_name=printable(identity.app.app_name, LONGEST),
            identity=identity_rows(identity.app),
            platform=_platform(guest),
            system=_system(guest),
            containers=containers,
            public_logs="/logs/" in self._mounted,
            measurements=self._measurements(part, identity),
            hidden=hidden,
            links=[(path, what) for path, what in _LINKS if path in self._mounted],
            now=datetime.fromtimestamp(guest.now(), timezone.utc),
        )
        return Answer(b"text/html; charset=utf-8", text.encode("utf-8", "replace"), _HEADERS)

    async def _containers(self, guest: Guest) -> _Found:
        """Return the containers; asked anew once a second at most, for strangers ask here."""
        async with self._asking:
            known = self._found
            if known is None or not 0 <= guest.now() - known[0] < _KEPT_SECONDS:
                found = await _ask_engine(guest)
                known = self._found = guest.now(), found
            return known[1]

    def _measurements(self, template: "Template", identity: Identity) -> "Markup":
        """Return registers, events and TCB info as HTML; made anew when they are others."""
        if self._shown is None or self._shown[0] is not identity:
            from attestkit._jinja import filled  # late: slow to import

            self._shown = identity, filled(template, measured=measurements(identity.measured))
        return self._shown[1]


def _platform(guest: Guest) -> str:
    if isinstance(guest.attester.backend, GuestAgent):
        return "TEE of another guest agent"
    return "Intel TDX" if guest.attester.has_quotes else "AMD SEV-SNP"


def _system(guest: Guest) -> list[Row] | None:
    """Return the rows about the machine; None where the app does not publish them."""
    if not guest.app_compose.public_sysinfo:
        return None
    try:
        return machine_rows(read_figures(guest.data_disks))
    except AttestKitError as error:
        raise BackendError(f"Failed to get worker info: {error}") from error


async def _ask_engine(guest: Guest) -> _Found:
    """Return the containers for the table, or what is wrong."""
    try:
        found = await asyncio.wait_for(guest.containers.list(), _ENGINE_SECONDS)
    except asyncio.TimeoutError:
        return _Found(trouble=f"It did not answer within {_ENGINE_SECONDS:g} seconds.")
    except AttestKitError as error:
        return _Found(trouble=printable(str(error), LONGEST))
    return _Found(len(found), [_listed(container) for container in found[:_MOST_CONTAINERS]])


def _listed(container: Container) -> _Listed:
    name = container.names[0] if container.names else ""
    return _Listed(
        printable(container.id, LONGEST),
        printable(name, LONGEST),
        printable(container.status, LONGEST),
        printable(container.state, LONGEST),
        printable(container.image, LONGEST),
        f"/logs/{quote(name, safe='', errors='replace')}",
    )


async def _templates() -> "tuple[Template, Template]":
    """Return the templates of the page and of its measurements; a thread makes them once."""
    if _made.cache_info().currsize:
        return _made()
    return await asyncio.to_thread(_made)


@cache
def _made() -> "tuple[Template, Template]":
    from attestkit._jinja import templates  # late: slow to import

    environment = templates("attestkit.serve.pages")
    environment.globals["asset"] = asset_path
    environment.filters["grouped"] = "{:,}".format
    page, measurements = map(
        environment.get_template, ("dashboard.html.jinja", "measurements.html.jinja")
    )
    return page, measurements
