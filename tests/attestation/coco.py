"""Evidence in CoCo's JSON for tests, unsigned."""

from base64 import b64encode, urlsafe_b64encode
from typing import Any

from attestkit.tpm import PcrSelection, TpmsAttest, TpmtSignature
from tests.attestation.hcl import hcl_bytes, runtime_json

EXTRA = bytes(range(64))
ALL = (PcrSelection("sha256", tuple(range(24))),)
PCRS = [bytes([number]) * 32 for number in range(24)]


def message(extra: bytes = EXTRA) -> bytes:
    """Return a quote of PCRs 0 to 23 over some report data; its digest is not valid."""
    return TpmsAttest(b"\0\x0b" + bytes(32), extra, 1, 2, 3, True, 4, ALL, bytes(32)).encode()


def b64url(content: bytes) -> str:
    """Return padded base64url."""
    return urlsafe_b64encode(content).decode()


def azure_fields(version: int = 2, kind: str = "tdx", **members: Any) -> dict[str, Any]:
    """Return evidence of generation 1 or 2 whose user data are the report data."""
    report = hcl_bytes(runtime_json(user_data=EXTRA.hex()), kind)
    quote = {
        "signature": (b"\1" * 256).hex(),
        "message": message().hex(),
        "pcrs": [value.hex() for value in PCRS],
    }
    signed = {"td_quote": b64url(b"td quote")} if kind == "tdx" else {"vcek": b64url(b"0vcek")}
    fields = {"version": version, "tpm_quote": quote, "hcl_report": b64url(report), **signed}
    return {name: value for name, value in (fields | members).items() if value is not None}


def quote_fields(**members: Any) -> dict[str, Any]:
    """Return the quote of `azure_fields` with other members."""
    found: dict[str, Any] = azure_fields()["tpm_quote"] | members
    return found


def tpm_fields(**members: Any) -> dict[str, Any]:
    """Return evidence of a generic TPM."""
    quote = {
        "signature": b64encode(TpmtSignature("rsassa", "sha256", b"\1" * 256).encode()).decode(),
        "message": b64encode(message(EXTRA[:32])).decode(),
        "pcrs": [value.hex() for value in PCRS],
    }
    return {"ak_public": b64encode(b"0spki").decode(), "tpm_quote": quote} | members
