"""The closed list of reasons of each error class: what `error.reason` may be.

A reason is stable: programs compare it, while a text may change. `errors.py` binds each list to
its class, and docs/errors.md explains every reason.
"""

from typing import Literal

from attestkit._outcomes.steps import GpuReason

FormatReason = Literal[
    # Any format
    "duplicate",  # a field, label or item occurs twice
    "encoding",  # invalid hex, base64, PEM, UTF-8 or ASCII
    "inconsistent",  # two parts of the input contradict each other
    "missing",  # a required field or part is absent or empty
    "not_canonical",  # valid, but not in the one order or form that the format allows
    "syntax",  # not well-formed JSON, CBOR, MessagePack, DER, gzip, HTTP
    "too_deep",  # nested deeper than the limit
    "too_large",  # more bytes than the limit
    "too_many",  # more items than the limit
    "trailing_data",  # bytes follow the end of the value
    "truncated",  # the input ends inside a field
    "unknown_field",  # a field, label or tag that the format does not have
    "unreadable",  # a file or stream that cannot be opened or read
    "unrecognized",  # not this kind of file at all
    "unsupported",  # a valid kind, type or feature that is not supported
    "unsupported_algorithm",
    "unsupported_version",
    "wrong_size",  # a field of fixed size, or a count, has another value
    "wrong_type",  # a value of another type
    "wrong_value",  # a value outside of the range or set that the format allows
    # Quotes (the C core, quote.c)
    "att_key_type",
    "attestation_key",
    "body_size",
    "body_tee_mismatch",
    "body_type",
    "cert_data_header",
    "enclave",
    "inner_cert_header",
    "inner_cert_size",
    "inner_cert_type",
    "offsets",
    "outer_cert_size",
    "outer_cert_type",
    "qe_auth_data",
    "qe_auth_len",
    "qe_binding",
    "qe_report",
    "qe_report_sig",
    "qe_vendor_id",
    "quote_format",  # certificates inside a quote
    "short_body",
    "short_body_descriptor",
    "short_header",
    "short_sig_len",
    "sig",
    "sig_data_truncated",
    "tee_type",
    "too_long",
    "trailing_bytes",
    "version",
    # Event logs (the C core, tcg_log.c and rtmr_replay.c)
    "algorithm",
    "bank",
    "digest_count",
    "digest_size",
    "duplicate_algorithm",
    "event_size",
    "header",
    "index",
    "register",
    "runtime_event",
    "too_many_records",
    # Event logs (Python)
    "digest",
    "event_type",
    "imr",
    "other_log",  # a log of another platform or format
    "recnum",
    "startup_locality",
]
"""Bytes or text break their specification."""

UsageReason = Literal[
    "already_exists",  # an output file exists
    "any_app",  # the policy does not name app and image, and nothing says that this is intended
    "cannot_read",  # a file that the caller named
    "cannot_write",  # a file that the caller named
    "closed",  # the object is closed
    "conflict",  # two arguments exclude each other
    "encoding",  # an argument is not valid hex, base64, PEM, ASCII or Unicode text
    "invalid_key",  # a public or private key is not valid for its algorithm
    "key_epoch",  # keys of an epoch other than 0
    "missing",  # a required argument or one of a group is absent or empty
    "missing_dependency",  # the package of an extra is not installed
    "not_applicable",  # the argument does not apply to this platform or kind of input
    "not_picklable",
    "not_ready",  # an earlier step, such as a handshake, has not finished
    "out_of_range",  # a number or a time outside of the allowed range
    "plain_http",  # a request without TLS over an attested transport
    "refused_origin",  # an HTTP request from a web page
    "reserved",  # a reserved event name
    "too_large",  # more bytes than the limit
    "too_many",  # more items than the limit
    "unknown_name",  # no backend, field, scenario, fault or option of that name
    "unsupported_algorithm",
    "wrong_process",  # the object was opened in another process
    "wrong_size",  # an argument of fixed size has another
    "wrong_type",
    "wrong_value",  # not one of the allowed values
]
"""The caller's arguments are not valid."""

ConfigReason = Literal[
    "clock",  # the clock of this machine is wrong
    "conflict",  # two settings exclude each other
    "duplicate",
    "encoding",
    "in_use",  # another process uses the file, folder or address
    "missing",
    "permissions",  # owner or mode of a file is not safe
    "syntax",
    "too_deep",
    "too_large",
    "too_many",
    "unknown_key",
    "unreadable",
    "unsupported_version",
    "unwritable",
    "wrong_size",
    "wrong_type",
    "wrong_value",
]
"""A configuration or policy file, or the environment, is wrong."""

NotFoundReason = Literal["container", "method", "path"]
"""The server has no such method, container or page."""

UnsupportedReason = Literal[
    "feature",  # the kernel, agent or backend lacks it
    "key_epoch",  # the agent returned a key of an epoch other than 0
    "no_app",  # no application is known here
    "no_certificates",
    "no_keys",
    "no_quote",
    "no_registers",  # no run-time registers that a program can extend or read
    "os_image",  # the evidence does not suffice to verify the OS image
    "root",  # no built-in root certificate for this product
]
"""The platform does not have this ability."""

