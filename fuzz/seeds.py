"""What fuzzers and the sanitizers start from: real quotes and logs, and made ones.

The real ones are the shared samples, where they are present; the made ones are there everywhere.
"""

import base64
import json
from functools import cache
from itertools import pairwise
from struct import pack, unpack_from

from attestkit.attestation.cmw import evidence as cmw_evidence
from attestkit.attestation.wire import v0_scale, v1_cbor, v1_msgpack
from attestkit.attestation.wire.evidence_parts import RuntimeEvent
from attestkit.backends.simulator.boot_log import boot_log
from attestkit.backends.simulator.images.os_image import simulated_image
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from tests.attestation.samples import KINDS, POD, STACK, V2
from tests.samples.quotes import made_quotes, samples
from tests.vectors import data, load

_SHORT_EVENT = 24  # bytes of event data that a shortened log keeps
_MOST_RECORDS = 200
_AREA = 64  # bytes of fill that it keeps


@cache
def _logs() -> tuple[tuple[str, str], ...]:
    return tuple((log["path"], log["kind"]) for log in load("eventlogs.json").get("logs", []))


def cbor_values() -> list[bytes]:
    """Return CBOR of each type, in its shortest form and in others, and evidence."""
    texts = ["00", "1801", "3863", "1bffffffffffffffff", "83f4f5f6", "7f657374726561646d696e67ff"]
    texts += ["5f4101420203ff", "bf61610161629f0203ffff", "82410a62c3a9", "a320f63863f60af6"]
    keys = b"".join(bytes([0x19, 1 + key % 17, key // 17, 0]) for key in range(300))
    nested = [around * 16 + b"\0" for around in (b"\x81", b"\xa1\0")]
    evidence = [v1_cbor.encode_evidence(found)[3:] for found in (*KINDS[:4], POD)]
    return [*map(bytes.fromhex, texts), b"\xb9\1\x2c" + keys, *nested, *evidence]


def quotes() -> list[bytes]:
    """Return whole quotes of every version."""
    return samples() + made_quotes()


def ccels() -> list[bytes]:
    """Return CCELs with their fill, each log once."""
    real = {data(path).rstrip(b"\xff"): data(path) for path, kind in _logs() if kind == "ccel"}
    return [boot_log(simulated_image()), *real.values()]


def tpm_logs() -> list[bytes]:
    """Return logs of TPMs, in the old format and in the new."""
    real = {data(path) for path, kind in _logs() if kind.startswith("tpm")}
    wrapped = {data(path) for path, kind in _logs() if kind == "json_wrapper"}
    real |= {base64.b64decode(json.loads(text)["Log"]["Raw"]) for text in wrapped}
    return [_made_tpm_log(new=False), _made_tpm_log(new=True), *sorted(real)]


def _made_tpm_log(*, new: bool) -> bytes:
    """Return a log of a Spec ID event with two algorithms, or of none, and three records."""
    if not new:
        return b"".join(pack("<II20sI4s", pcr, 4, b"\7" * 20, 4, bytes(4)) for pcr in range(3))
    spec = b"Spec ID Event03\0" + pack("<I4BI4HB", 0, 0, 2, 105, 2, 2, 4, 20, 11, 32, 0)
    log = pack("<II20xI", 0, 3, len(spec)) + spec
    for pcr in range(3):
        digests = pack("<H20sH32s", 4, b"\7" * 20, 11, b"\7" * 32)
        log += pack("<III", pcr, 4, 2) + digests + pack("<I4s", 4, bytes(4))
    return log


def agent_texts() -> list[bytes]:
    """Return agents' logs in JSON, with runtime events of both versions among them."""
    paths = ("dstack/verifier/quote-report.json", "dstack/verifier/tdx-lite-getquote.json")
    answers = [json.loads(found) for found in map(data, paths) if found]
    log = EventLog.from_ccel(ccels()[0])
    more = [
        runtime_event(name, payload, version)
        for version in (1, 2)
        for name, payload in (("app-id", bytes(20)), ("é\n", b""), ("system-ready", b"\xab" * 40))
    ]
    made = log.with_runtime(more).to_json()
    texts = [*[answer["event_log"] for answer in answers], made]
    texts.append(json.dumps(json.loads(made), indent=2))
    return [text.encode() for text in texts]


# -- short ones ------------------------------------------------------------------------------------


def short_tcg_logs(logs: list[bytes]) -> list[bytes]:
    """Return logs of few records with little event data, and the first of the whole ones."""
    short = []
    for log in logs:
        records = [_shortened(log[start:end]) for start, end in _spans(log)]
        fill = b"\xff" * _AREA if log.endswith(b"\xff" * _AREA) else b""
        header, rest = records[0], records[1:]
        groups = [rest[at : at + 4] for at in range(0, len(rest), 4)]
        short += [b"".join((header, *group, fill)) for group in groups[:12]]
    return sorted(set(short)) + [log[:20000] for log in logs[:4]]


def _spans(log: bytes) -> list[tuple[int, int]]:
    """Return where the records of a log start and end, the header's first."""
    starts, end = [0], _end_of_data(log, 28)
    new = log[32:48] == b"Spec ID Event03\0"
    pairs = [unpack_from("<HH", log, at) for at in range(60, 60 + 4 * log[56], 4)] if new else []
    while end is not None and len(starts) < _MOST_RECORDS:
        starts.append(end)
        end = _end_of_record(log, dict(pairs), end) if new else _end_of_data(log, end + 28)
    return list(pairwise(starts))


def _end_of_record(log: bytes, sizes: dict[int, int], at: int) -> int | None:
    if at + 12 > len(log) or log[at : at + 4] == b"\xff" * 4:
        return None
    count = unpack_from("<I", log, at + 8)[0]
    at += 12
    for _ in range(count):
        at += 2 + sizes[unpack_from("<H", log, at)[0]]
    return _end_of_data(log, at)


def _end_of_data(log: bytes, at: int) -> int | None:
    """Return the offset behind event data whose size is at `at`; None at the log's end."""
    if at + 4 > len(log):
        return None
    end: int = at + 4 + unpack_from("<I", log, at)[0]
    return end if end <= len(log) else None


def _shortened(record: bytes) -> bytes:
    """Return a record with no more than a few bytes of event data; the header as it is.

    The size of the data is found from behind: it is the number that leads to the record's end.
    """
    if b"Spec ID" in record:
        return record
    for at in range(28, len(record) - 3):
        size = int.from_bytes(record[at : at + 4], "little")
        if at + 4 + size == len(record):
            kept = record[at + 4 : at + 4 + _SHORT_EVENT]
            return record[:at] + pack("<I", len(kept)) + kept
    return record


def short_agent_texts() -> list[bytes]:
    """Return texts of few events, and some whole ones."""
    short = []
    for text in agent_texts():
        events = json.loads(text)
        for event in events:
            event["event_payload"] = event["event_payload"][: 2 * _SHORT_EVENT]
        compact = [json.dumps(event, separators=(",", ":")) for event in events]
        groups = [compact[at : at + 3] for at in range(0, len(compact), 3)]
        short += [f"[{','.join(group)}]".encode() for group in groups]
    return [*dict.fromkeys(short), b"[]", *agent_texts()]


def td_evidence() -> list[bytes]:
    """Return evidence of a TD in the encodings that the core decodes, and some that it leaves."""
    many = (RuntimeEvent("é:", bytes(70), 2), RuntimeEvent("", b"")) * 17
    td, gcp = KINDS[:2]
    full = td._replace(stack=STACK._replace(runtime_events=many))
    return [
        *map(v0_scale.encode_evidence, (td, gcp)),
        *map(v1_msgpack.encode_evidence, (td, gcp, V2, full)),
        *[cmw_evidence.encode_evidence("cbor", one) for one in (td, V2, full)],
        cmw_evidence.encode_evidence("cbor", td, b"{}"),
    ]
