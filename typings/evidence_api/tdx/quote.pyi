# evidence-api, as far as the benchmarks use it: it ships no types.
from enum import Enum

class TdxQuoteTeeType(Enum):
    TEE_TDX = 0x81

class TdxQuoteHeader:
    ver: int
    tee_type: TdxQuoteTeeType

class TdxQuoteBody:
    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    reportdata: bytes

class TdxQuote:
    header: TdxQuoteHeader
    body: TdxQuoteBody
    def __init__(self, data: bytes) -> None: ...
