"""Every parser of untrusted bytes, its hostile input, and its bounds."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import Final, NamedTuple

from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509 import cert_path
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._crypto.x509.sgx_extension import read_sgx_extension
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import (
    Authority,
    chain_window,
    crl_window,
    issue_crl,
)
from attestkit._formats import toml
from attestkit._formats.cbor import read_value
from attestkit._formats.strict_json import check_depth
from attestkit._native import _python, _python_log, _python_quote
from attestkit.attestation import Attestation
from attestkit.attestation.app_info import AppInfo
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.attestation.launch import os_image, vm_config
from attestkit.attestation.launch.mr_config import MrConfig
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.snp import SnpCertificates
from attestkit.backends.recording.recording_file import parse_recording
from attestkit.collateral import Collateral
from attestkit.collateral.intel_collateral import split_signed
from attestkit.dstack import env_encryption
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.sys_config import SysConfig
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog, TpmEventLog, agent_json
from attestkit.event_log.ima import ImaLog
from attestkit.event_log.runtime_events import parse_runtime_lines
from attestkit.gpu import GpuEvidence
from attestkit.gpu.rim.document import MAX_SIZE as XML_SIZE
from attestkit.gpu.rim.document import read_document
from attestkit.gpu.rim.xml_signature import canonical_bytes
from attestkit.keys import AppKeys
from attestkit.keys.hkdf import derive_p256
from attestkit.quote import Quote
from attestkit.serve.config.agent_config_file import parse_config
from attestkit.serve.container_logs.formatting import LogFormatter
from attestkit.serve.container_logs.view import FrameSplitter, LineSplitter
from attestkit.serve.docker.responses import read_list
from attestkit.serve.rpc import json_codec, protobuf_codec, query_codec
from attestkit.serve.rpc.messages import GetTlsKeyArgs
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.verifier.dcap.tcb_info import read_qe_identity, read_tcb_info
from attestkit.verifier.ear.signed_token import MAX_TOKEN, EarPublicKey
from attestkit.verifier.evidence.formats import EvidenceBundle
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from benchmarks.evidence.quotes import eight_columns
from tests.bounds import shapes, verdicts
from tests.bounds.shapes import Shape, Shapes, json_event, repeated
from tests.samples.quotes import made_quote


class Parser(NamedTuple):
    """A parser and its bounds per byte of input."""

    read: Callable[[bytes], object]
    shapes: Shapes
    memory: int  # bytes, beyond the constant part
    steps: int  # lines of Python
    most: int = 1 << 20  # bytes to measure: the parser's own limit, or a sufficient size
    least: int = 1  # factor of the smallest size, if the parser rejects smaller ones early


class Case(NamedTuple):
    """One shape for one parser."""

    parser: str
    shape: str
    make: Shape


def run(parser: Parser, data: bytes) -> None:
    """Parse `data`, ignoring AttestKitError only."""
    with suppress(AttestKitError):
        parser.read(data)


def inside(before: bytes, after: bytes = b"}") -> dict[str, Shape]:
    """Return the JSON shapes, and the same as the value of a member after `before`."""

    def wrapped(shape: Shape) -> Shape:
        return lambda size: before + shape(size) + after

    names: dict[str, Shape] = dict(shapes.JSON)
    return names | {f"{name}, inside": wrapped(shape) for name, shape in shapes.JSON.items()}


def format_output(pieces: Callable[[bytes], list[bytes]], data: bytes) -> None:
    """Format container output as plain text, in pieces."""
    form = LogFormatter(text=True, bare=True, ansi=False)
    for piece in pieces(data):
        form.write("stdout", piece)
    form.end()


def split_frames(
    splitter: Callable[[], FrameSplitter | LineSplitter], size: int, data: bytes
) -> None:
    """Split a container log that arrives in pieces of `size` bytes."""
    found = splitter()
    for at in range(0, len(data), size):
        for _ in found.feed(data[at : at + size]):
            pass
    found.end()


def bytewise(data: bytes) -> list[bytes]:
    """Return the bytes one by one."""
    return [data[at : at + 1] for at in range(len(data))]


def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """Return a parser of bytes for a parser of text."""
    return lambda data: read(data.decode())


def parse_vm_config(data: bytes) -> VmConfig:
    """Parse a VM configuration without its cache."""
    vm_config._parse_cached.cache_clear()
    return VmConfig.parse(data.decode())


# -- X.509 -------------------------------------------------------------------------------------


def tlv(tag: int, content: bytes) -> bytes:
    """Return a DER element."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def certificate(extensions: bytes, subject: bytes = b"\x30\0") -> bytes:
    """Return an unsigned certificate with these extensions."""
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    validity = tlv(0x30, tlv(0x17, b"250101000000Z") + tlv(0x17, b"350101000000Z"))
    head = b"\xa0\3\2\1\2\2\1\1" + algorithm + b"\x30\0" + validity + subject + KEY.spki_der
    body = tlv(0x30, head + tlv(0xA3, tlv(0x30, extensions)))
    return tlv(0x30, body + algorithm + tlv(3, b"\0" + bytes(64)))


