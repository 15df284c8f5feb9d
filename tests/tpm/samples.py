"""Quotes of real and software TPMs in the shared samples, and made structures of each kind."""

import base64
import json
import struct
from typing import Any, Final, NamedTuple

from attestkit.tpm.attest import TpmsAttest, TpmtSignature
from attestkit.tpm.pcr_selection import PcrSelection
from attestkit.tpm.public_area import TpmtPublic
from tests.vectors import HAVE_SHARED, data

EXPECTED: Final[dict[str, Any]] = json.loads(data("vtpm/expected.json") or b"{}")

AK: Final = 0x00050072  # attributes of an attestation key

MADE_ATTEST: Final = TpmsAttest(
    qualified_signer=b"\x00\x0b" + bytes(range(32)),
    extra_data=b"challenge",
    clock_ms=0x0102030405060708,
    reset_count=0x11121314,
    restart_count=0x21222324,
    safe=True,
    firmware_version=0x2019102300163636,
    selections=(PcrSelection("sha256", (0, 7, 23)), PcrSelection("sha1", (8,))),
    pcr_digest=bytes(range(100, 132)),
)
MADE_SIGNATURES: Final = (
    TpmtSignature("rsassa", "sha256", bytes(range(256))),
    TpmtSignature("rsapss", "sha512", b"\1" * 384),
    TpmtSignature("ecdsa", "sha256", r=b"\x80" + bytes(31), s=b"\1" * 31),
    TpmtSignature("ecdsa", "sha384", r=b"\2" * 48, s=b"\xff" * 48),
)
MADE_PUBLICS: Final = (
    TpmtPublic(
        "rsa", "sha256", AK, scheme="rsassa", scheme_hash="sha256", bits=2048, modulus=b"\xc1" * 256
    ),
    TpmtPublic(
        "ecc",
        "sha256",
        AK,
        scheme="ecdsa",
        scheme_hash="sha256",
        curve="p256",
        x=b"\x81" * 32,
        y=b"\2" * 31,
    ),
    TpmtPublic("ecc", "sha384", AK, scheme="ecdsa", scheme_hash="sha384", curve="p384"),
    TpmtPublic("rsa", "sha256", 0x300B2, bytes(32), 128, bits=2048, modulus=bytes(256)),
    TpmtPublic("rsa", "sha512", 0x20072, scheme="rsaes", bits=3072, exponent=3),
    TpmtPublic("rsa", "sha1", 0x20072, scheme="oaep", scheme_hash="sha1", bits=1024),
)


class QuoteSample(NamedTuple):
    """A quote of the samples, and what expected.json has of it."""

    message: bytes  # TPMS_ATTEST
    expected: dict[str, Any]
    values: dict[tuple[str, int], bytes]  # by bank and number; empty: unknown
    signature: bytes = b""  # TPMT_SIGNATURE; empty: in another form


def bank(name: str, values: dict[Any, str]) -> dict[tuple[str, int], bytes]:
    """Return the values of a bank by bank and number."""
    return {(name, int(number)): bytes.fromhex(value) for number, value in values.items()}


def _bincode(path: str) -> QuoteSample:
    """Return the quote of a file in kinvolk's bincode, which has a bare RSA signature."""
    content = data(f"vtpm/{path}")
    size = struct.unpack_from("<Q", content)[0]
    length = struct.unpack_from("<Q", content, 8 + size)[0]
    expected = EXPECTED[path]
    message = content[16 + size :][:length]
    signature = b"\0\x14\0\x0b\1\0" + content[8 : 8 + size]
    return QuoteSample(message, expected["attest"], bank("sha256", expected["pcrs"]), signature)


def _coco_json(path: str) -> QuoteSample:
    quote = json.loads(data(f"vtpm/{path}"))
    values = bank("sha256", dict(enumerate(quote["pcrs"])))
    signature = b"\0\x14\0\x0b\1\0" + bytes.fromhex(quote["signature"])
    return QuoteSample(bytes.fromhex(quote["message"]), EXPECTED[path]["attest"], values, signature)


def _vaportpm(path: str) -> QuoteSample:
    found = json.loads(data(f"vtpm/{path}"))
    name = "sha256" if "gcp" in path else "sha384"
    message = bytes.fromhex(found["attestation"]["tpm"]["ecc_p256"]["attest_data"])
    return QuoteSample(message, EXPECTED[path]["attest"], bank(name, found["pcrs"][name]))


def _qemu(name: str) -> QuoteSample:
    folder = "generic/qemu-swtpm"
    expected = EXPECTED[folder][name]["attest"]
    algorithm = "sha384" if name.endswith("384") else "sha256"
    values = bank(algorithm, json.loads(data(f"vtpm/{folder}/pcrs-{algorithm}.json")))
    selected = expected["pcr_select"][0]["pcrs"]
    values = {key: value for key, value in values.items() if key[1] in selected}
    files = [data(f"vtpm/{folder}/{name}.{end}") for end in ("msg", "sig")]
    return QuoteSample(files[0], expected, values, files[1])


def _trustee() -> QuoteSample:
    path = "generic/trustee/tpm_evidence.json"
    quote = json.loads(data(f"vtpm/{path}"))["tpm_quote"]
    message, signature = (base64.b64decode(quote[name]) for name in ("message", "signature"))
    values = bank("sha256", dict(enumerate(quote["pcrs"])))
    return QuoteSample(message, EXPECTED[path]["attest"], values, signature)


def _alone(path: str, signature: str = "") -> QuoteSample:
    raw = data(f"vtpm/{signature}") if signature else b""
    return QuoteSample(data(f"vtpm/{path}"), EXPECTED[path]["attest"], {}, raw)


def quote_samples() -> dict[str, QuoteSample]:
    """Return the quotes of the samples by their path; none without the samples."""
    if not HAVE_SHARED:
        return {}
    snp = "azure/trustee-snp/tpm-quote"
    return {
        "azure/kinvolk": _bincode("azure/kinvolk/quote.bin"),
        "azure/trustee-tdx/bincode": _bincode("azure/trustee-tdx/quote.bin"),
        "azure/trustee-tdx": _coco_json("azure/trustee-tdx/tpm-quote-v1.json"),
        "azure/trustee-snp": _coco_json(f"{snp}-v1.json"),
        "azure/trustee-snp/other": _alone(f"{snp}.msg"),
        "gcp/vaportpm": _vaportpm("gcp/vaportpm/test-gcp-tdx-fixture.json"),
        "aws/vaportpm": _vaportpm("aws/vaportpm/test-nitro-fixture.json"),
        "generic/dstack": _alone("generic/dstack/tpm_quote_sample.bin"),
        "generic/trustee": _trustee(),
        **{f"qemu-swtpm/{one}": _qemu(f"quote-{one}") for one in ("sha256", "sha384", "rsa")},
    }


QUOTES: Final = quote_samples()
