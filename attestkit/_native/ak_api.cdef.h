/* The public declarations of the C core, for the compiler and for cffi, which does not support
 * preprocessor directives. */

/* Status codes. _status.py has the reason and the error message of each. */
typedef enum {
    AK_OK = 0,

    /* quote.c: 1 to 63, in the order of the checks. */
    AK_E_SHORT_HEADER = 1,          /* 47 bytes */
    AK_E_VERSION = 2,               /* version 6 */
    AK_E_ATT_KEY_TYPE = 3,          /* ECDSA P-384 */
    AK_E_QE_VENDOR_ID = 4,          /* not Intel's */
    AK_E_TEE_TYPE = 5,              /* a version 3 quote of a TD */
    AK_E_SHORT_BODY_DESCRIPTOR = 6, /* version 5, 53 bytes */
    AK_E_BODY_TYPE = 7,             /* body type 9 */
    AK_E_BODY_SIZE = 8,             /* a TD 1.0 body of 583 bytes */
    AK_E_BODY_TEE_MISMATCH = 9,     /* an enclave report in a quote of a TD */
    AK_E_SHORT_BODY = 10,           /* the header alone */
    AK_E_SHORT_SIG_LEN = 11,        /* 2 of the 4 bytes of the length */
    AK_E_SIG_DATA_TRUNCATED = 12,   /* 4 GiB announced, 5 kB there */
    AK_E_TRAILING_BYTES = 13,       /* text after the quote */
    AK_E_SIG = 14,                  /* signature data of 63 bytes */
    AK_E_ATTESTATION_KEY = 15,      /* signature data of 127 bytes */
    AK_E_CERT_DATA_HEADER = 16,     /* signature data of 133 bytes */
    AK_E_OUTER_CERT_TYPE = 17,      /* outer certification data of type 5 */
    AK_E_OUTER_CERT_SIZE = 18,      /* one byte less than what is left */
    AK_E_QE_REPORT = 19,            /* 383 bytes of it */
    AK_E_QE_REPORT_SIG = 20,        /* 63 bytes of it */
    AK_E_QE_AUTH_LEN = 21,          /* 1 of the 2 bytes of the length */
    AK_E_QE_AUTH_DATA = 22,         /* 32 announced, 31 there */
    AK_E_INNER_CERT_HEADER = 23,    /* 5 of 6 bytes */
    AK_E_INNER_CERT_TYPE = 24,      /* type 6 inside type 6 */
    AK_E_INNER_CERT_SIZE = 25,      /* one byte less than what is left */
    AK_E_QE_BINDING = 26,           /* another attestation key than the QE reported */
    AK_E_TOO_LONG = 27,             /* a quote with 1 MiB of zeros behind it; checked first */
    AK_E_ENCLAVE = 28,              /* a quote of an SGX enclave among columns of TDs */
    AK_E_OFFSETS = 29,              /* the third quote starts where the second does */

    /* tcg_log.c and rtmr_replay.c: 64 to 127. */
    AK_E_LOG_TRUNCATED = 64,    /* an event of 9 bytes of which 8 are there */
    AK_E_LOG_HEADER = 65,       /* a Spec ID event that announces 17 algorithms */
    AK_E_LOG_ALGORITHM = 66,    /* a SHA-512 digest where the header has SHA-384 alone */
    AK_E_LOG_DUPLICATE = 67,    /* two SHA-256 digests in one record */
    AK_E_LOG_DIGEST_SIZE = 68,  /* SHA-384 of 32 bytes */
    AK_E_LOG_BANK = 69,         /* a CCEL with SHA-256 digests */
    AK_E_LOG_INDEX = 70,        /* a CCEL record that extends index 0, MRTD */
    AK_E_LOG_DIGEST_COUNT = 71, /* a record without a digest */
    AK_E_LOG_EVENT_SIZE = 72,   /* an event of 2 MiB */
    AK_E_LOG_TOO_MANY = 73,     /* the 65,537th record */
    AK_E_LOG_TOO_LONG = 74,     /* a log of 17 MiB */
    AK_E_LOG_RUNTIME = 75,      /* the guest agent's event type in a CCEL */
    AK_E_REGISTER = 76,         /* RTMR4 */

    /* cbor_check.c: 128 to 191. */
    AK_E_CBOR_TRUNCATED = 128,  /* an array of 3 items of which 2 are there */
    AK_E_CBOR_SYNTAX = 129,     /* the reserved initial byte 1c; a break that ends nothing */
    AK_E_CBOR_CHUNK = 130,      /* a byte string among the chunks of a text string */
    AK_E_CBOR_INDEFINITE = 131, /* an array that a break ends, where canonical CBOR is required */
    AK_E_CBOR_HEAD = 132,       /* 1 in two bytes, where canonical CBOR is required */
    AK_E_CBOR_TYPE = 133,       /* a tag, a float, undefined */
    AK_E_CBOR_VALUES = 134,     /* the 65,537th value */
    AK_E_CBOR_DEPTH = 135,      /* a value inside 17 arrays */
    AK_E_CBOR_ENTRIES = 136,    /* the 4,097th entry of a map */
    AK_E_CBOR_KEY = 137,        /* a map whose key is an array */
    AK_E_CBOR_DUPLICATE = 138,  /* the keys 01 and 1801; the keys 1 and true */
    AK_E_CBOR_TEXT = 139,       /* text in Latin-1 */
    AK_E_CBOR_TRAILING = 140    /* a second value */
} ak_status;

