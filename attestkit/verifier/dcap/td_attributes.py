"""Checks under every policy: no debug mode, no service TD, no attribute that exposes a TD.

Intel leaves these checks to the relying party.
"""

from functools import reduce
from operator import or_
from typing import Final

from attestkit.quote import EnclaveReport, TdQuoteBody
from attestkit.verifier.dcap.reasons import refuse

_DEBUG: Final = 1 << 0
_ENCLAVE_DEBUG: Final = 1 << 1
_SEPT_VE_DISABLE: Final = 1 << 28


def _bits(first: int, last: int) -> int:
    return (1 << last + 1) - (1 << first)


_FORBIDDEN: Final = (
    (_bits(4, 6), "a profiling bit is set: the host can watch the TD; launch it without"),
    (1 << 17, "SERVTD_EXT is set: service TDs may be bound later; launch it without"),
    (1 << 29, "MIGRATABLE is set: the TD can be moved away; launch it without"),
    (_bits(1, 3) | _bits(7, 15) | _bits(23, 26) | _bits(32, 61), "a reserved bit is set"),
)
_CHECKED: Final = reduce(or_, (bits for bits, _ in _FORBIDDEN), _DEBUG | _SEPT_VE_DISABLE)


def check_attributes(body: TdQuoteBody | EnclaveReport, *, behind_paravisor: bool = False) -> None:
    """Check the attributes of a TD or an enclave.

    Args:
        body: Signed body of the quote.
        behind_paravisor: Whether a paravisor runs in the TD. SEPT_VE_DISABLE is not required then,
            because the paravisor handles the exceptions.

    Raises:
        VerificationError: If TD or enclave runs in debug mode (`td_debug`, `enclave_debug`), a
            service TD is bound to the TD (`service_td`), or an attribute exposes the TD to its host
            (`td_attributes`).
    """
    if isinstance(body, EnclaveReport):
        if body.attributes[0] & _ENCLAVE_DEBUG:
            raise refuse("enclave_debug", _debug_text("enclave", body.attributes))
        return
    if body.mr_service_td is not None and any(body.mr_service_td):
        message = "a service TD is bound to the TD (MR_SERVICETD is not zero); launch it without"
        raise refuse("service_td", message)
    attributes = int.from_bytes(body.td_attributes, "little")
    if attributes & _CHECKED == _SEPT_VE_DISABLE:
        return
    if attributes & _DEBUG:
        raise refuse("td_debug", _debug_text("TD", body.td_attributes))
    for bits, problem in _FORBIDDEN:
        if attributes & bits:
            raise refuse("td_attributes", f"TD attributes ({body.td_attributes.hex()}): {problem}")
    if behind_paravisor:
        return
    raise refuse(
        "td_attributes",
        f"TD attributes ({body.td_attributes.hex()}): SEPT_VE_DISABLE is not set: the host can "
        "inject exceptions; launch the TD with it",
    )


def _debug_text(what: str, attributes: bytes) -> str:
    return (
        f"the {what} runs in debug mode ({attributes.hex()}): its host can read and change all of "
        "it; start it without debug mode"
    )
