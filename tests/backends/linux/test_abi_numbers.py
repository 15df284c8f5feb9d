"""Ioctl numbers and struct sizes of Linux's TEE interfaces, computed and compared with literals.

The literals are those of the kernel's headers and of Intel's libtdx_attest.
"""

import ctypes
from struct import Struct, calcsize

import pytest

from attestkit.backends.linux import ccel
from attestkit.backends.linux.syscalls import ior, iow, iowr, size_of
from attestkit.backends.tdx import device, qgs, quote_ioctl, rtmr
from attestkit.backends.tdx.quote_ioctl import GENERATIONS

# The arguments as the headers declare them: natural C alignment ("@") or packed ("<").
REPORT_REQ = calcsize("@64s1024s")  # reportdata, tdreport
REPORT_REQ_A = calcsize("@Q")  # the argument named by the macro of generations A and B
REPORT_REQ_B1 = calcsize("@BQIQI0Q")  # subtype, reportdata, its length, tdreport, its length
REPORT_REQ_B2 = calcsize("@QQIIB7s")  # reportdata, tdreport, both lengths, subtype, reserved
QUOTE_REQ = calcsize("@QQ")  # buf, len
VERIFY_REQ = calcsize("@256sQ")  # reportmac, err
EXTEND_REQ = calcsize("@48sB")  # data, index
EXTEND_REQ_A = calcsize("<Q48s")  # packed: rtmr_index, data
SNP_REQ = calcsize("@BQQQ")  # msg_version, request, response, two error codes
SNP_REPORT_REQ = calcsize("@64sI28s")  # user data, VMPL, reserved
SNP_REPORT_RESP = 4000
SNP_KEY_REQ = calcsize("@IIQIIQ")  # root key, reserved, fields, VMPL, SVN, TCB
SNP_KEY_RESP = 64
SNP_EXT_REQ = calcsize(f"@{SNP_REPORT_REQ}sQI0Q")  # a report request, address, length

SIZES = [
    (REPORT_REQ, 1088),
    (REPORT_REQ_A, 8),
    (REPORT_REQ_B1, 40),
    (REPORT_REQ_B2, 32),
    (QUOTE_REQ, 16),
    (VERIFY_REQ, 264),
    (EXTEND_REQ, 49),
    (EXTEND_REQ_A, 56),
    (SNP_REQ, 32),
    (SNP_REPORT_REQ, 96),
    (SNP_REPORT_RESP, calcsize("<II24s1184s2784s")),
    (SNP_KEY_REQ, 32),
    (SNP_KEY_RESP, calcsize("<I28s32s")),
    (SNP_EXT_REQ, 112),
    (calcsize("<QQII"), 24),  # header of a quote request's buffer
    (calcsize("<HHIII"), 16),  # header of a QGS message
    (calcsize("<HHIIIII"), 24),  # GET_QUOTE_RESP without its blobs
    (calcsize("<4sIBB6s8sIIIBBHQQ"), 56),  # the CCEL table
    (calcsize("<16sII"), 24),  # an entry of SNP's certificate table
    (calcsize("<IQ48sII"), 68),  # head of libtdx_attest's event
]


@pytest.mark.parametrize(("computed", "literal"), SIZES)
def test_struct_size_matches_specification(computed: int, literal: int) -> None:
    """The sum of the fields is the specified size."""
    assert computed == literal


NUMBERS = [
    # Linux
    (iowr("T", 1, REPORT_REQ), 0xC4405401, "GET_REPORT0"),
    (iowr("S", 0, SNP_REQ), 0xC0205300, "SNP_GET_REPORT"),
    (iowr("S", 1, SNP_REQ), 0xC0205301, "SNP_GET_DERIVED_KEY"),
    (iowr("S", 2, SNP_REQ), 0xC0205302, "SNP_GET_EXT_REPORT"),
    # A: DCAP 1.14, 1.15
    (iowr("T", 1, 8), 0xC0085401, "A get report"),
    (ior("T", 2, 8), 0x80085402, "A get quote"),
    (ior("T", 4, 8), 0x80085404, "A extend"),
    (ior("T", 5, 8), 0x80085405, "A get extend size"),
    # B: DCAP 1.16, 1.17
    (ior("T", 3, 8), 0x80085403, "B2 verify report"),
    # C: DCAP 1.18 and later
    (ior("T", 2, VERIFY_REQ), 0x81085402, "C verify report"),
    (ior("T", 3, EXTEND_REQ), 0x80315403, "C extend"),
    (ior("T", 4, QUOTE_REQ), 0x80105404, "C get quote"),
    # C': its V3
    (iowr("T", 2, VERIFY_REQ), 0xC1085402, "C' verify report"),
    (iow("T", 3, EXTEND_REQ), 0x40315403, "C' extend"),
    (iowr("T", 4, QUOTE_REQ), 0xC0105404, "C' get quote"),
    # D: Google's, and series that were posted
    (iowr("T", 2, QUOTE_REQ), 0xC0105402, "D get quote"),
    (ior("T", 2, QUOTE_REQ), 0x80105402, "D' get quote"),
]


