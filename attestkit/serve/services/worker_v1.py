"""Service Worker of package dstack.guest.v1, on the external listener: methods without keys."""

from typing import Final

from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.messages_v1 import (
    PACKAGE,
    ContainerHealth,
    HealthRequest,
    HealthResponse,
    InfoRequest,
    InfoResponse,
    VersionRequest,
)
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services import guest_v1
from attestkit.serve.services.context import Guest


def _info(guest: Guest, _: InfoRequest) -> PreparedResponse[InfoResponse]:
    """Return the app's identity, without its compose file and configuration if it hides them."""
    return guest_v1.get_info(guest, hidden=not guest.app_compose.public_tcbinfo)


def _health(guest: Guest, _: HealthRequest) -> HealthResponse:
    """Return the health of the app, as it was last determined; never an error."""
    healthy, unhealthy, error = guest.health
    return HealthResponse(healthy, tuple([ContainerHealth(*one) for one in unhealthy]), error)


SERVICE: Final = Service(
    {
        "Info": Method(_info, InfoRequest, device=True),
        "Version": Method(guest_v1.version, VersionRequest),
        "Health": Method(_health, HealthRequest),
    },
    mount="/prpc/v1/",
    name="Worker",
    package=PACKAGE,
)
"""Worker of v1: `/prpc/v1/<Method>`."""
