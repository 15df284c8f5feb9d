"""`attestkit show`: certificates in quotes."""

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.sgx_pki_writer import Authority, Window, issue_certificate
from tests.cli import evidence_files, schemas
from tests.cli.evidence_files import HOSTILE
from tests.quotes import made_quote

Capture = pytest.CaptureFixture[str]


def _hostile_chain() -> bytes:
    """Return a PEM chain with control characters in a name."""
    authority = Authority(HOSTILE, P256Key.from_scalar(bytes(31) + b"\x07"))
    validity = Window(*(datetime(year, 1, 1, tzinfo=timezone.utc) for year in (2020, 2040)))
    der = issue_certificate(
        authority, authority, serial=1, validity=validity, crl_url="https://x", path_length=0
    )
    return encode_pem("CERTIFICATE", der).encode()


def test_show_quote_decodes_its_certificates(tmp_path: Path, capsys: Capture) -> None:
    """A quote, alone or in evidence, is shown with its chain and the platform's FMSPC."""
    files = evidence_files.write(tmp_path)
    for path in (files.quote, files.evidence):
        assert main(["show", "--json", str(path)]) == 0
        found = schemas.check("show", capsys.readouterr().out)
        pck, intermediate, root = found.get("quote", found)["certification"]["certificates"]
        assert pck["subject"].startswith("CN=Intel SGX PCK Certificate, ")
        assert pck["issuer"] == intermediate["subject"]
        assert intermediate["issuer"] == root["issuer"] == root["subject"]
        assert pck["sgx_extension"]["fmspc"] == "a77e57000000"
        assert main(["show", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "fmspc       a77e57000000\n" in shown
        assert f"serial_number  {pck['serial_number']}\n" in shown
        assert b"BEGIN CERTIFICATE".hex() not in shown


@pytest.mark.parametrize(
    ("kind", "data", "error"),
    [
        (5, b"\x30\0\x30\1", "truncated"),
        (5, b"\x30\0", "certificate"),
        (5, _hostile_chain(), None),
        (1, b"ppid", None),
    ],
)
def test_show_quote_with_untrusted_certification(
    kind: int, data: bytes, error: str | None, tmp_path: Path, capsys: Capture
) -> None:
    """A malformed chain is an error beside the other fields; names are escaped."""
    path = tmp_path / "quote"
    path.write_bytes(made_quote(certification=(kind, data)))
    assert main(["show", "--json", str(path)]) == 0
    found = schemas.check("show", capsys.readouterr().out)["certification"]
    assert found["data"] == data.hex()
    assert error is None or error in json.dumps(found)
    assert main(["show", str(path)]) == 0
    assert not set("\x1b\x07\x00\u202e") & set(capsys.readouterr().out)
