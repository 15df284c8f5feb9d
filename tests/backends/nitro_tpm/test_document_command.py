"""The vendor command of a NitroTPM: its exact steps, its clean-up, and its errors."""

from typing import Any

import cbor2
import pytest

from attestkit.attestation.nitro_tpm import DocumentRequest, read_document
from attestkit.backends.nitro_tpm import has_document_command, request_document
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.hmac_session import SessionCommand, command_hash
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    FormatError,
    QuoteUnavailableError,
    UsageError,
)
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.public_area import RSA_EK
from tests.backends.nitro_tpm.nitro_proxy import (
    ATTEST,
    NV_DEFINE,
    NV_READ,
    NV_UNDEFINE,
    NV_WRITE,
    NitroProxy,
)
from tests.raising import raises
from tests.runner.cases import every_case

DOCUMENT = b"\x84" + bytes(5000)
FLUSH = 0x0165


def answer(fields: dict[str, Any]) -> bytes:
    """Return a document, and the fields that the caller chose."""
    del fields
    return cbor2.dumps({"Attestation": {"document": DOCUMENT}})


@pytest.fixture
def proxy(software_tpm: TpmClient) -> NitroProxy:
    """Return a NitroTPM on swtpm."""
    return NitroProxy(software_tpm.transport, answer)


def request(proxy: NitroProxy, **fields: bytes | None) -> bytes:
    """Request a document."""
    return request_document(TpmClient(proxy), DocumentRequest(**fields), random=proxy.random)


def test_document_command_hash_matches_vector() -> None:
    """The hash is over the command code and twice the name of the index (8.2, step 8)."""
    name = bytes(range(0x44))
    command = SessionCommand(NITRO_ATTEST, (1, 1), (name, name))
    assert command_hash(command, "sha512").hex() == (
        "c3869a4e945d90e6688365a59e14d2c5ab3d2b4579261a4a4377fe918d5d3509"
        "33284223b6a569e384124d2bceb2173dac7a4171181efed7a5697d862174f9dc"
    )


def test_request_document_returns_document_and_cleans_up(proxy: NitroProxy) -> None:
    """The request reaches the TPM by an authorized command; nothing remains in the TPM."""
    seen: list[dict[str, Any]] = []

    def watch(fields: dict[str, Any]) -> bytes:
        seen.append(fields)
        return answer(fields)

    proxy.answer = watch
    found = request(proxy, user_data=b"u" * 64, nonce=b"n")
    assert found == DOCUMENT
    assert seen == [{"user_data": b"u" * 64, "nonce": b"n", "public_key": None}]
    assert proxy.index is None
    assert proxy.codes.count(FLUSH) == 2  # session and key
    assert proxy.client.list_handles(0x80000000, 0x80FFFFFF) == ()
    assert proxy.client.list_handles(0x02000000, 0x02FFFFFF) == ()
    assert [len(one) for one in proxy.randoms] == [64, 32, 64, 64]


def test_request_document_uses_a_free_index(proxy: NitroProxy) -> None:
    """Indices that exist are left alone."""
    proxy.client.nv_define(0x01000000, 8)
    proxy.client.nv_define(0x01000002, 8)
    used: list[int] = []

    def watch(fields: dict[str, Any]) -> bytes:
        assert proxy.index is not None
        used.append(proxy.index.number)
        return answer(fields)

    proxy.answer = watch
    request(proxy)
    assert used == [0x01000001]
    assert len(proxy.client.list_handles(0x01000000, 0x01FFFFFF)) == 2


@pytest.mark.parametrize("code", [0x143, 0x000B0143])
def test_request_document_without_command_is_unavailable(proxy: NitroProxy, code: int) -> None:
    """A TPM without the command, or one that does not list it, is reported with its code."""
    proxy.refusals = {ATTEST: code}
    with raises(BackendUnavailableError, "wrong_platform", part=f"{code:#x}"):
        request(proxy)
    assert proxy.index is None
    assert proxy.codes.count(FLUSH) == 2
    assert proxy.client.list_handles(0x80000000, 0x80FFFFFF) == ()


