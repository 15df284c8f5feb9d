"""`Require`: requirements of a proof, beside those of the policy for its evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from attestkit._sanitize import shown
from attestkit.client.services.service import Binding, Claims, Freshness
from attestkit.errors import ServiceError, UsageError

ChannelEnd = Literal["model", "gateway", "any"]
"""Where the protected channel must end."""

_FRESH: Final[dict[str, int]] = {"none": 0, "key possession": 1, "nonce": 2}
_ENDS: Final = ("any", "gateway", "model")
_GATEWAYS: Final = frozenset({"gateway", "router"})


@dataclass(frozen=True, slots=True)
class Require:
    """Requirements that are met by every connection; the defaults are the safe ones.

    Raises:
        UsageError: If a value is unknown.
    """

    freshness: Freshness = "nonce"
    """Least proof of freshness: "nonce" (the client's, in the evidence), "key possession" or
    "none"."""

    channel: ChannelEnd = "model"
    """Where the protected channel ends at the earliest: "model" is the machine that runs the
    program, "gateway" a machine in front of it, "any" also accepts no protected channel."""

    gpu: bool = False
    """Whether the evidence of the GPUs is required and verified, of each machine that is not only a
    gateway."""

    response_signatures: bool = False
    """Whether the service must sign its answers, for `Endpoint.verify`."""

    def __post_init__(self) -> None:
        for name, known in (("freshness", _FRESH), ("channel", _ENDS)):
            value: Any = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                message = f"{name}: {shown(str(value))}; must be one of {', '.join(known)}"
                raise UsageError(message, reason="wrong_value")
        for name in ("gpu", "response_signatures"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}: must be a bool", reason="wrong_type")

    def check(self, claims: Claims, bindings: Sequence[Binding], service: str) -> None:
        """Check what claims can show, before their evidence is verified.

        Args:
            claims: Claims of an answer.
            bindings: The bindings that are enforced.
            service: Name of the service, for the text.

        Raises:
            ServiceError: If a requirement is not met; the text names the keyword to change.
        """
        self._check_freshness(claims, service)
        self._check_channel(bindings, service)
        if self.gpu:
            _check_gpu(claims, service)

    def _check_freshness(self, claims: Claims, service: str) -> None:
        if _FRESH[claims.freshness] >= _FRESH[self.freshness]:
            return
        shows = "possession of a key" if claims.freshness == "key possession" else "nothing"
        message = (
            f"{service}: the evidence has no nonce of the client, and of freshness shows {shows}; "
            f'to accept that, pass require=Require(freshness="{claims.freshness}")'
        )
        raise ServiceError(message, reason="no_freshness")

    def _check_channel(self, bindings: Sequence[Binding], service: str) -> None:
        if self.channel == "any":
            return
        if not bindings:
            message = (
                f"{service}: nothing binds the connection or the request to the evidence; seal "
                'requests with encrypt=True, or pass require=Require(channel="any")'
            )
            raise ServiceError(message, reason="no_channel")
        if self.channel == "model" and all(one.is_of in _GATEWAYS for one in bindings):
            message = (
                f"{service}: the channel ends at the {bindings[0].is_of}, not at the model; seal "
                'requests with encrypt=True, or pass require=Require(channel="gateway")'
            )
            raise ServiceError(message, reason="ends_at_gateway")


def _check_gpu(claims: Claims, service: str) -> None:
    """Check that each machine behind the gateways has evidence of GPUs.

    It is bound to the nonce alone. A relay of the answers of several machines could therefore leave
    it out of one, and send requests to that one.
    """
    own = [machine for machine in claims.machines if not machine.is_further]
    behind = [machine for machine in own if machine.role not in _GATEWAYS]
    for machine in behind or own:
        if machine.gpu is None:
            message = (
                f"{service}: no evidence of the GPUs of {shown(machine.role)}; to accept that, "
                "leave out Require(gpu=True)"
            )
            raise ServiceError(message, reason="no_gpu")


REQUIRE_ALL: Final = Require()
"""The defaults."""
