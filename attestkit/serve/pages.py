"""What a browser sees on the external listener: the dashboard, the files it loads, the metrics."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from attestkit.errors import NotFoundError
from attestkit.serve.assets import ASSETS, asset
from attestkit.serve.dashboard import Dashboard
from attestkit.serve.guest import Guest
from attestkit.serve.metrics import Metrics
from attestkit.serve.views import Answer, Asked, View
from attestkit.serve.worker import SERVICE

__all__ = ["views"]

_NOTHING: Final[Mapping[str, View]] = MappingProxyType({})
_FOREVER: Final = (b"cache-control", b"public, max-age=31536000, immutable")
_ASK_AGAIN: Final = (b"cache-control", b"no-cache")


def views(
    guest: Guest, others: Mapping[str, View] = _NOTHING, linked: Collection[str] = ()
) -> dict[str, View]:
    """Return what GET shows, by path: the dashboard, what it needs, and `others`.

    The dashboard links to what is there, and to `linked`. What the app does not publish is not
    there at all.
    """
    found = {"/assets/": View(_show_asset, named=True), **others}
    if guest.app_compose.public_sysinfo:
        found["/metrics"] = View(Metrics().show)
    methods = {f"{SERVICE.mount}{SERVICE.prefix}{name}" for name in SERVICE.methods}
    return {"/": View(Dashboard({*methods, *found, *linked}).show), **found}


async def _show_asset(_: Guest, asked: Asked) -> Answer:
    """Show a file of the page; under the address with its digest it can be kept for good."""
    if asked.name not in ASSETS:
        raise NotFoundError(f"No such path: /assets/{asked.name}")
    content, digest = asset(asked.name)
    kept = asked.query == b"v=%s" % digest.encode("ascii")
    return Answer(ASSETS[asked.name], content, [_FOREVER if kept else _ASK_AGAIN])
