"""Targets: what is sealed to an application, and answers of a local key provider."""

import json
from functools import cache
from typing import Final

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._system.bounded_http import Response
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import (
    SGX_COLLATERAL,
    QuotingEnclave,
    SgxQuotingEnclave,
    SimulatedEnclave,
    TdBody,
)
from attestkit.errors import CollateralError, FormatError, KmsError, VerificationError
from attestkit.keys import AppKeys
from attestkit.kms.local_provider import HostApi, SealedKey, fetch_local_keys, provider_policy
from attestkit.kms.local_provider.sealed_key import (
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    open_seed,
    provider_report_data,
    seal_seed,
)
from attestkit.kms.sealed_env import Epochs, open_env, seal_env
from attestkit.verifier import Verifier
from fuzz.parsers.contract import ParserTarget, obeys, short

_SECRET: Final = bytes(range(32))
_PUBLIC: Final = x25519_public_key(_SECRET)
_EPOCHS: Final = Epochs(2, 7)
_VARIABLES: Final = [("NAME", "value"), ("OTHER", "")]
_NOW: Final = 1790000000
_LONGEST: Final = 1 << 15  # bytes of an answer; a quote is an array of numbers


def _sealed_env(raw: bytes) -> dict[str, str]:
    return open_env(raw, _SECRET)


def sealed_env_samples() -> list[bytes]:
    """Return an environment in each form, and envelopes that are refused."""
    envelope = seal_env(_VARIABLES, _PUBLIC, epochs=_EPOCHS)
    other = json.dumps({**json.loads(envelope), "root_epoch": 3})
    legacy = seal_env(_VARIABLES, _PUBLIC)
    texts = (envelope, other, legacy, '{"version":1}')
    return [*(text.encode() for text in texts), bytes.fromhex(legacy)]


# -- local key provider ----------------------------------------------------------------------------


@cache
def _pki() -> SimulatedPki:
    return SimulatedPki(bytes(32))


@cache
def _verifier() -> Verifier:
    pki = _pki()
    collateral = pki.collateral(_NOW, SGX_COLLATERAL)
    return Verifier(trust_anchor=pki.root_der, collateral=collateral, policy=provider_policy())


def _local_keys(raw: bytes) -> AppKeys:
    """Accept the answer of a provider, as a TD that has asked for its keys."""
    return fetch_local_keys(
        lambda report_data: QuotingEnclave(_pki()).quote(TdBody(report_data=report_data).td10()),
        lambda _: decode_response(raw),
        verifier=_verifier(),
        now=_NOW,
        random=lambda size: bytes(memoryview(_SECRET)[:size]),  # the client wipes it
    )


def _answer() -> SealedKey:
    box = seal_seed(bytes(32), _PUBLIC + bytes(32))
    enclave = SimulatedEnclave(report_data=provider_report_data(box))
    return SealedKey(box, SgxQuotingEnclave(_pki()).quote(enclave))


def local_key_samples() -> list[bytes]:
    """Return a genuine answer, one whose box is altered, and messages without a quote."""
    answer = _answer()
    other = answer._replace(encrypted_key=bytes(80))
    messages = [encode_response(one) for one in (answer, other, SealedKey(b"\1", b"\2"))]
    return [*messages, b'{"encrypted_key":[],"provider_quote":[],"x":{}}', b"{}"]


def provider_request_samples() -> list[bytes]:
    """Return requests to a provider, and malformed ones."""
    texts = (b'{"quote":[1],"x":"y"}', b'{"quote":[256]}', b'{"quote":"00"}', b"")
    return [encode_request(bytes(range(100))), *texts]


class _AnsweringHost(HostApi):
    """A host whose API answers alike, without a socket."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__("vsock://2:10086/api")
        self._answer = Response(status, {}, body)

    def _post(self, body: bytes) -> Response:
        del body
        return self._answer


def _host_answer(raw: bytes) -> SealedKey:
    """Read an answer of the host's API; the first byte says whether it is a refusal."""
    return _AnsweringHost(400 if raw[:1] == b"\1" else 200, raw[1:])(b"quote")


def host_answer_samples() -> list[bytes]:
    """Return an answer of the host's API, and refusals."""
    texts = (
        b'\0{"encrypted_key":"00","provider_quote":"0102"}',
        b'\1{"error":"Key provider is not enabled"}',
        b"\1x",
        b"\0{}",
    )
    return list(texts)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    sealed_env = obeys(_sealed_env, FormatError, VerificationError)
    keys = obeys(
        _local_keys,
        *(FormatError, KmsError, CollateralError),
        said=lambda keys: (keys.k256_key, keys.key_provider_id),
    )
    seed = obeys(lambda raw: open_seed(_SECRET, raw), FormatError, VerificationError)
    request = obeys(decode_request, FormatError)
    host = obeys(_host_answer, KmsError)
    return [
        ParserTarget("sealed_env", sealed_env, short(sealed_env_samples), "json.dict"),
        ParserTarget("local_keys", keys, short(local_key_samples, _LONGEST), "json.dict", _LONGEST),
        ParserTarget("sealed_seed", seed, lambda: [_answer().encrypted_key, bytes(80), b""]),
        ParserTarget("provider_request", request, short(provider_request_samples), "json.dict"),
        ParserTarget("host_api", host, short(host_answer_samples), "json.dict"),
    ]
