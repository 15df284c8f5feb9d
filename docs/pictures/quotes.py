"""Where the parts of a quote are, found in a real one of the simulator, and who signs what."""

from typing import Final, NamedTuple

import attestkit
from attestkit.quote import QuoteHeader, TdQuoteBody
from docs.pictures.canvas import APP, MAKER, OURS, PLAIN, SIGNED, SOFT, Box, Canvas

__all__ = ["Part", "body_parts", "chain_of_signatures", "layout_of_a_quote", "quote_parts"]

SEED: Final = bytes(range(32))
NOW: Final = 1_790_000_000.0  # 2026-09-21T14:13:20Z; any instant gives the same sizes

_MEANING: Final = {
    "tee_tcb_svn": "SVNs of the module",
    "mr_seam": "the TDX module",
    "mr_signer_seam": "its signer, 0: Intel",
    "td_attributes": "bit 0: debug",
    "xfam": "CPU features",
    "mrtd": "first contents",
    "mr_config_id": "app, from the host",
    "rtmr0": "firmware settings",
    "rtmr1": "what was started",
    "rtmr2": "kernel's start",
    "rtmr3": "the app",
    "report_data": "your 64 bytes",
}


class Part(NamedTuple):
    """A run of bytes in a quote."""

    name: str
    start: int
    size: int


def quote_parts() -> list[Part]:
    """Return the parts of a quote of version 4, each looked for in the quote's own bytes."""
    with attestkit.open("simulator", seed=SEED, now=lambda: NOW) as tee:
        quote = tee.get_quote(b"nonce")
    if not isinstance(quote.body, TdQuoteBody):
        raise TypeError("this quote is of no TD")
    body = quote.body.to_bytes()
    named = {
        "header": quote.raw[: sum(_header_sizes(quote.header))],
        "body": body,
        "signature": quote.signature,
        "attestation key": quote.attestation_key,
        "QE report": quote.qe_report.raw,
        "QE report signature": quote.qe_report_signature,
        "QE auth data": quote.qe_auth_data,
        "PCK certificate chain": quote.certification.data,
    }
    return [Part(name, quote.raw.index(data), len(data)) for name, data in named.items()]


def _header_sizes(header: QuoteHeader) -> list[int]:
    """Return the sizes of version, key type, TEE type, two reserved numbers, vendor, user data."""
    return [2, 2, 4, 2, 2, len(header.qe_vendor_id), len(header.user_data)]


def body_parts() -> list[Part]:
    """Return the fields of a TD 1.0 body; places count from the start of a version 4 quote."""
    at, parts = QuoteHeader.parse(bytes(48)), []
    place = sum(_header_sizes(at))
    for name, value in zip(TdQuoteBody._fields, TdQuoteBody.parse(bytes(584)), strict=True):
        if value is not None:
            parts.append(Part(name, place, len(value)))
            place += len(value)
    return parts


def layout_of_a_quote() -> str:
    """Draw a quote of version 4: to scale on the left, its parts by name on the right."""
    parts = quote_parts()
    end = parts[-1].start + parts[-1].size
    canvas = Canvas(
        790,
        "Layout of a TDX quote, version 4",
        "On the left the whole quote to scale, on the right its parts with their offsets in bytes: "
        + "; ".join(f"{p.name} at {p.start}, {p.size} bytes" for p in (*parts, *body_parts()))
        + ". Header and body are what the signature covers.",
    )
    canvas.heading(34, "A TDX quote, version 4")
    canvas.note((24, 56), f"{end} bytes: left to scale, right by name", size=15)
    _both_columns(canvas, parts, end)
    return canvas.svg()


def _both_columns(canvas: Canvas, parts: list[Part], end: int) -> None:
    top = 76.0
    rows = _rows(parts, top)
    height = rows[-1][1].bottom()[1] - top
    canvas.box(Box(24, top, 40, height))
    for part, row in rows:
        if part.name in {"body", "QE report", "PCK certificate chain", "header"}:
            upper = top + height * part.start / end
            lower = top + height * (part.start + part.size) / end
            colours = _COLOURS[part.name]
            canvas.box(Box(24, upper, 40, max(lower - upper, 5)), colours=colours)
            canvas.area(
                (66, upper), (112, row.y), (112, row.y + row.height), (66, lower), colours=colours
            )
        _part(canvas, part, row)
    spans = {part.name: row for part, row in rows}
    _signed_by(canvas, spans["header"].y, spans["body"].bottom()[1], "signed: attestation key")
    report = spans["QE report"]
    _signed_by(canvas, report.y, report.bottom()[1], "PCK key")


_COLOURS: Final = {
    "header": PLAIN,
    "body": OURS,
    "signature": SIGNED,
    "attestation key": SIGNED,
    "QE report": APP,
    "QE report signature": APP,
    "QE auth data": APP,
    "PCK certificate chain": MAKER,
}


def _rows(parts: list[Part], top: float) -> list[tuple[Part, Box]]:
    """Give each part its row on the right."""
    rows = []
    for part in parts:
        tall = {"body": 24.0 * len(body_parts()) + 40, "QE report": 46.0}.get(part.name, 34.0)
        rows.append((part, Box(112, top, 396, tall)))
        top += tall + 7
    return rows