@pytest.mark.parametrize(("computed", "literal", "name"), NUMBERS)
def test_ioctl_number_matches_headers(computed: int, literal: int, name: str) -> None:
    """Direction, size, type and number give the literal of the headers."""
    assert computed == literal, name
    direction, size = literal >> 30, literal >> 16 & 0x3FFF
    assert size_of(computed) == size
    assert direction << 30 | size << 16 | (literal & 0xFFFF) == literal


def test_ioctl_numbers_of_linux_c_and_d_are_unique() -> None:
    """The number identifies the driver; A and B share numbers and are unsupported."""
    ours = [literal for _, literal, name in NUMBERS if name[0] not in "AB"]
    assert len(set(ours)) == len(ours)


def test_package_constants_match_ioctl_numbers() -> None:
    """The package uses the numbers of the headers."""
    assert device.GET_REPORT0 == 0xC4405401
    assert rtmr.EXTEND_RTMR == 0x80315403
    assert rtmr.EXTEND_RTMR_V3 == 0x40315403
    assert {name: made.number for name, made in GENERATIONS.items()} == {
        "C": 0x80105404,
        "C'": 0xC0105404,
        "D": 0xC0105402,
        "D'": 0x80105402,
    }
    assert {name: made.framed for name, made in GENERATIONS.items()} == {
        "C": True,
        "C'": True,
        "D": False,
        "D'": False,
    }


def test_package_structs_have_specified_sizes() -> None:
    """The structs have no hidden padding."""
    layouts: list[tuple[Struct, int]] = [
        (quote_ioctl._ARGUMENT, 16),
        (quote_ioctl._HEADER, 24),
        (qgs._HEADER, 16),
        (qgs._REQUEST, 24),
        (qgs._RESPONSE, 24),
        (qgs._FRAME, 4),
        (ccel._TABLE, 56),
    ]
    assert [layout.size for layout, _ in layouts] == [size for _, size in layouts]
    assert (quote_ioctl._STATUS_AT, quote_ioctl._OUT_LENGTH_AT) == (8, 20)


def test_struct_offsets_match_c_layout() -> None:
    """The requests are laid out as ctypes lays out C structs."""

    class ReportReq(ctypes.Structure):
        _fields_ = (("reportdata", ctypes.c_uint8 * 64), ("tdreport", ctypes.c_uint8 * 1024))

    class ExtendReq(ctypes.Structure):
        _fields_ = (("data", ctypes.c_uint8 * 48), ("index", ctypes.c_uint8))

    class QuoteReq(ctypes.Structure):
        _fields_ = (("buf", ctypes.c_uint64), ("len", ctypes.c_uint64))

    assert (ctypes.sizeof(ReportReq), ReportReq.tdreport.offset) == (1088, 64)
    assert (ctypes.sizeof(ExtendReq), ExtendReq.index.offset) == (49, 48)
    assert (ctypes.sizeof(QuoteReq), QuoteReq.len.offset) == (16, 8)


def test_quote_status_words_and_qgs_codes_match_specification() -> None:
    """The package uses the specified values and message sizes."""
    assert quote_ioctl.IN_FLIGHT == (1 << 64) - 1
    assert quote_ioctl.FAILED == 1 << 63
    assert quote_ioctl.NO_SERVICE == (1 << 63) + 1
    assert list(qgs.CODES) == list(range(0x12001, 0x12008))
    assert (qgs.SHORTEST_MESSAGE, qgs.LONGEST_MESSAGE) == (16, 1024 * 1024)
    assert len(qgs.quote_request(bytes(1024))) == 1048
    assert len(qgs.frame(qgs.quote_request(bytes(1024)))) == 1052