@pytest.mark.parametrize("failing", [ATTEST, NV_WRITE, NV_READ, NV_DEFINE])
def test_request_document_cleans_up_after_an_error(proxy: NitroProxy, failing: int) -> None:
    """Key, session and index are removed, each on its own, whichever step fails."""
    proxy.refusals = {failing: 0x101}
    with raises(TpmError, "tpm_error") as caught:
        request(proxy)
    assert caught.value.code == 0x101
    assert proxy.index is None
    assert proxy.client.list_handles(0x80000000, 0x80FFFFFF) == ()
    assert proxy.client.list_handles(0x02000000, 0x02FFFFFF) == ()


def test_request_document_reports_an_index_that_remains(proxy: NitroProxy) -> None:
    """An index that cannot be removed is an error, and the key is flushed nevertheless."""
    proxy.refusals = {NV_UNDEFINE: 0x101}
    with raises(TpmError, "tpm_error"):
        request(proxy)
    assert proxy.client.list_handles(0x80000000, 0x80FFFFFF) == ()


def test_request_document_proves_the_password(proxy: NitroProxy) -> None:
    """The command fails if the HMAC is made with another password, or with an old name."""
    real = proxy._expected

    def differ(index: Any, given: Any) -> bytes:
        return bytes(64) if index.secret else real(index, given)

    proxy._expected = differ  # type: ignore[method-assign]
    with raises(TpmError, "tpm_error") as caught:
        request(proxy)
    assert caught.value.is_denied


def test_request_document_of_failing_hypervisor_names_its_error(proxy: NitroProxy) -> None:
    """An error in the response is an error of the platform, with its name."""
    proxy.answer = lambda _: cbor2.dumps({"Error": "InvalidOperation"})
    with raises(QuoteUnavailableError, "request_failed", part="InvalidOperation"):
        request(proxy)
    proxy.answer = lambda _: b"\xff"
    with raises(BackendError, "malformed_response"):
        request(proxy)


def test_has_document_command(proxy: NitroProxy) -> None:
    """The command is found in the list of the TPM's commands."""
    assert has_document_command(TpmClient(proxy))
    proxy.has_command = False
    assert not has_document_command(TpmClient(proxy))


def test_endorsement_key_template_is_the_default_one(software_tpm: TpmClient) -> None:
    """The template is that of the credential profile; a TPM makes a key of it."""
    with software_tpm.primary_key(ENDORSEMENT, RSA_EK) as key:
        assert (key.public.type, key.public.name_alg, key.public.bits) == ("rsa", "sha256", 2048)


def test_document_request_is_cbor_with_nulls() -> None:
    """Fields that are not given are null; one over 1,024 bytes is refused."""
    encoded = DocumentRequest(nonce=bytes(1024)).encode()
    expected = {"Attestation": {"user_data": None, "nonce": bytes(1024), "public_key": None}}
    assert cbor2.loads(encoded) == expected
    for name in ("user_data", "nonce", "public_key"):
        with raises(UsageError, "too_large", part=name):
            DocumentRequest(**{name: bytes(1025)}).encode()


@every_case(
    ("response", "reason"),
    [
        (b"", "truncated"),
        (cbor2.dumps([1]), "wrong_type"),
        (cbor2.dumps({}), "wrong_type"),
        (cbor2.dumps({"Other": 1}), "missing"),
        (cbor2.dumps({"Attestation": b""}), "missing"),
        (cbor2.dumps({"Attestation": {}}), "missing"),
        (cbor2.dumps({"Attestation": {"document": b""}}), "missing"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "missing"),
    ],
)
def test_read_document_of_malformed_response_raises_format_error(
    response: bytes, reason: str
) -> None:
    """Each violated rule is reported."""
    with raises(FormatError, reason):
        read_document(response)


def test_read_document_ignores_padding_only() -> None:
    """Bytes after the CBOR item are padding; every truncation is rejected; any map is read."""
    whole = cbor2.dumps({"Attestation": {"document": b"doc"}})
    assert read_document(whole + bytes(100)) == read_document(whole + b"\xff" * 3) == b"doc"
    indefinite = b"\xbf\x6bAttestation\xbf\x68document\x43doc\xff\xff"
    assert read_document(indefinite + bytes(9)) == b"doc"
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            read_document(whole[:size])