BackendUnavailableReason = Literal[
    "cannot_connect",
    "missing",  # a device, file or service is missing
    "missing_dependency",
    "no_backend",  # detection found no usable backend
    "not_configured",
    "permission_denied",
    "simulated",  # a simulated TEE that was not asked for by name
    "unreadable",
    "unsupported_driver",  # the driver of GPUs is too old, or of another version than its library
    "unsupported_kernel",
    "wrong_platform",
]
"""The platform is missing or not accessible."""

BackendBusyReason = Literal[
    "address",  # another process listens on the port or socket
    "device",
    "interrupted",  # by signals, repeatedly
    "lock",
    "overloaded",  # too many requests are pending
    "request_in_flight",
    "state",
    "timed_out",
]
"""Another process or an earlier request has the device."""

QuoteUnavailableReason = Literal[
    "agent_error",  # the agent answered with an error
    "cannot_connect",
    "connection_lost",
    "empty",  # the host returned no quote
    "key_lost",  # SEV-SNP: the driver has wiped its key; reboot the guest
    "not_recorded",
    "quoting_service",  # the host's quoting service reported an error, or is missing
    "request_failed",  # SEV-SNP: the host or the secure processor rejected the request
    "timed_out",
    "too_short",
]
"""The platform is available, but it returned no quote."""

BackendReason = (
    Literal[
        "agent_error",  # the guest agent or the container engine answered with an error
        "gpu_error",  # the driver of a GPU or NVSwitch answered with an error
        "io_error",  # an operation of the kernel failed
        "malformed_response",
        "outcome_unknown",  # whether the operation took effect is not known
        "plugin",
        "platform_changed",  # the TEE or its boot changed since it was opened
        "register_conflict",  # another process extended the register
        "register_unchanged",
        "state",  # the simulator's state folder is damaged or not writable
        "too_large",
        "tpm_error",  # a TPM answered with an error
        "truncated",
        "wrong_report_data",  # the evidence is over other report data than requested
    ]
    | BackendUnavailableReason
    | BackendBusyReason
    | QuoteUnavailableReason
)
"""The platform is available and returned an error or an invalid answer."""

JournalReason = Literal[
    "closed",
    "damaged",
    "event_version",  # the boot's events have another digest version than configured
    "mismatch",  # the log does not explain the register
    "not_recorded",  # an event is in the register and not yet in the log
    "outcome_unknown",
    "too_large",
    "too_late",  # the boot events can no longer be measured
    "unreadable",
    "unwritable",
]
"""The runtime event log on disk is unusable or does not match the register."""

KmsReason = Literal[
    "bad_signature",  # the signature of the app's root key, or of the environment's key
    "connection",  # no connection, or no complete answer
    "evidence_refused",  # the KMS's own evidence was not accepted
    "expired",  # a certificate is not valid now
    "invalid_key",  # a key of the answer is not valid for its algorithm
    "malformed",  # an answer that is not that of a KMS, or is too large
    "no_evidence",  # the KMS's certificate has none, and a verifier requires it
    "no_urls",
    "refused",  # the KMS answered with an error
    "timeout",
    "wrong_certificate",  # a certificate is not for the key, app or issuer that it must be for
    "wrong_identity",  # kept keys or an answer are of another app
    "wrong_image",  # the KMS names another OS image
    "wrong_provider",  # the log, or the app's configuration, names another key provider
    "wrong_root",  # the KMS is not a pinned one
    "wrong_size",  # a key or signature of the answer has another size
    "wrong_usage",  # the server's certificate is not that of a KMS
]
"""A KMS could not be reached, refused, or its answer was not accepted."""

ServiceReason = Literal[
    "connection",  # no connection, or no complete answer
    "ends_at_gateway",  # the channel ends at a gateway, and the model's machine is required
    "identity",  # the app or image differs from that of the first use
    "no_app",  # nothing identifies the running program
    "no_attestation",  # the server has no evidence where the service should have it
    "no_channel",  # nothing binds the connection, or the request, to the evidence
    "no_freshness",  # the evidence may be old
    "no_gpu",  # evidence of GPUs is missing
    "no_signatures",  # the service does not sign its answers
    "nonce_echo",  # the answer is to another nonce than that of the client
    "other_key",  # the key of the connection is not one that the evidence is about
    "other_origin",  # a request, or a redirect, to another server than the proven one
    "refused_recently",  # the server was refused several times in a row
    "sealing",  # a request cannot be sealed, or an answer not be opened
    "signature",  # the signature of an answer or of a document is not valid
    "timeout",
    "unknown_service",  # nothing that the server has is known to be evidence
]
"""A server's evidence does not show that it is the service that the caller requires."""

CollateralExpiredReason = Literal[
    "cert_expired",
    "crl_expired",
    "ocsp_expired",  # an OCSP answer is no longer valid, or older than allowed
    "ocsp_not_yet_valid",
    "qe_identity_expired",
    "qe_identity_not_yet_valid",
    "tcb_info_expired",
    "tcb_info_not_yet_valid",
]
"""Endorsements are too old or too new for the time of the verification."""

