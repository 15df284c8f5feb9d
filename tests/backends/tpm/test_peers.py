"""Other TPM software agrees: tpm2-tools, and tpm2-pytss (Python bindings of tpm2-tss).

Both use the same swtpm as attestkit, one after the other, over a UNIX socket. tpm2-pytss is
Debian's, or in an environment of its own, whose Python $ATTESTKIT_PYTSS_PYTHON names.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from attestkit._crypto.pem import encode_pem
from attestkit._crypto.public_key import PublicVerificationKey
from attestkit.backends.tpm import TpmBackend
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.quote_reader import collect_quote
from attestkit.backends.tpm.transports import StreamTransport
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.handles import ENDORSEMENT
from tests.backends.tpm.templates import ECC_AK, EVERY_PCR, P384_AK, RSA_AK, SHA256
from tests.machines.software_tpm import SWTPM, needs_swtpm
from tests.processes import run_program

Connect: TypeAlias = Callable[[], AbstractContextManager[TpmClient]]

AK: Final = 0x81010002
NONCE: Final = bytes(range(32))
TOOLS: Final = shutil.which("tpm2_checkquote")
needs_tools = pytest.mark.skipif(TOOLS is None, reason="tpm2-tools are not installed")


# PyPI has no wheel of tpm2-pytss, and CI runs no build scripts: Debian's package is built.
DEBIAN_PYTHON: Final = "/usr/bin/python3"
DEBIAN_PYTSS: Final = Path("/usr/lib/python3/dist-packages/tpm2_pytss")


def find_pytss() -> str | None:
    """Return the Python that has tpm2-pytss."""
    if named := os.environ.get("ATTESTKIT_PYTSS_PYTHON"):
        return named
    if importlib.util.find_spec("tpm2_pytss"):
        return sys.executable
    return DEBIAN_PYTHON if DEBIAN_PYTSS.is_dir() else None


PYTSS: Final = find_pytss()
needs_pytss = pytest.mark.skipif(
    PYTSS is None, reason="tpm2-pytss is not installed, and $ATTESTKIT_PYTSS_PYTHON not set"
)

pytestmark = needs_swtpm


@pytest.fixture
def tpm_socket(tmp_path: Path) -> Iterator[Path]:
    """Run swtpm on a UNIX socket; yield its path."""
    assert SWTPM is not None
    path, state = tmp_path / "sock", tmp_path / "state"
    state.mkdir()
    control = Path(f"{path}.ctrl")  # where tpm2-tss expects it
    command = [
        *(SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={state}"),
        *("--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={control}"),
        *("--flags", "not-need-init,startup-clear", "--daemon"),  # returns when it listens
    ]
    subprocess.run(command, check=True)
    try:
        yield path
    finally:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(control))
            connection.sendall(b"\0\0\0\3")  # CMD_SHUTDOWN
            assert connection.recv(4) == bytes(4)


@pytest.fixture
def connect(tpm_socket: Path) -> Connect:
    """Return a function that connects to the TPM."""

    @contextmanager
    def connected() -> Iterator[TpmClient]:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(tpm_socket))
        client = TpmClient(StreamTransport(connection, "swtpm"), seconds=60)
        try:
            yield client
        finally:
            client.close()

    return connected


@pytest.fixture
def tool(tpm_socket: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs one of tpm2-tools on the TPM."""
    folder = tmp_path / "tools"
    folder.mkdir()

    def run(name: str, *words: object) -> str:
        environment = {**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={tpm_socket}"}
        done = run_program(f"tpm2_{name}", *map(str, words), env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def checks(folder: Path, values: bytes, nonce: bytes, pcrs: str) -> bool:
    """Return whether tpm2_checkquote accepts the quote in a folder."""
    (folder / "quote.pcrs").write_bytes(values)
    done = run_program(
        *("tpm2_checkquote", "-Q", "-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig"),
        *("-g", "sha256", "-q", nonce.hex(), "-f", "quote.pcrs", "-F", "values", "-l", pcrs),
        cwd=folder,
    )
    return done.returncode == 0


@needs_tools
@pytest.mark.parametrize("template", [RSA_AK, ECC_AK], ids=["rsa", "p256"])
def test_tools_accept_quote_of_attestkit(
    connect: Connect, tmp_path: Path, template: TpmtPublic
) -> None:
    """tpm2_checkquote accepts our quote with its values, and no other nonce or value."""
    selections = (PcrSelection("sha256", (0, 7, 8, 14)),)
    with connect() as tpm:
        tpm.pcr_extend(8, {"sha256": b"\1" * 32})
        with tpm.primary_key(ENDORSEMENT, template) as key:
            found = collect_quote(tpm, key.handle, NONCE, selections)
    (tmp_path / "ak.pem").write_text(encode_pem("PUBLIC KEY", key.public.spki))
    (tmp_path / "quote.msg").write_bytes(found.message)
    (tmp_path / "quote.sig").write_bytes(found.signature)
    values = b"".join(one.value for one in found.pcr_values)
    assert checks(tmp_path, values, NONCE, "sha256:0,7,8,14")
    assert not checks(tmp_path, values, bytes(32), "sha256:0,7,8,14")
    assert not checks(tmp_path, bytes(len(values)), NONCE, "sha256:0,7,8,14")


@needs_tools
def test_attestkit_reads_quote_of_tools(
    connect: Connect, tool: Callable[..., str], tmp_path: Path
) -> None:
    """Key, quote and signature that tpm2-tools write are read, and fit the values we read."""
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
    tool("createprimary", "-Q", "-C", "e", "-G", "rsa2048:rsassa-sha256:null", "-g", "sha256",
         "-a", attributes, "-c", "ak.ctx")  # fmt: skip
    tool("evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", hex(AK))
    tool("flushcontext", "-t")
    tool("pcrextend", f"8:sha256={NONCE.hex()}")
    tool("readpublic", "-Q", "-c", hex(AK), "-f", "tpmt", "-o", "ak.public", "-n", "ak.name")
    tool("readpublic", "-Q", "-c", hex(AK), "-f", "der", "-o", "ak.der")
    tool("quote", "-Q", "-c", hex(AK), "-l", "sha256:all+sha384:8", "-q", NONCE.hex(),
         "-m", "q.msg", "-s", "q.sig", "-o", "q.pcrs", "-g", "sha256")  # fmt: skip
    folder = tmp_path / "tools"
    read = {path.name: path.read_bytes() for path in folder.iterdir()}
    key, quote = TpmtPublic.parse(read["ak.public"]), TpmsAttest.parse(read["q.msg"])
    signature = TpmtSignature.parse(read["q.sig"])
    assert (key.encode(), key.name, key.spki) == tuple(
        read[name] for name in ("ak.public", "ak.name", "ak.der")
    )
    key.require_attestation_key()
    assert (quote.encode(), signature.encode()) == (read["q.msg"], read["q.sig"])
    assert quote.extra_data == NONCE
    assert quote.qualified_signer == key.qualified_name(ENDORSEMENT)
    assert quote.selections == (*SHA256, PcrSelection("sha384", (8,)))
    with connect() as tpm:
        values = tpm.pcr_read(quote.selections)
        assert pcr_digest(quote.selections, values, "sha256") == quote.pcr_digest
        persistent = tpm.read_public(AK)
        assert (persistent.public, persistent.name) == (key, key.name)
        backend = TpmBackend(client=tpm)
        part = backend.collect_evidence(bytes(64)).vtpm_quote
    assert part.ak_public == read["ak.public"]
    for message, raw in ((read["q.msg"], read["q.sig"]), (part.message, part.signature)):
        signed = TpmtSignature.parse(raw).signature
        PublicVerificationKey(key.spki).verify("rsassa", "sha256", signed, message)


@needs_tools
def test_tools_and_attestkit_share_nv_indices(
    connect: Connect, tool: Callable[..., str], tmp_path: Path
) -> None:
    """Content that one writes into an NV index is read by the other; the names are equal."""
    data = bytes(range(256)) * 8
    with connect() as tpm:
        tpm.nv_define(0x01500000, len(data))
        tpm.nv_write(0x01500000, data)
        name = tpm.nv_read_public(0x01500000).name
    tool("nvread", "-C", "o", "0x01500000", "-o", "read.bin")
    assert (tmp_path / "tools/read.bin").read_bytes() == data
    assert name.hex() in tool("nvreadpublic", "0x01500000").lower()
    (tmp_path / "tools/written.bin").write_bytes(data[:-1])
    tool("nvdefine", "-Q", "-C", "o", "-s", len(data) - 1, "-a", "authread|authwrite", "0x01500001")
    tool("nvwrite", "-Q", "-C", "0x01500001", "-i", "written.bin", "0x01500001")
    with connect() as tpm:
        assert tpm.read_nv_index(0x01500001) == data[:-1]


# Prints what tpm2-pytss finds in our structures, and a quote of its own.
PYTSS_SCRIPT: Final = """
import json, sys
from tpm2_pytss import *
given = {name: bytes.fromhex(text) for name, text in json.load(sys.stdin).items()}
key, _ = TPMT_PUBLIC.unmarshal(given["public"])
signature, rest = TPMT_SIGNATURE.unmarshal(given["signature"])
message, _ = TPMS_ATTEST.unmarshal(given["message"])
signature.verify_signature(key, given["message"])
found = {
    "name": bytes(key.get_name()).hex(),
    "spki": key.to_der().hex(),
    "extra_data": bytes(message.extraData).hex(),
    "clock": int(message.clockInfo.clock),
    "resets": int(message.clockInfo.resetCount),
    "restarts": int(message.clockInfo.restartCount),
    "safe": int(message.clockInfo.safe),
    "firmware": int(message.firmwareVersion),
    "signer": bytes(message.qualifiedSigner).hex(),
    "digest": bytes(message.attested.quote.pcrDigest).hex(),
    "selection": str(message.attested.quote.pcrSelect),
    "whole": rest == len(given["signature"]),
}
with ESAPI(sys.argv[1]) as tpm:
    handle = tpm.tr_from_tpmpublic(int(sys.argv[2], 0))
    public, name, _ = tpm.read_public(handle)
    quoted, signed = tpm.quote(
        handle, TPML_PCR_SELECTION.parse("sha256:all+sha384:0,8"), TPM2B_DATA(b"of pytss"))
    found["theirs"] = {
        "message": bytes(quoted).hex(),
        "signature": signed.marshal().hex(),
        "public": public.publicArea.marshal().hex(),
    }
print(json.dumps(found))
"""


@needs_pytss
@pytest.mark.parametrize("template", [RSA_AK, ECC_AK, P384_AK], ids=["rsa", "p256", "p384"])
def test_pytss_agrees(connect: Connect, tpm_socket: Path, template: TpmtPublic) -> None:
    """tpm2-pytss finds the same fields in our structures, and we in its own."""
    assert PYTSS is not None
    with connect() as tpm, tpm.primary_key(ENDORSEMENT, template) as key:
        tpm.evict_control(key.handle, AK)
        ours = collect_quote(tpm, AK, NONCE, SHA256)
    given = {"public": key.raw, "message": ours.message, "signature": ours.signature}
    done = run_program(
        *(PYTSS, "-c", PYTSS_SCRIPT, f"swtpm:path={tpm_socket}", hex(AK)),
        input=json.dumps({name: value.hex() for name, value in given.items()}),
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    quote = ours.quote
    assert found["name"] == key.public.name.hex()
    assert found["spki"] == key.public.spki.hex()
    assert found["extra_data"] == NONCE.hex()
    assert found["clock"] == quote.clock_ms
    assert (found["resets"], found["restarts"]) == (quote.reset_count, quote.restart_count)
    assert (found["safe"], found["firmware"]) == (quote.safe, quote.firmware_version)
    assert found["signer"] == quote.qualified_signer.hex()
    assert found["digest"] == quote.pcr_digest.hex()
    assert found["whole"]
    theirs = {name: bytes.fromhex(text) for name, text in found["theirs"].items()}
    assert TpmtPublic.parse(theirs["public"]) == key.public
    other = TpmsAttest.parse(theirs["message"])
    assert other.encode() == theirs["message"]
    assert other.extra_data == b"of pytss"
    signature = TpmtSignature.parse(theirs["signature"])
    assert signature.encode() == theirs["signature"]
    banks = (PcrSelection("sha256", EVERY_PCR), PcrSelection("sha384", (0, 8)))
    assert other.selections == banks
    with connect() as tpm:
        values = tpm.pcr_read(banks)
    assert pcr_digest(banks, values, signature.hash_name) == other.pcr_digest
