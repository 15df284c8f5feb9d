"""Client of a local key provider: verifies the provider, and derives the keys (kms.md, 7.4)."""

import hmac
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from attestkit._argument_checks import require_size
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.zeroize import wipe
from attestkit.errors import (
    AttestKitError,
    FormatError,
    KmsError,
    UnsupportedError,
    VerificationError,
)
from attestkit.keys import AppKeys
from attestkit.kms.local_provider.frames import SealedKey
from attestkit.kms.local_provider.sealing import open_seed, provider_report_data, td_report_data
from attestkit.quote import EnclaveReport, Quote
from attestkit.verifier import AppraisalPolicy, ReferenceValues, Verifier
from attestkit.verifier.claims import TcbStatus

__all__ = ["fetch_local_keys", "provider_policy"]

_WHAT: Final = "local key provider"
_SGX: Final = "sgx"  # the platform that a policy must name


def provider_policy(
    mr_enclave: bytes | None = None,
    *,
    accepted_statuses: Iterable[TcbStatus] = (TcbStatus.UP_TO_DATE,),
) -> AppraisalPolicy:
    """Return a policy for the SGX quote of a provider.

    Args:
        mr_enclave: MRENCLAVE of the provider, 32 bytes; None accepts every enclave.
        accepted_statuses: Accepted TCB statuses of the host.

    Raises:
        UsageError: If `mr_enclave` does not have 32 bytes, or a status is not a TcbStatus.
    """
    policy = AppraisalPolicy.default().replace(
        platforms={_SGX}, accepted_statuses=frozenset(accepted_statuses)
    )
    if mr_enclave is None:
        return policy
    require_size("mr_enclave", mr_enclave, 32)
    return policy.replace(reference_values=ReferenceValues(mrenclave={mr_enclave}))


def fetch_local_keys(
    get_quote: Callable[[bytes], bytes],
    provider: Callable[[bytes], SealedKey],
    *,
    verifier: Verifier,
    mr_enclave: bytes | None = None,
    now: datetime | float | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> AppKeys:
    """Return the keys of this TD from a local key provider.

    Call it right after the event `boot-mr-done`: RTMR3 determines the keys.

    The keys depend on the provider's enclave, whose MRENCLAVE the event `key-provider` measures.
    Without `mr_enclave` every enclave is accepted: a hostile host can run one that reveals the
    keys, and only relying parties that check the event notice it.

    Args:
        get_quote: Returns the quote of this TD over 64 bytes of report data.
        provider: `HostApi`, `TcpProvider`, or a function that returns the provider's answer.
        verifier: Verifier of the provider's SGX quote; its policy must accept the platform `sgx`,
            see `provider_policy`. It needs the collateral of SGX, or a PCCS.
        mr_enclave: Expected MRENCLAVE of the provider, 32 bytes.
        now: Time of the verification, as for `Verifier.verify`.
        random: Returns a number of random bytes.

    Returns:
        Keys with the provider `local`, whose id is the MRENCLAVE. The caller closes them.

    Raises:
        KmsError: If there is no answer (`connection`, `timeout`, `refused`), it is malformed
            (`malformed`, `wrong_size`), the provider's quote is not accepted (`evidence_refused`),
            the enclave is another one (`wrong_provider`), or the sealed seed is not for this TD
            (`invalid_key`).
        CollateralError: If the collateral for the provider's quote is missing or malformed.
        UsageError: If `mr_enclave` does not have 32 bytes.
    """
    if mr_enclave is not None:
        require_size("mr_enclave", mr_enclave, 32)
    secret = random(32)
    try:
        answer = provider(get_quote(td_report_data(x25519_public_key(secret))))
        identity = _verify_provider(answer, verifier, now)
        if mr_enclave is not None and not hmac.compare_digest(identity, mr_enclave):
            text = f"{_WHAT}: MRENCLAVE is {identity.hex()}, must be {mr_enclave.hex()}"
            raise KmsError(f"{text}; keys of another enclave are others", reason="wrong_provider")
        seed = _open_seed(secret, answer.encrypted_key)
    finally:
        wipe(secret)
    try:
        keys = AppKeys.from_seed(seed)
    finally:
        wipe(seed)
    keys.key_provider, keys.key_provider_id = "local", identity.hex()
    return keys


def _verify_provider(answer: SealedKey, verifier: Verifier, now: datetime | float | None) -> bytes:
    """Verify the provider's quote over the sealed seed, and return its MRENCLAVE."""
    try:
        quote = Quote.parse(answer.provider_quote)
    except FormatError as error:
        text = f"{_WHAT}: malformed quote: {error.message}"
        raise KmsError(text, reason="malformed") from error
    body = quote.body
    if not isinstance(body, EnclaveReport):
        text = f"{_WHAT}: the quote is of a TD, and not of an SGX enclave"
        raise KmsError(text, reason="evidence_refused")
    expected = provider_report_data(answer.encrypted_key)
    if not hmac.compare_digest(body.report_data, expected):
        text = f"{_WHAT}: the quote is over another sealed seed than that of the answer"
        raise KmsError(text, reason="evidence_refused")
    try:
        result = verifier.verify(quote.raw, report_data=expected, now=now)
    except VerificationError as error:  # also for collateral that has expired
        raise _not_accepted(error) from error
    except (FormatError, UnsupportedError) as error:
        raise _not_accepted(error) from error
    found = dict(result.claims.registers).get("mrenclave")
    if result.claims.platform != _SGX or found is None:
        text = f"{_WHAT}: the evidence is of {result.claims.platform}, and not of an SGX enclave"
        raise KmsError(text, reason="evidence_refused")
    return found


def _not_accepted(error: AttestKitError) -> KmsError:
    return KmsError(f"{_WHAT}: its quote is not accepted: {error}", reason="evidence_refused")


def _open_seed(secret: bytes, encrypted_key: bytes) -> bytes:
    try:
        return open_seed(secret, encrypted_key)
    except FormatError as error:
        raise KmsError(f"{_WHAT}: {error.message}", reason="wrong_size") from error
    except VerificationError as error:
        text = f"{_WHAT}: the sealed seed is not for this TD, or was altered"
        raise KmsError(text, reason="invalid_key") from error
