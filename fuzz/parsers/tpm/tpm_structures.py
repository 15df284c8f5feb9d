"""Targets: structures of a TPM."""

from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation.go_tpm_tools import (
    GceInstanceInfo,
    GoTpmToolsMessage,
    GoTpmToolsQuote,
)
from attestkit.attestation.wire.evidence_parts import PcrValue
from attestkit.errors import FormatError, SignatureError
from attestkit.tpm import TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.algorithms import hash_size
from attestkit.verifier.platforms.vtpm.attestation_key import AttestationKey, read_attestation_key
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, tried
from tests.tpm.samples import MADE_ATTEST, MADE_PUBLICS, MADE_SIGNATURES

_SPKI = P256Key.from_scalar(b"\1" * 32).spki_der


def attests() -> list[bytes]:
    """Return quotes over two banks, over one, and over none."""
    quotes = (
        MADE_ATTEST,
        MADE_ATTEST._replace(extra_data=bytes(66), selections=MADE_ATTEST.selections[:1]),
        MADE_ATTEST._replace(qualified_signer=b"", selections=(), pcr_digest=bytes(48)),
    )
    return [quote.encode() for quote in quotes]


def _attest(raw: bytes, quote: TpmsAttest) -> None:
    check_same("the quote encoded again", quote.encode(), raw)
    values = {
        (one.bank, pcr): bytes(hash_size(one.bank)) for one in quote.selections for pcr in one.pcrs
    }
    check("a digest", pcr_digest(quote.selections, values, "sha256"))


def _signature(raw: bytes, signature: TpmtSignature) -> None:
    check_same("the signature encoded again", signature.encode(), raw)
    if signature.algorithm == "ecdsa":
        check("DER of a short length", len(signature.der) <= 8 + 2 * 49)


def _public(raw: bytes, key: TpmtPublic) -> None:
    check_same("the public area encoded again", key.encode(), raw)
    check_same("a key", tried(lambda: key.spki, len(raw), FormatError), key.has_key)
    tried(key.require_attestation_key, None, SignatureError)


def messages() -> list[bytes]:
    """Return messages of go-tpm-tools: with all parts, with few, and with fields out of order."""
    values = tuple(PcrValue(number, "sha256", bytes(32)) for number in (2, 0, 1))
    quote = GoTpmToolsQuote(MADE_ATTEST.encode(), MADE_SIGNATURES[0].encode(), values)
    public = MADE_PUBLICS[-1].encode()
    whole = GoTpmToolsMessage(
        public,
        (quote, quote._replace(pcr_values=())),
        b"log",
        GceInstanceInfo("zone", "project", 1, "name", 1 << 63),
        b"cel",
        b"certificate",
        (b"one", b"two"),
        "tdx",
        b"quote",
    )
    small = GoTpmToolsMessage(public, (quote,)).encode()
    return [whole.encode(), small, b"\x52\0" + small, GoTpmToolsMessage(tee="sev-snp").encode()]


def _message(_raw: bytes, message: GoTpmToolsMessage) -> None:
    again = GoTpmToolsMessage.parse(message.encode())
    check_same("the message encoded again", again, message._replace(unknown_fields=()))


def _key(raw: bytes, key: AttestationKey) -> None:
    check("the key of a public area", raw[0] == 0x30 or key.is_restricted)
    check_same("the same key", read_attestation_key(key.spki, ()).spki, key.spki)
    tried(lambda: read_attestation_key(raw, (raw,)), None, SignatureError)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "tpm_attest",
            obeys(TpmsAttest.parse, FormatError, accepted=_attest),
            attests,
            max_len=512,
        ),
        ParserTarget(
            "tpm_signature",
            obeys(TpmtSignature.parse, FormatError, accepted=_signature),
            lambda: [one.encode() for one in MADE_SIGNATURES],
            max_len=600,
        ),
        ParserTarget(
            "tpm_public",
            obeys(TpmtPublic.parse, FormatError, accepted=_public),
            lambda: [one.encode() for one in MADE_PUBLICS],
            max_len=700,
        ),
        ParserTarget(
            "go_tpm_tools",
            obeys(GoTpmToolsMessage.parse, FormatError, accepted=_message),
            messages,
            max_len=2048,
        ),
        ParserTarget(
            "attestation_key",
            obeys(
                lambda raw: read_attestation_key(raw, ()),
                FormatError,
                SignatureError,
                accepted=_key,
            ),
            lambda: [
                _SPKI,
                *map(TpmtPublic.encode, MADE_PUBLICS),
            ],
            "x509.dict",
            700,
        ),
    ]