CollateralReason = (
    Literal[
        "cert_malformed",
        "crl_malformed",
        "fetch_failed",  # the service could not be reached, or returned an error
        "fetch_needed",  # a fetch is needed, and fetching is off
        "malformed",
        "missing",
        "pck_chain_missing",
        "qe_identity_malformed",
        "tcb_info_malformed",
        "too_large",
        "unreadable",
        "unwritable",  # a file that the caller named
    ]
    | CollateralExpiredReason
)
"""Endorsements are missing, malformed, or cannot be fetched."""

SignatureReason = Literal[
    "attestation_key_unbound",
    "ak_attributes",  # the attestation key of a TPM is not restricted to what the TPM made
    "ak_mismatch",  # the quote's key is not that of the certificate or the hardware report
    "ak_unknown",  # nothing that the verifier trusts certifies the TPM's attestation key
    "bad_signature",
    "cert_bad_signature",
    "cert_constraints",
    "cert_malformed",
    "cert_not_authority",
    "cert_revoked",
    "cert_unknown_extension",
    "cert_wrong_authority",
    "chain_length",
    "chip_id_mismatch",
    "crl_bad_signature",
    "crl_missing",
    "document_algorithm",
    "document_bad_signature",
    "document_critical_header",
    "ear_bad_header",
    "ear_bad_signature",
    "invalid_key",
    "no_issuer",  # a chain without the signature of a KMS
    "ocsp_bad_signature",
    "ocsp_responder",  # an OCSP answer is not of a responder that the issuer authorized
    "ocsp_unknown",  # the responder does not know the certificate
    "product_mismatch",
    "qe_identity_bad_signature",
    "qe_report_bad_signature",
    "quote_bad_signature",
    "report_bad_signature",
    "signing_key",
    "tcb_info_bad_signature",
    "tcb_mismatch",
    "tpm_quote_algorithm",
    "tpm_quote_bad_signature",
    "unexpected_subject",
    "untrusted_root",
]
"""A signature or a certificate chain is not valid."""

ReplayReason = Literal[
    "host_data_mismatch",
    "ima_mismatch",  # the IMA log does not replay to PCR 10
    "pcr_mismatch",  # a log does not replay to a PCR
    "rtmr_mismatch",
]
"""Event log and registers disagree."""

PolicyReason = Literal[
    "acpi_tables",
    "advisory",
    "app_id",
    "attributes",
    "cached_keys",
    "chip_key_masked",
    "ciphertext_hiding",
    "compose_hash",
    "console_enabled",
    "debug",
    "device_id",
    "dynamic_platform",
    "evaluation_data_number",
    "gce_instance",
    "gce_project",
    "gce_zone",
    "grace_period",
    "id_key_digest",
    "init_data",
    "instance_id",
    "key_provider",
    "migration_agent",
    "minimum_svn",
    "minimum_version",
    "mr_aggregated",
    "mr_system",
    "os_image_hash",
    "paravisor_measurement",
    "pcrs",
    "platform",
    "provisional_firmware",
    "rapl",
    "reference_value",
    "report_data",
    "require_mr_config",
    "require_joins",
    "required_event",
    "secure_boot",
    "sev_features",
    "simulated",
    "smt",
    "tcb_status",
    "td_debug",
    "tpm_persisted",
    "trusted_aks",
    "vcpu_type",
    "vcpus",
    "vlek_providers",
    "vmpl",
]
"""The evidence is authentic, and the policy does not accept it."""

VerificationReason = (
    Literal[
        "cert_expired",
        "cert_lifetime",
        "cert_usage",
        "document_expired",
        "ear_bad_claim",
        "ear_expired",
        "ear_nonce",
        "ear_not_yet_valid",
        "ear_policy",
        "ear_profile",
        "ear_report_data",
        "enclave_debug",
        "event",  # a runtime event's digest does not match its payload
        "hcl_binding",  # the hardware report is not over the runtime data of the HCL report
        "hcl_user_data",  # the paravisor's user data are not the report data
        "identity",
        "instance_info",  # claims about a Google VM differ from those of its certificate
        "internal",
        "mr_config",
        "no_certificate",
        "no_evidence",
        "os_image",
        "pcr_digest",  # the delivered PCR values are not the quoted ones
        "pcr_selection",  # a quote selects other PCRs, or another bank
        "qe_identity_mismatch",
        "qe_identity_wrong_type",
        "report_data",
        "report_data_mismatch",
        "service_td",
        "session_reused",
        "tcb_info_mismatch",
        "tcb_info_wrong_type",
        "tcb_not_supported",
        "tcb_revoked",
        "td_attributes",
        "td_debug",
        "tdx_module_mismatch",
        "tpm_join",  # the TPM's quote is not over the hardware's evidence
        "tpm_qualifying_data",  # the quote is over other data than required
        "unusable",
    ]
    | SignatureReason
    | ReplayReason
    | PolicyReason
    | CollateralExpiredReason
    | GpuReason
)
"""Well-formed evidence fails verification."""
