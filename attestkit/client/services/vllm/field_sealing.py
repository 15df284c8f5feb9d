"""Sealing of fields to the attested key of a model: which protocol fits the key."""

from collections.abc import Mapping
from typing import Final

from attestkit.client.sealing.field_protocols import (
    ECDSA_V1,
    ED25519_V1,
    NEAR_ECDSA,
    NEAR_ED25519,
    PHALA_ECDSA,
    PHALA_ED25519,
    VENICE,
)
from attestkit.client.sealing.fields import FieldProtocol, FieldSealing
from attestkit.client.services.service import Binding
from attestkit.errors import ServiceError

ProtocolsByKey = Mapping[int, FieldProtocol]
"""Protocols of a service by the bytes of the key: 32 of Ed25519, 65 of secp256k1."""

VERSION_1: Final[ProtocolsByKey] = {32: ED25519_V1, 65: ECDSA_V1}
VENICES: Final[ProtocolsByKey] = {65: VENICE}
NEARS: Final[ProtocolsByKey] = {32: NEAR_ED25519, 65: NEAR_ECDSA}
PHALAS: Final[ProtocolsByKey] = {32: PHALA_ED25519, 65: PHALA_ECDSA}


def seal_fields(
    protocols: ProtocolsByKey,
    binding: Binding,
    service: str,
    model: str | None,
    allow_open: frozenset[str] = frozenset(),
) -> FieldSealing:
    """Return what seals requests to the key of a binding.

    Raises:
        ServiceError: If the binding is of another kind, or the service has no protocol for such a
            key (`sealing`).
    """
    protocol = protocols.get(len(binding.key))
    if binding.kind != "fields" or protocol is None:
        message = f"{service}: has no protocol that seals to a {binding.kind} key of this size"
        raise ServiceError(message, reason="sealing")
    return FieldSealing(protocol, binding.key, model=model, allow_open=allow_open)