/* Offsets and sizes of the parts of a quote, in bytes from its start. */
typedef struct {
    uint64_t at; /* offset of the error, if the quote is malformed */
    uint64_t body;
    uint64_t body_size; /* 384, 584 or 648 */
    uint64_t signature; /* 64 bytes, then the attestation key, 64 bytes */
    uint64_t qe_report; /* 384 bytes, then its signature, 64 bytes */
    uint64_t qe_auth_data;
    uint64_t qe_auth_data_size;
    uint64_t certification_type; /* 1 to 5 */
    uint64_t certification;
    uint64_t end; /* the quote without its padding */
} ak_quote;

/* Maximum size of a quote in bytes, including zero padding. */
enum { AK_QUOTE_MAX_SIZE = 131072 };

/* Check a quote of version 3, 4 or 5, and get the offsets of its parts. */
ak_status ak_quote_walk(const uint8_t *data, size_t size, ak_quote *quote);

/* CPU features that may be used, AK_CPU_* bits; ak_cpu_limit restricts them, for tests. */
uint32_t ak_cpu_features(void);
void ak_cpu_limit(uint32_t features);

/* EAX, EBX, ECX, EDX of a CPUID leaf; zeros if the CPU does not have the leaf, or CPUID. */
void ak_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers);

/* Extend the four registers by 48-byte digests: 4 values of 48 bytes. */
ak_status ak_replay(const uint8_t *registers, const uint8_t *digests, size_t count,
                    uint8_t *values);

/* The same for many concatenated logs; `counts` has the number of events of each. */
ak_status ak_replay_many(const uint8_t *registers, const uint8_t *digests, const uint32_t *counts,
                         size_t logs, uint8_t *values);

/* SHA-384: 48 bytes. */
void ak_sha384(const uint8_t *data, size_t size, uint8_t *digest);

/* SHA-384 of many messages. Message i has sizes[i] bytes at data + offsets[i]; without offsets,
 * messages are concatenated. Its digest is written to digests + 48 * i. */
void ak_sha384_many(const uint8_t *data, const uint32_t *offsets, const uint32_t *sizes,
                    size_t count, uint8_t *digests);

/* Keccak-256, -384 or -512: digest_size is 32, 48 or 64. */
void ak_keccak(const uint8_t *data, size_t size, size_t digest_size, uint8_t *digest);

/* Result of parsing JSON: accepted; refused, as by Python's parser; or left to that parser, which
 * may accept or refuse the text. */
typedef enum { AK_JSON_ACCEPTED = 0, AK_JSON_REFUSED = 1, AK_JSON_LEFT = 2 } ak_json_outcome;

/* One event of the agent's log. Offsets and sizes are those of strings without quotation marks. */
typedef struct {
    uint8_t imr;          /* 0 to 3 */
    uint8_t version;      /* 1 or 2; 1 if absent */
    uint8_t digest_size;  /* in bytes: 48, or 0 for a runtime event */
    uint8_t name_escaped; /* 1: the name has escapes */
    uint32_t event_type;
    uint32_t digest; /* hex; undefined if digest_size is 0 */
    uint32_t name;
    uint32_t name_size;
    uint32_t payload; /* hex */
    uint32_t payload_size;
} ak_agent_row;

/* The result of parsing the agent's log. Offsets are in bytes from the start of this struct. */
typedef struct {
    uint32_t count; /* of the events */
    uint32_t rows;
    uint32_t extending; /* number of events that extend a register */
    uint32_t registers; /* their register numbers, 0 to 3 */
    uint32_t digests;   /* their digests, 48 bytes each; computed for runtime events */
    uint32_t regular;   /* 1: RTMR3 has all runtime events and no other extending events, and no
                           version 1 name has a colon */
} ak_agent_log;

/* Maximum size of such a log in bytes. */
enum { AK_AGENT_MAX_SIZE = 16777216 };

/* Parse the agent's log. The buffer `room`, aligned as by malloc, is used for the result, which
 * starts with an ak_agent_log, and as scratch space. 4 * size + 256 bytes are sufficient. */
ak_json_outcome ak_agent_json_walk(const uint8_t *data, size_t size, uint8_t *room,
                                   size_t room_size);

/* Decode hex in upper or lower case; returns 0 if the text is not an even number of digits. */
int ak_hex_decode(const uint8_t *text, size_t size, uint8_t *found);