def _part(canvas: Canvas, part: Part, row: Box) -> None:
    canvas.box(row, colours=_COLOURS[part.name])
    line = row.y + (22 if part.name != "QE report" else row.height / 2 + 5)
    canvas.text((164, line), str(part.start), anchor="end", mono=True, size=14, colour=SOFT)
    canvas.text((176, line), part.name, anchor="start", bold=True)
    canvas.text((498, line), f"{part.size}", anchor="end", mono=True, size=14, colour=SOFT)
    if part.name != "body":
        return
    for number, field in enumerate(body_parts()):
        at = row.y + 50 + 24 * number
        canvas.text((164, at), str(field.start), anchor="end", mono=True, size=13, colour=SOFT)
        canvas.text((176, at), field.name, anchor="start", mono=True, size=13)
        meaning = _MEANING.get(field.name, "")
        canvas.text((310, at), meaning, anchor="start", size=13.5, colour=SOFT, room=166)
        canvas.text((498, at), str(field.size), anchor="end", mono=True, size=13, colour=SOFT)


def _signed_by(canvas: Canvas, top: float, bottom: float, text: str) -> None:
    x, middle = canvas.brace(514, top, bottom, colour=SIGNED.line)
    canvas.upright((x + 18, middle), text, colour=SIGNED.line, room=bottom - top + 26)


def chain_of_signatures() -> str:
    """Draw who signs whom, from the maker's root to the 64 bytes of the caller."""
    canvas = Canvas(
        812,
        "The chain of signatures behind a quote",
        "Intel's root certifies the PCK Platform or Processor CA, that the PCK certificate of one "
        "platform, whose key "
        "signs the quoting enclave's report; the report names the attestation key, which signs "
        "the quote's header and body. Collateral says what is revoked and how current each part "
        "is. On SEV-SNP AMD's ARK certifies the ASK, that the VCEK of one chip, and the VCEK "
        "signs the report.",
    )
    canvas.heading(34, "Intel TDX: who signs whom")
    _collateral(canvas, _links(canvas))
    canvas.rule(632)
    canvas.heading(664, "AMD SEV-SNP")
    _amd(canvas)
    return canvas.svg()


def _links(canvas: Canvas) -> list[Box]:
    """Draw the chain itself; return its boxes from the root down."""
    boxes = []
    for number, (lines, colours, verb) in enumerate(_CHAIN):
        boxes.append(canvas.box(Box(24, 52 + 92 * number, 246, 56), lines, colours))
        if verb:
            x, y = boxes[-1].bottom(0.25)
            canvas.arrow((x, y), (x, y + 36))
            canvas.note((x + 12, y + 23), verb)
    return boxes


_CHAIN: Final = (
    ("Intel SGX Root CA\nthe verifier's trust anchor", MAKER, "certifies"),
    ("PCK Platform CA, or\nPCK Processor CA", MAKER, "certifies"),
    ("PCK certificate\none platform, and its TCB", MAKER, "signs"),
    ("QE report\nthe quoting enclave's own", APP, "contains the hash of"),
    ("attestation key\nmade by the enclave", SIGNED, "signs"),
    ("header and body\nMRTD, RTMRs, report data", OURS, ""),
)


def _collateral(canvas: Canvas, chain: list[Box]) -> None:
    """Draw what Intel says of the links besides."""
    signer = canvas.box(
        Box(334, 52, 202, 56), "TCB signing certificate\nthe root certifies it", MAKER, size=14
    )
    canvas.arrow(chain[0].right(), signer.left())
    for number, lines in enumerate(
        (
            "CRLs\nwhat is revoked",
            "TCB info\nhow current it is",
            "QE identity\nwhich enclave it must be",
        ),
        start=1,
    ):
        said = canvas.box(Box(334, 52 + 92 * number, 202, 56), lines, PLAIN, size=14)
        canvas.arrow(said.left(), chain[number].right(), dashed=True)
    canvas.line(signer.right(), (548, 80), (548, 356))
    canvas.arrow((548, 264), (536, 264))
    canvas.arrow((548, 356), (536, 356))
    canvas.text((435, 432), "collateral: what Intel says", size=14, colour=SOFT)
    canvas.text((435, 452), "today, with an end date", size=14, colour=SOFT)


def _amd(canvas: Canvas) -> None:
    """Draw the chain of a report of SEV-SNP."""
    with attestkit.open("simulator", platform="snp", seed=SEED) as tee:
        report = len(tee.backend.get_quote(bytes(64)))
    previous: Box | None = None
    for number, (lines, colours) in enumerate(
        (
            ("ARK\nAMD's root", MAKER),
            ("ASK\nof a product", MAKER),
            ("VCEK\none chip", MAKER),
            (f"report\n{report} bytes", OURS),
        )
    ):
        box = canvas.box(Box(24 + 136 * number, 684, 104, 60), lines, colours, size=14)
        if previous is not None:
            canvas.arrow(previous.right(), box.left())
        previous = box
    canvas.note((24, 778), "The report comes from the processor itself: no enclave")
    canvas.note((24, 798), "stands between, and there is no register to extend.")
