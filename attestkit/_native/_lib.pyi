# Types of the module that cffi generates from ak_api.cdef.h (compared by a test).

from cffi import FFI

class _Lib:
    AK_OK: int
    AK_E_SHORT_HEADER: int
    AK_E_VERSION: int
    AK_E_ATT_KEY_TYPE: int
    AK_E_QE_VENDOR_ID: int
    AK_E_TEE_TYPE: int
    AK_E_SHORT_BODY_DESCRIPTOR: int
    AK_E_BODY_TYPE: int
    AK_E_BODY_SIZE: int
    AK_E_BODY_TEE_MISMATCH: int
    AK_E_SHORT_BODY: int
    AK_E_SHORT_SIG_LEN: int
    AK_E_SIG_DATA_TRUNCATED: int
    AK_E_TRAILING_BYTES: int
    AK_E_SIG: int
    AK_E_ATTESTATION_KEY: int
    AK_E_CERT_DATA_HEADER: int
    AK_E_OUTER_CERT_TYPE: int
    AK_E_OUTER_CERT_SIZE: int
    AK_E_QE_REPORT: int
    AK_E_QE_REPORT_SIG: int
    AK_E_QE_AUTH_LEN: int
    AK_E_QE_AUTH_DATA: int
    AK_E_INNER_CERT_HEADER: int
    AK_E_INNER_CERT_TYPE: int
    AK_E_INNER_CERT_SIZE: int
    AK_E_QE_BINDING: int
    AK_E_TOO_LONG: int
    AK_E_ENCLAVE: int
    AK_E_OFFSETS: int
    AK_E_LOG_TRUNCATED: int
    AK_E_LOG_HEADER: int
    AK_E_LOG_ALGORITHM: int
    AK_E_LOG_DUPLICATE: int
    AK_E_LOG_DIGEST_SIZE: int
    AK_E_LOG_BANK: int
    AK_E_LOG_INDEX: int
    AK_E_LOG_DIGEST_COUNT: int
    AK_E_LOG_EVENT_SIZE: int
    AK_E_LOG_TOO_MANY: int
    AK_E_LOG_TOO_LONG: int
    AK_E_LOG_RUNTIME: int
    AK_E_REGISTER: int
    AK_E_CBOR_TRUNCATED: int
    AK_E_CBOR_SYNTAX: int
    AK_E_CBOR_CHUNK: int
    AK_E_CBOR_INDEFINITE: int
    AK_E_CBOR_HEAD: int
    AK_E_CBOR_TYPE: int
    AK_E_CBOR_VALUES: int
    AK_E_CBOR_DEPTH: int
    AK_E_CBOR_ENTRIES: int
    AK_E_CBOR_KEY: int
    AK_E_CBOR_DUPLICATE: int
    AK_E_CBOR_TEXT: int
    AK_E_CBOR_TRAILING: int
    AK_AGENT_MAX_SIZE: int
    AK_JSON_ACCEPTED: int
    AK_JSON_REFUSED: int
    AK_JSON_LEFT: int
    AK_QUOTE_MAX_SIZE: int
    def ak_quote_walk(self, data: bytes, size: int, quote: FFI.CData) -> int: ...
    def ak_agent_json_walk(
        self, data: bytes, size: int, room: FFI.CData, room_size: int
    ) -> int: ...
    def ak_hex_decode(self, text: bytes, size: int, found: FFI.CData) -> int: ...
    def ak_replay(self, registers: bytes, digests: bytes, count: int, values: FFI.CData) -> int: ...
    def ak_replay_many(
        self,
        registers: bytes,
        digests: bytes,
        counts: FFI.CData,
        logs: int,
        values: FFI.CData,
    ) -> int: ...
    def ak_sha384(self, data: bytes, size: int, digest: FFI.CData) -> None: ...
    def ak_sha384_many(
        self,
        data: bytes,
        offsets: FFI.CData,
        sizes: FFI.CData,
        count: int,
        digests: FFI.CData,
    ) -> None: ...
    def ak_keccak(self, data: bytes, size: int, digest_size: int, digest: FFI.CData) -> None: ...
    def ak_cpu_features(self) -> int: ...
    def ak_cpu_limit(self, features: int) -> None: ...
    def ak_cpuid(self, leaf: int, subleaf: int, registers: FFI.CData) -> None: ...

ffi: FFI
lib: _Lib
