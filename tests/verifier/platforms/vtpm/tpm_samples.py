"""Quotes of TPMs in the shared samples, in one form."""

import json
from typing import Any, Final, NamedTuple

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit.attestation.go_tpm_tools import GoTpmToolsQuote
from attestkit.attestation.wire.evidence_parts import PcrValue
from attestkit.tpm import TpmsAttest, TpmtPublic, TpmtSignature
from attestkit.verifier.platforms.vtpm.quote import VerifiedQuote, quote_scheme, verify_tpm_quote
from tests.vectors import HAVE_SHARED, data

GO_TPM_TOOLS: Final = "vtpm/generic/go-tpm-tools"
_QEMU: Final = "vtpm/generic/qemu-swtpm"


class QuoteSample(NamedTuple):
    """A quote with what a verifier must know."""

    message: bytes
    signature: bytes
    key: bytes
    scheme: tuple[str, str] | None
    extra: bytes
    pcrs: tuple[PcrValue, ...]

    def verify(self, **changes: Any) -> VerifiedQuote:
        """Verify the quote, with some changes of it."""
        one = self._replace(**changes)
        found = verify_tpm_quote(
            one.message, one.signature, one.key, scheme=one.scheme, pcr_values=one.pcrs
        )
        assert found.attest.extra_data == one.extra
        return found


def vtpm_json(name: str) -> Any:
    """Return a document of `data/vtpm`, or an empty object without the samples."""
    return json.loads(data(f"vtpm/{name}")) if HAVE_SHARED else {}


def go_cases(group: str) -> list[dict[str, Any]]:
    """Return the cases of a group in `generic/go-tpm-tools/expected.json`."""
    found: list[dict[str, Any]] = vtpm_json("generic/go-tpm-tools/expected.json").get(group, [])
    return found


def pcr_values(values: dict[str, str], bank: str = "sha256") -> tuple[PcrValue, ...]:
    """Return PCR values of a JSON object."""
    return tuple(PcrValue(int(n), bank, bytes.fromhex(value)) for n, value in values.items())


def qemu(name: str) -> QuoteSample:
    """Return a quote of swtpm under QEMU: sha256, sha384 or rsa."""
    public = TpmtPublic.parse(data(f"{_QEMU}/ak-{'rsa' if name == 'rsa' else 'ecc'}.public"))
    bank = "sha384" if name == "sha384" else "sha256"
    message = data(f"{_QEMU}/quote-{name}.msg")
    attest = TpmsAttest.parse(message)
    values = pcr_values(vtpm_json(f"generic/qemu-swtpm/pcrs-{bank}.json"), bank)
    chosen = tuple(one for one in values if one.number in attest.selections[0].pcrs)
    signature = data(f"{_QEMU}/quote-{name}.sig")
    extra = {"rsa": b"", "sha384": b"another nonce"}.get(name, attest.extra_data)
    return QuoteSample(message, signature, public.spki, quote_scheme(public), extra, chosen)


def go_quote(case: dict[str, Any]) -> QuoteSample:
    """Return a case of the group `quotes` of go-tpm-tools."""
    quote = GoTpmToolsQuote.parse(data(f"{GO_TPM_TOOLS}/{case['file']}"))
    public = TpmtPublic.parse(data(f"{GO_TPM_TOOLS}/keys/{case['key']}.tpmt"))
    key = data(f"{GO_TPM_TOOLS}/keys/{case['key']}.spki.der")
    extra = bytes.fromhex(case["nonce"])
    return QuoteSample(
        quote.message, quote.signature, key, quote_scheme(public), extra, quote.pcr_values
    )


def vaportpm(name: str, bank: str) -> QuoteSample:
    """Return a quote of a fixture of vaportpm, whose signature is in DER."""
    found = vtpm_json(name)
    message = bytes.fromhex(found["attestation"]["tpm"]["ecc_p256"]["attest_data"])
    pair = DerReader(bytes.fromhex(found["attestation"]["tpm"]["ecc_p256"]["signature"]))
    pair = pair.enter(SEQUENCE)
    r, s = (pair.content(INTEGER).lstrip(b"\0") for _ in range(2))
    point = found["ak_pubkeys"]["ecc_p256"]
    public = TpmtPublic(
        "ecc",
        "sha256",
        0,
        curve="p256",
        x=bytes.fromhex(point["x"]),
        y=bytes.fromhex(point["y"]),
    )
    signature = TpmtSignature("ecdsa", "sha256", r=r, s=s).encode()
    extra = bytes.fromhex(found["nonce"])
    return QuoteSample(
        message, signature, public.spki, None, extra, pcr_values(found["pcrs"][bank], bank)
    )