def extension(oid: bytes, value: bytes) -> bytes:
    """Return an extension that is not critical."""
    return tlv(0x30, tlv(6, oid) + tlv(4, value))


def create_extension_of_items(oid: str, item: bytes) -> Shape:
    """Return certificates whose one extension is a sequence of many items."""
    return lambda size: certificate(
        extension(bytes.fromhex(oid), tlv(0x30, item * (size // len(item) + 1)))
    )


def many_extensions(size: int) -> bytes:
    """Return a certificate with many empty extensions of different OIDs."""
    ends = [bytes([n >> 7 & 0x7F, n & 0x7F]) for n in range(min(size // 10 + 1, 1 << 14))]
    return certificate(b"".join([extension(b"\x2a\x03" + end, b"") for end in ends]))


def long_name(size: int) -> bytes:
    """Return a certificate whose subject has many empty common names."""
    part = tlv(0x31, tlv(0x30, tlv(6, b"\x55\4\3") + tlv(12, b"")))
    return certificate(b"", tlv(0x30, part * (size // len(part) + 1)))


def crl(size: int) -> bytes:
    """Return a CRL of many entries."""
    return issue_crl(Authority("a", KEY), window=WINDOW, number=1, revoked=range(1, size // 30 + 2))


def read_all_fields(data: bytes) -> None:
    """Parse a certificate and all its fields."""
    found = read_certificate(data)
    _ = found.subject, found.alt_names, found.valid_from, found.content("1.2.3")


KEY: Final = derive_p256(b"\1" * 32)
WINDOW: Final = Window(
    datetime(2025, 1, 1, tzinfo=timezone.utc), datetime(2035, 1, 1, tzinfo=timezone.utc)
)
CERTIFICATES: Final[Shapes] = {
    "names": create_extension_of_items("551d11", b"\x82\0"),
    "name forms": create_extension_of_items("551d11", b"\xa4\2\x30\0"),
    "purposes": create_extension_of_items("551d25", b"\6\1\x2a"),
    "policies": create_extension_of_items("551d20", b"\x30\3\6\1\x2a"),
    "extensions": many_extensions,
    "a long name": long_name,
    "key usage": lambda size: certificate(
        extension(b"\x55\x1d\x0f", tlv(3, b"\0" + b"\xff" * size))
    ),
    "ones": repeated(b"\xff", b"\x30\x83"),
    "sequences": repeated(b"\x30\x80"),
}
PEM: Final[Shapes] = {
    "certificates": lambda size: (
        encode_pem("CERTIFICATE", certificate(b"")).encode() * (size // 400 + 1)
    ),
    "empty certificates": repeated(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"),
    "begun certificates": repeated(b"-----BEGIN CERTIFICATE-----\n"),
    "one without an end": repeated(b"A", b"-----BEGIN CERTIFICATE-----\n"),
    "blanks": repeated(b" ", b"-----BEGIN CERTIFICATE-----\n", b"-"),
    "dashes": repeated(b"-"),
}

# -- other formats --------------------------------------------------------------------------------


def table(size: int) -> bytes:
    """Return a certificate table with many small certificates."""
    count = size // 26 + 1
    start = 24 * (count + 1)
    entries = [
        number.to_bytes(16, "big") + (start + number).to_bytes(4, "little") + b"\1\0\0\0"
        for number in range(1, count)
    ]
    return b"".join(entries) + bytes(start - 24 * len(entries)) + b"\x30" * (count + 1)


COMPOSE: Final = b'{"manifest_version":1,"name":"","runner":"bash","x":'
SIGNED: Final = b'{"signature":"' + b"00" * 64 + b'","tcbInfo":{"x":'
HEADER: Final = b'{"format":"attestkit recording","version":1}\n'


def create_event_log(encoding: str) -> Shape:
    """Return Canonical Event Logs of many small records of one register."""
    event = Event(1, 4, bytes(48), "", b"")
    return lambda size: EventLog([event] * (size // 80 + 1)).to_cel(encoding)


def create_tlv_record(content: bytes) -> bytes:
    """Return a record of RTMR3 in TLV with that content."""
    digests = b"\3" + (53).to_bytes(4, "big") + b"\x0c\0\0\0\x30" + bytes(48)
    return bytes.fromhex("000000000100 010000000104") + digests + content


def runtime_json(shape: Shape) -> Shape:
    """Return TLV records whose runtime event has an unknown member of that shape."""

    def made(size: int) -> bytes:
        data = b'{"x":' + shape(size) + b"}"
        event = bytes.fromhex("00000000 0408000001 01") + len(data).to_bytes(4, "big") + data
        return create_tlv_record(b"\5" + len(event).to_bytes(4, "big") + event)

    return made


def statements(size: int) -> bytes:
    """Return a TLV record of many management statements."""
    content = bytes.fromhex("0200000000") * (size // 5 + 1)
    return create_tlv_record(b"\4" + len(content).to_bytes(4, "big") + content)


CEL_TLV: Final[Shapes] = {
    "records": create_event_log("tlv"),
    "management": statements,
    **{f"{name}, in a runtime event": runtime_json(shape) for name, shape in shapes.JSON.items()},
}
CEL_CBOR: Final[Shapes] = {
    "records": create_event_log("cbor"),
    "sequence": lambda size: b"\xa5" + create_event_log("cbor")(size).partition(b"\xa5")[2],
    "small numbers": repeated(b"\0", b"\x9a\0\1\0\0"),
    "nested arrays": repeated(b"\x81"),
}
CEL_JSON: Final[Shapes] = {
    "records": create_event_log("json"),
    "marks": repeated(b"\x1e"),
    "blanks": repeated(b" ", b"["),
    "management": repeated(
        b'{"type":2},',
        b'[{"recnum":0,"pcr":1,"digests":[],"content_type":4,"content":[',
        b'{"type":2}]}]',
    ),
    **inside(b'[{"recnum":', b"}]"),
}

DEVICE: Final = b'{"evidence":"11e0","certificate":"%b"' % b64encode(
    b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
)
"""Members of a GPU's evidence."""

LISTED: Final = b'{"Id":"","Image":"","State":"","Status":"","Created":0},'

PARSERS: Final[Mapping[str, Parser]] = {
    "quote": Parser(Quote.parse, shapes.QUOTE, 4, 1, 131_072),
    "quote, plain Python": Parser(_python_quote.quote_layout, shapes.QUOTE, 4, 1, 131_072),
    "certificates of a quote": Parser(lambda data: split_chain(data, 0), PEM, 4, 1, 131_072),
    "quotes in columns": Parser(eight_columns, {"quotes": repeated(made_quote())}, 4, 1),
    "CCEL": Parser(lambda data: EventLog.from_ccel(data).events, shapes.CCEL, 40, 2),
    "CCEL, plain Python": Parser(_python_log.ccel_walk, shapes.CCEL, 10, 4),
    "TPM log": Parser(TpmEventLog.parse, shapes.TPM, 40, 4),
    "TPM log, plain Python": Parser(_python_log.tpm_walk, shapes.TPM, 16, 6),
    "IMA log": Parser(lambda data: ImaLog.parse(data).replay(), shapes.IMA, 12, 3),
    "message of go-tpm-tools": Parser(GoTpmToolsMessage.parse, shapes.GO_TPM_TOOLS, 120, 24),
    "agent's log": Parser(
        lambda data: EventLog.from_json(data).events,
        inside(json_event(b"\0").partition(b"\0")[0], b"}]"),
        45,
        4,
    ),
    "agent's log, plain Python": Parser(
        agent_json.parse, inside(json_event(b"\0").partition(b"\0")[0], b"}]"), 45, 8
    ),
    "CEL in TLV": Parser(lambda data: EventLog.from_cel(data).events, CEL_TLV, 45, 4),
    "CEL in CBOR": Parser(lambda data: EventLog.from_cel(data).events, CEL_CBOR, 16, 12),
    "CEL in JSON": Parser(lambda data: EventLog.from_cel(data).events, CEL_JSON, 45, 4),
    "JSON's depth": Parser(check_depth, shapes.JSON, 6, 2),
    "JSON's depth, plain Python": Parser(
        lambda data: _python.json_depth(data, 200), shapes.JSON, 6, 8, least=4
    ),
    "runtime log": Parser(
        parse_runtime_lines,
        inside(b'{"event":"","payload":"","x":') | {"lines": repeated(b"\n")},
        *(45, 4),
    ),
    "agent's answer": Parser(Attestation.from_agent_response, inside(b'{"x":'), 45, 4),
    "evidence in SCALE": Parser(Attestation.from_bytes, shapes.EVIDENCE_SCALE, 64, 16),
    "evidence in msgpack": Parser(Attestation.from_bytes, shapes.EVIDENCE_MSGPACK, 60, 24),
    "evidence in CBOR": Parser(Attestation.from_bytes, shapes.EVIDENCE_CBOR, 8, 32),
    "evidence as a CMW": Parser(Attestation.from_bytes, shapes.CMW_CBOR, 24, 32),
    "evidence as a CMW in JSON": Parser(Attestation.from_bytes, inside(b'{"x":'), 60, 8),
    "evidence of GPUs": Parser(
        GpuEvidence.from_json,
        inside(b"[" + DEVICE + b',"x":', b"}]")
        | {"devices": repeated(DEVICE + b"},", b"[", DEVICE + b"}]")},
        *(45, 4),
    ),
    "CBOR": Parser(read_value, shapes.CBOR, 100, 40),
    "app info": Parser(
        AppInfo.from_msgpack,
        {
            "numbers": lambda size: b"\x99\xdd" + size.to_bytes(4, "big") + b"\1" * size,
            "hashes": lambda size: (
                b"\x99%b\xdd%b%b"
                % (b"\xc4\0" * 8, (size // 2).to_bytes(4, "big"), b"\xc4\0" * (size // 2))
            ),
            "unknown keys": lambda size: (
                b"\xdf%b%b" % ((size // 2).to_bytes(4, "big"), b"\xa0\xc0" * (size // 2))
            ),
        },
        *(6, 28, 65_536),
    ),
    "vm_config": Parser(parse_vm_config, inside(b'{"x":'), 45, 4),
    "mr_config": Parser(MrConfig.parse, inside(b'{"key_provider":"none","x":'), 45, 4),
    "checksums": Parser(
        lambda data: os_image._listed(data, "measurement.tdx.cbor"),
        {"lines": repeated(b"\n"), "words": repeated(b"a ")},
        *(16, 4),
    ),
    "app-compose": Parser(AppCompose.parse, inside(COMPOSE), 45, 4),
    "sys-config": Parser(SysConfig.parse, inside(b'{"vm_config":"{}","x":'), 45, 4),
    "manifest of a GPU": Parser(
        lambda xml: canonical_bytes(read_document(xml)), shapes.XML, 80, 20, XML_SIZE
    ),
    "app keys": Parser(AppKeys.from_json, inside(b'{"x":'), 45, 4),
    "environment": Parser(env_encryption._items, inside(b'{"env":[],"x":'), 45, 4),
    "certificate": Parser(read_all_fields, CERTIFICATES, 80, 16),
    "certificate of AMD or AWS": Parser(
        cert_path.read_path_certificate, CERTIFICATES, 40, 16, 16_384
    ),
    "SGX extension": Parser(read_sgx_extension, CERTIFICATES, 80, 16),
    "certificates in PEM": Parser(text(split_pem), PEM, 10, 4),
    "chain of certificates": Parser(text(chain_window), PEM, 10, 4),
    "CRL": Parser(crl_window, {"entries": crl, "ones": repeated(b"\xff", b"\x30\x83")}, 4, 1),
    "table of certificates": Parser(SnpCertificates.parse, {"entries": table}, 30, 4),
    "collateral": Parser(Collateral.from_json, inside(b'{"x":'), 45, 4),
    "bundle": Parser(EvidenceBundle.from_json, inside(b'{"x":'), 45, 4),
    "signed body": Parser(lambda data: split_signed(data, "tcbInfo"), inside(SIGNED, b"}}"), 45, 4),
    "signed verdict as a JWT": Parser(verdicts.read, verdicts.JWT, 45, 4, MAX_TOKEN),
    "signed verdict in COSE": Parser(verdicts.read, verdicts.COSE, 100, 40, MAX_TOKEN),
    "keys of signed verdicts": Parser(EarPublicKey.from_jwks, verdicts.KEY_SET, 45, 4, 65_536),
    "TCB info": Parser(text(read_tcb_info), inside(b'{"id":"TDX","x":'), 45, 4),
    "QE identity": Parser(text(read_qe_identity), inside(b'{"id":"QE","x":'), 45, 4),
    "policy": Parser(AppraisalPolicy.from_toml, shapes.TOML, 560, 240),
    "TOML": Parser(toml.decode, shapes.TOML, 560, 240),
    "server's configuration": Parser(
        lambda data: parse_config(data, "a.json"), inside(b'{"x":'), 45, 8
    ),
    "request in JSON": Parser(
        partial(json_codec.decode, GetTlsKeyArgs),
        inside(b'{"x":') | {"items": repeated(b'"",', b'{"alt_names":[', b'""]}')},
        *(45, 4),
    ),
    "request in protobuf": Parser(
        partial(protobuf_codec.decode, GetTlsKeyArgs), shapes.PROTOBUF, 20, 1
    ),
    "request in a query": Parser(
        partial(query_codec.decode, GetTlsKeyArgs), shapes.QUERY, 220, 24, 32_768
    ),
    "request to verify": Parser(VerificationRequest.from_json, inside(b'{"x":'), 45, 4),
    "list of an engine": Parser(
        read_list,
        inside(b'[{"x":', b"}]") | {"containers": repeated(LISTED, b"[", b"null]")},
        *(45, 8),
    ),
    "container's log": Parser(partial(split_frames, FrameSplitter, 65_536), shapes.FRAMES, 8, 4),
    "container's log, byte by byte": Parser(
        partial(split_frames, FrameSplitter, 1), shapes.FRAMES, 4, 16
    ),
    "terminal's log": Parser(partial(split_frames, LineSplitter, 1000), shapes.TERMINAL, 4, 8),
    "container's text": Parser(partial(format_output, lambda data: [data]), shapes.TERMINAL, 40, 8),
    "container's text, byte by byte": Parser(
        partial(format_output, bytewise), shapes.TERMINAL, 20, 48
    ),
    "recording": Parser(
        lambda data: parse_recording(HEADER + data),
        inside(b'{"ask":"close","answer":null,"x":') | {"lines": repeated(b"\n")},
        *(45, 4),
    ),
}
CASES: Final = tuple(
    [
        Case(name, shape, make)
        for name, parser in PARSERS.items()
        for shape, make in parser.shapes.items()
    ]
)
