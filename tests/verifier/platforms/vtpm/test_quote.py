"""Tests of TPM quotes: signature, qualifying data, selection and PCR values."""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attestkit.attestation.wire.evidence_parts import PcrValue
from attestkit.errors import FormatError, SignatureError, VerificationError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic, TpmtSignature
from attestkit.verifier.platforms.vtpm.quote import (
    ALL_PCRS,
    VerifiedQuote,
    quote_scheme,
    verify_tpm_quote,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.tpm_samples import (
    GO_TPM_TOOLS,
    QuoteSample,
    go_cases,
    go_quote,
    pcr_values,
    qemu,
    vaportpm,
    vtpm_json,
)

pytestmark = needs_shared


def trustee() -> QuoteSample:
    """Return the quote of Confidential Containers' generic attester."""
    evidence = vtpm_json("generic/trustee/tpm_evidence.json")
    quote = {key: evidence["tpm_quote"][key] for key in ("message", "signature")}
    message, signature = (base64.b64decode(quote[key]) for key in ("message", "signature"))
    values = tuple(
        PcrValue(number, "sha256", bytes.fromhex(value))
        for number, value in enumerate(evidence["tpm_quote"]["pcrs"])
    )
    key = base64.b64decode(evidence["ak_public"])
    return QuoteSample(message, signature, key, None, TpmsAttest.parse(message).extra_data, values)


def azure() -> QuoteSample:
    """Return a quote of Azure, whose signature is bare."""
    stored = data("vtpm/azure/kinvolk/quote.bin")
    parts, at = [], 0
    for _ in range(2):
        size = int.from_bytes(stored[at : at + 8], "little")
        parts.append(stored[at + 8 : at + 8 + size])
        at += 8 + size
    values = stored[at + 8 :]
    pem = data("vtpm/azure/kinvolk/akpub.pem").decode()
    key = base64.b64decode("".join(pem.strip().splitlines()[1:-1]))
    signature = TpmtSignature("rsassa", "sha256", parts[0]).encode()
    pcrs = tuple(
        PcrValue(number, "sha256", values[32 * number : 32 * number + 32]) for number in range(24)
    )
    return QuoteSample(parts[1], signature, key, None, b"challenge", pcrs)


SAMPLES: dict[str, Callable[[], QuoteSample]] = {
    "trustee": trustee,
    "azure": azure,
    "qemu-sha256": lambda: qemu("sha256"),
    "qemu-sha384": lambda: qemu("sha384"),
    "qemu-rsa": lambda: qemu("rsa"),
    "google": lambda: vaportpm("gcp/vaportpm/test-gcp-tdx-fixture.json", "sha256"),
    "nitro-tpm": lambda: vaportpm("aws/vaportpm/test-nitro-fixture.json", "sha384"),
    "p384": lambda: go_quote(go_cases("quotes")[-1]),
}
QUOTES = go_cases("quotes")
every_sample = pytest.mark.parametrize("name", SAMPLES)


def rejection(sample: QuoteSample, **changes: Any) -> VerificationError | FormatError:
    """Return the error for a changed quote."""
    with pytest.raises((VerificationError, FormatError)) as caught:
        sample.verify(**changes)
    assert isinstance(caught.value, (VerificationError, FormatError))
    return caught.value


def changed(values: bytes, step: int) -> Iterator[bytes]:
    """Yield copies of which every `step`th byte has one bit changed."""
    for at in limited(range(0, len(values), step)):
        yield values[:at] + bytes([values[at] ^ 1 << at % 8]) + values[at + 1 :]


@every_sample
def test_quote_of_each_source_verifies(name: str) -> None:
    """Genuine quotes of all platforms verify, and give their PCR values and counters."""
    sample = SAMPLES[name]()
    found = sample.verify()
    assert isinstance(found, VerifiedQuote)
    # Entries of a protobuf map come in any order, those of the result in that of the selection.
    assert found.pcrs == tuple((bank, number, value) for number, bank, value in sorted(sample.pcrs))
    assert [step.check for step in found.steps] == ["tpm_quote", "tpm_clock"]
    facts = found.facts("listed")
    assert (facts.attestation_key, facts.pcrs) == (sample.key, found.pcrs)
    assert facts.reset_count == found.attest.reset_count


@every_sample
def test_quote_changed_in_any_byte_is_refused(name: str) -> None:
    """A changed byte of message, signature, PCR values or qualifying data is refused."""
    check_changes(SAMPLES[name](), 11)


@pytest.mark.slow
@every_sample
def test_quote_changed_in_every_byte_is_refused(name: str) -> None:
    """As above, for each byte."""
    check_changes(SAMPLES[name](), 1)


def check_changes(sample: QuoteSample, step: int) -> None:
    """Refuse copies of a quote in which every `step`th byte is changed."""
    for message in changed(sample.message, step):
        assert rejection(sample, message=message).reason
    for signature in changed(sample.signature, step):
        assert rejection(sample, signature=signature).reason
    for at, (number, bank, value) in enumerate(sample.pcrs):
        for other in changed(value, step):
            pcrs = (*sample.pcrs[:at], PcrValue(number, bank, other), *sample.pcrs[at + 1 :])
            assert rejection(sample, pcrs=pcrs).reason == "pcr_digest"


@every_sample
def test_quote_of_another_key_is_refused(name: str) -> None:
    """The key of another quote, of the same kind or another, does not verify it."""
    sample = SAMPLES[name]()
    for other in SAMPLES.values():
        if (key := other().key) != sample.key:
            assert rejection(sample, key=key).reason in {
                "tpm_quote_bad_signature",
                "tpm_quote_algorithm",
            }


@every_case("case", QUOTES, ids=[case["name"] for case in QUOTES])
def test_quote_with_nonces_of_each_size_verifies(case: dict[str, Any]) -> None:
    """Qualifying data of 0 to 66 bytes are those of the caller (go-tpm-tools)."""
    sample = go_quote(case)
    assert case["verdict"] == "accept"
    assert len(sample.message) == case["message_size"]
    sample.verify()


def test_quote_over_two_banks_verifies() -> None:
    """Banks hash in the order of the selection: SHA-256 PCRs 0, 2, 7, then SHA-1 PCRs 0, 16."""
    case = vtpm_json("generic/go-tpm-tools/expected.json")["two_banks"]
    message = data(f"{GO_TPM_TOOLS}/{case['message']}")
    public = TpmtPublic.parse(data(f"{GO_TPM_TOOLS}/keys/{case['key']}.tpmt"))
    values = [one for bank, found in case["pcrs"].items() for one in pcr_values(found, bank)]
    sample = QuoteSample(
        message,
        data(f"{GO_TPM_TOOLS}/{case['signature']}"),
        public.spki,
        quote_scheme(public),
        data(f"{GO_TPM_TOOLS}/nonce.bin"),
        tuple(values),
    )
    assert [bank for bank, _, _ in sample.verify().pcrs] == ["sha256"] * 3 + ["sha1"] * 2
    one_bank = tuple(one for one in sample.pcrs if one.algorithm == "sha256")
    assert rejection(sample, pcrs=one_bank).reason == "pcr_selection"


def test_quote_requires_the_wanted_pcrs() -> None:
    """A quote over PCRs 0, 7, 10 and 14 does not stand for others, nor for another bank."""
    sample = qemu("rsa")

    def verify(*wanted: PcrSelection) -> VerifiedQuote:
        message, signature, key, scheme, _, pcrs = sample
        return verify_tpm_quote(
            message, signature, key, scheme=scheme, pcr_values=pcrs, wanted=wanted
        )

    assert verify(PcrSelection("sha256", (7, 14))).pcrs
    for wanted in (ALL_PCRS, PcrSelection("sha256", (4,)), PcrSelection("sha384", (7,))):
        with raises(VerificationError, "pcr_selection"):
            verify(wanted)


def test_quote_refuses_values_that_are_not_the_selected() -> None:
    """A value that is not selected, missing, of another bank, twice or too short is refused."""
    sample = qemu("rsa")
    first, *rest = sample.pcrs
    for pcrs in (
        (*sample.pcrs, first._replace(number=1)),
        (*sample.pcrs, first._replace(number=1 << 70)),
        rest,
        (first._replace(algorithm="sha384"), *rest),
        (first._replace(algorithm="\n"), *rest),
        (*sample.pcrs, first),
    ):
        assert rejection(sample, pcrs=tuple(pcrs)).reason == "pcr_selection"
    short = (first._replace(value=first.value[:-1]), *rest)
    assert rejection(sample, pcrs=short).reason == "pcr_digest"


def test_quote_accepts_values_in_any_order() -> None:
    """The selection gives the order of the values, not the list."""
    sample = qemu("sha256")
    assert sample.verify(pcrs=sample.pcrs[::-1]).pcrs == sample.verify().pcrs


def test_quote_refuses_another_scheme_than_the_keys() -> None:
    """Algorithm and hash are those of the key; without a scheme, an RSA key means RSASSA."""
    sample = qemu("rsa")
    for scheme in (("rsapss", "sha256"), ("rsassa", "sha384"), ("ecdsa", "sha256")):
        assert rejection(sample, scheme=scheme).reason == "tpm_quote_algorithm"
    parsed = TpmtSignature.parse(sample.signature)
    for other in (parsed._replace(algorithm="rsapss"), parsed._replace(hash_name="sha1")):
        for known in (None, sample.scheme):
            found = rejection(sample, signature=other.encode(), scheme=known)
            assert found.reason == "tpm_quote_algorithm"


def test_quote_refuses_sha1_even_if_the_key_demands_it() -> None:
    """A key whose scheme is RSASSA with SHA-1 gives no accepted quote."""
    sample = qemu("rsa")
    signature = TpmtSignature.parse(sample.signature)._replace(hash_name="sha1").encode()
    found = rejection(sample, signature=signature, scheme=("rsassa", "sha1"))
    assert found.reason == "tpm_quote_algorithm"


def test_quote_without_pcrs_is_refused() -> None:
    """A quote that selects no PCR says nothing of the machine."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = ec.generate_private_key(ec.SECP256R1())
    spki = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    attest = TpmsAttest.parse(qemu("sha256").message)
    message = attest._replace(selections=(PcrSelection("sha256", ()),)).encode()
    pair = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256())))
    r, s = (number.to_bytes(32, "big") for number in pair)
    with raises(VerificationError, "pcr_selection"):
        signature = TpmtSignature("ecdsa", "sha256", r=r, s=s).encode()
        verify_tpm_quote(message, signature, spki, pcr_values=())


@every_case("key", [b"", b"\x30\x00", bytes(300), b"0" * 5000])
def test_quote_with_malformed_key_is_refused(key: bytes) -> None:
    """A key that is not a SubjectPublicKeyInfo is refused."""
    with raises(SignatureError, "invalid_key"):
        qemu("rsa").verify(key=key)
