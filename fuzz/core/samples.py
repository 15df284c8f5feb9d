"""What each function of the C core starts from: real quotes and logs, and made ones."""

from itertools import pairwise
from struct import pack

from fuzz import seeds
from tests.samples.pck_certificates import made_certificates
from tests.samples.quotes import made_quote, made_quotes, starts_of

LONGEST_QUOTE = 131072  # bytes, with the zeros behind it


def _tds() -> list[bytes]:
    return [quote for quote in seeds.quotes() if quote[4] == 0x81]


def _columns() -> list[bytes]:
    tds = _tds()
    ten = b"".join(made_quote(report=bytes(320)) for _ in range(10))
    two = made_quote() + bytes(7) + made_quote()
    mixed = made_quote(5, body_type=3) + made_quote() + bytes(70) + made_quote(5, body_type=2)
    return [b"".join(tds), ten, two, mixed, two + b"\0" * 64 + made_quote(key=bytes(64)), *tds]


def _among() -> list[bytes]:
    """Return quotes behind four bytes: where another one differs, by what, how many zeros."""
    places = [(0, 0, 0), (4, 1, 0), (1100, 1, 3), (1221, 0x10, 9), (760, 0x80, 0)]
    return [pack("<HBB", *place) + quote for place in places for quote in seeds.quotes()]


def _rows() -> list[bytes]:
    """Return quotes behind a count, a field, its width, and where they start."""
    tds = [quote for quote in _tds() if len(quote) < 3000]
    enclave = made_quotes()[0]
    groups = [[quote] for quote in tds]
    groups += [tds[:5], [tds[0], enclave], [tds[0] + bytes(9)] * 12, [tds[-1], tds[0], tds[-1]]]
    fields = [(136, 48), (0, 16), (112, 8), (520, 64), (600, 48), (640, 64), (584, 16)]
    made = []
    for number, group in enumerate(groups):
        at, width = fields[number % len(fields)]
        starts = starts_of(group)
        for given in (starts, starts[::-1], [start + 1 for start in starts]):
            head = pack(f"<BHH{len(given)}I", len(given), at, width, *given)
            made.append(head + b"".join(group))
    return [*made, bytes(5), bytes([16, *range(80)])]


def _pieces() -> list[bytes]:
    values = (
        '{"a":[1,-2.5e+3,true,false,null,""],"b":{}}',
        '"\\u00e9\\ud83d\\ude00\\n\\\\ é 😀"',
        '"00ffAB"',
        "4294967295",
        "-0",
        "0.1E-9",
        '"\\ud800"',
        "[" * 199 + "]" * 199,
        '{"a":' * 60 + "1" + "}" * 60,
        "1" * 641,
    )
    return [value.encode() for value in values] + seeds.short_agent_texts()


def _cbor() -> list[bytes]:
    """Return documents of each status and limit, and valid ones."""
    texts = ["f93c00", "f7", "f814", "c001", "1c", "a2016001f6", "a20160180160", "a201f4f5f6"]
    texts += ["a2616100616100", "a1800a", "5f01ff", "7f61c3", "ff", "0000", "a45f4101ff00", "9f01"]
    nested = [around * 17 + b"\0" for around in (b"\x81", b"\xa1\0")]
    return [*map(bytes.fromhex, texts), *nested, *seeds.cbor_values()]


def _folded() -> list[bytes]:
    counts = (0, 1, 2, 9, 14, 64)
    return [bytes(i % 4 for i in range(n)) + bytes(range(48)) * n for n in counts]


def samples() -> dict[str, list[bytes]]:
    """Return what each of the functions without Python starts from."""
    quotes, ccels, tpm_logs = seeds.quotes(), seeds.ccels(), seeds.tpm_logs()
    texts = seeds.agent_texts()
    any_bytes = [quote[:size] for quote in quotes[-2:] for size in (64, 96, 128, 200, 300, 700)]
    registers = bytes(i % 251 for i in range(450))
    many = [bytes([79, *[k] * 79]) + registers for k in (5, 14, 29)]
    logs = [bytes([n, *[k] * n]) + bytes(range(60)) for n in (1, 4, 9, 11) for k in (0, 1, 3)]
    return {
        "quote": [*quotes, *[quote + bytes(9) for quote in quotes]],
        "among": _among(),
        "columns": [*_columns(), *quotes],
        "rows": _rows(),
        "pck": made_certificates(),
        "ccel": [*ccels, *seeds.short_tcg_logs(ccels)],
        "tpm": [*tpm_logs, *seeds.short_tcg_logs(tpm_logs)],
        "json": [*texts, *seeds.short_agent_texts()],
        "pieces": _pieces(),
        "depth": [*texts, b"[" * 300, b'[{"' * 40 + b'\\"' * 40, b'"' * 65],
        "cbor": _cbor(),
        "evidence": seeds.td_evidence(),
        "hex": [*[data.hex().encode() for data in any_bytes], *any_bytes],
        "sha256": any_bytes,
        "sha384": [*quotes[-2:], *any_bytes, *[quote[:700] for quote in quotes]],
        "keccak": any_bytes,
        "kernels": any_bytes,
        "replay": _folded(),
        "replays": [*logs, *many],
        "cpuid": [pack("<III", leaf, 0, 2**32 - 1) for leaf in (0, 7, 1 << 30, 1 << 31)],
    }


def object_samples() -> dict[str, list[bytes]]:
    """Return what each of the functions for Python starts from."""
    plain = samples()
    columns = []
    for joined, next_one in pairwise([*_columns(), b""]):
        starts = pack("<QQ", 0, len(joined))
        columns.append(pack("<HHB", 136, 48, 1) + starts[:8] + joined)
        columns.append(pack("<HHB", 600, 64, 2) + starts + joined + next_one)
    return {
        "objects-quote": plain["quote"],
        "objects-log": plain["ccel"] + plain["tpm"],
        "objects-cbor": plain["cbor"],
        "objects-evidence": plain["evidence"],
        "objects-agent": plain["json"] + plain["hex"][:4] + plain["pieces"],
        "objects-replay": plain["replay"],
        "objects-sha384": plain["sha384"],
        "objects-column": columns,
        "objects-pck": plain["pck"],
    }


def large_samples() -> dict[str, list[bytes]]:
    """Return what is too large to be kept or to be given often: quotes of the most bytes."""
    quote = made_quote()
    most, more = quote.ljust(LONGEST_QUOTE, b"\0"), quote.ljust(LONGEST_QUOTE + 1, b"\0")
    rows = pack("<BHHI", 1, 136, 48, 0)
    return {
        "quote": [most, more],
        "among": [bytes(4) + most, bytes(4) + more],
        "columns": [most + quote, more, quote * 12 + more],
        "rows": [rows + most, rows + more],
        "objects-quote": [most, more],
        "objects-column": [bytes(5) + most + quote, bytes(5) + more],
    }
