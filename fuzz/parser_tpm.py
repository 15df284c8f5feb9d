"""Targets: structures of a TPM."""

from attestkit.errors import FormatError, SignatureError
from attestkit.tpm import TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.algorithms import hash_size
from fuzz.parser_contract import ParserTarget, check, check_same, obeys, tried
from tests.tpm.samples import MADE_ATTEST, MADE_PUBLICS, MADE_SIGNATURES


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
    ]
