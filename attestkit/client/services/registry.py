"""Services by name."""

from functools import cache
from importlib import import_module
from typing import Final

from attestkit._sanitize import shown
from attestkit.client.services.service import Service
from attestkit.errors import UsageError

# Module of each service, whose `SERVICES` has it; those with known hosts first.
_MODULES: Final = {
    "near-ai": "vllm.near_ai",
    "near-ai-direct": "vllm.near_ai",
    "tinfoil": "tinfoil.tinfoil",
    "tinfoil-bundle": "tinfoil.tinfoil",
    "redpill": "vllm.vllm_proxy",
    "venice": "vllm.vllm_proxy",
    "nano-gpt": "vllm.vllm_proxy",
    "vllm-proxy": "vllm.vllm_proxy",
    "secretvm": "secretvm",
    "chutes": "chutes",
    "aci": "aci.aci",
    "attestkit": "own_document",
    "ra-tls": "ra_tls",
    "ra-tls-other": "ra_tls",
}

OWN_DOCUMENT: Final = "attestkit"
"""Service that any other server may be."""

RA_TLS: Final = "ra-tls"
"""Service of a server with evidence in its certificate."""

OTHER_RA_TLS: Final = "ra-tls-other"
"""The same in the forms of other makers; the caller has to name it."""


def service_names() -> tuple[str, ...]:
    """Return the names of all services."""
    return tuple(_MODULES)


@cache
def open_service(name: str) -> Service:
    """Return a service.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in _MODULES:
        message = f"service: {shown(name)} is unknown; known are {', '.join(_MODULES)}, and auto"
        raise UsageError(message, reason="unknown_name")
    module = import_module(f"attestkit.client.services.{_MODULES[name]}")
    found: Service = next(one for one in module.SERVICES if one.name == name)
    return found


def find_service(host: str) -> Service | None:
    """Return the service that a host is known to be of; None if it is unknown."""
    services = map(open_service, _MODULES)
    return next((service for service in services if service.recognizes(host)), None)
