"""Services by name."""

from functools import cache
from importlib import import_module
from typing import Final

from attestkit._sanitize import shown
from attestkit.client.services.service import Service
from attestkit.errors import UsageError

# Module and class of each service, by its name; those with known hosts first.
_SERVICES: Final = {
    "near-ai": ("near_ai", "NearAi"),
    "venice": ("vllm_proxy", "Venice"),
    "nanogpt": ("vllm_proxy", "NanoGpt"),
    "vllm-proxy": ("vllm_proxy", "VllmProxy"),
    "tinfoil": ("tinfoil", "Tinfoil"),
    "chutes": ("chutes", "Chutes"),
    "aci": ("aci", "Aci"),
    "secretvm": ("secretvm", "SecretVm"),
    "attestkit": ("own_document", "OwnDocument"),
    "ra-tls": ("ra_tls", "RaTls"),
}

OWN_DOCUMENT: Final = "attestkit"
"""Service that any other server may be."""

RA_TLS: Final = "ra-tls"
"""Service of a server with evidence in its certificate."""


def service_names() -> tuple[str, ...]:
    """Return the names of all services."""
    return tuple(_SERVICES)


@cache
def open_service(name: str) -> Service:
    """Return a service.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in _SERVICES:
        message = f"service: {shown(name)} is unknown; known are {', '.join(_SERVICES)}, and auto"
        raise UsageError(message, reason="unknown_name")
    module, attribute = _SERVICES[name]
    made: Service = getattr(import_module(f"attestkit.client.services.{module}"), attribute)()
    return made


def find_service(host: str) -> Service | None:
    """Return the service that a host is known to be of; None if it is unknown."""
    for name in _SERVICES:
        if (service := open_service(name)).recognizes(host):
            return service
    return None
