"""The closed list of disagreements with dcap-qvl 0.7 that dcap-verification.md allows.

A disagreement belongs to a class if the case has one of its facts (what was altered), and, if
attestkit alone rejects the case, one of its reasons. Everything else is a failure.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, NamedTuple


class DisagreementClass(NamedTuple):
    """A kind of disagreement."""

    name: str
    section: str  # of dcap-verification.md
    facts: tuple[str, ...]  # patterns
    reasons: frozenset[str] = frozenset()  # of attestkit's rejection

    def has(self, facts: Iterable[str], reason: str) -> bool:
        """Return whether a case that attestkit rejects for a reason belongs to the class."""
        return reason in self.reasons and self.has_fact(facts)

    def has_fact(self, facts: Iterable[str]) -> bool:
        """Return whether a case has a fact of the class."""
        return any(fnmatchcase(fact, pattern) for fact in facts for pattern in self.facts)


def _class(section: str, name: str, facts: str, reasons: str = "") -> DisagreementClass:
    """Return a class; facts are separated by commas, reasons by blanks."""
    patterns = tuple(fact.strip().replace("[]", "[[]]") for fact in facts.split(","))
    return DisagreementClass(name, section, patterns, frozenset(reasons.split()))


_MALFORMED: Final = "cert_malformed quote_format"

READ_OTHERWISE: Final = (
    _class("12.1", "SGX quotes of versions 4 and 5", "SGX quote of version 4 or 5"),
    _class("12.1", "QE authentication data of other lengths", "QE authentication data"),
    _class("12.1", "PCESVN over 32767", "PCESVN over 32767"),
    _class("12.1", "CPUSVN is not the components", "CPUSVN is not the components"),
    _class(
        "12.1",
        "unsorted levels of TDX module or quoting enclave",
        "QE levels unsorted, module levels unsorted, qe_identity.tcbLevels[].tcb.isvsvn replaced",
    ),
    _class("12.1", "QE levels of one ISVSVN", "QE levels of one ISVSVN"),
    _class(
        "5.2",
        "ISVSVN of a TDX module over 255",
        "tcb_info.tdxModuleIdentities[].tcbLevels[].tcb.isvsvn replaced",
    ),
    _class(
        "5.2",
        "TDX components in TCB info of SGX",
        "tcb_info.tcbLevels[].tcb.tdxtcbcomponents added",
    ),
)
"""Classes in which dcap-qvl reads evidence in another way than attestkit and Intel.

Its result for `levels.normalized` evidence must be that of attestkit for the evidence itself.
"""

REJECTED_HERE_ONLY: Final = (
    # Time
    _class("2", "thisUpdate of a CRL", "crl * early", "crl_expired"),
    _class(
        "2",
        "TCB info and QE identity at nextUpdate",
        "* at its end, tcb_info.nextUpdate replaced, qe_identity.nextUpdate replaced",
        "tcb_info_expired qe_identity_expired",
    ),
    _class("2", "validity of the trust anchor", "root early, root late", "cert_expired"),
    # Certificates
    _class(
        "3.1",
        "form of the PCK chain's PEM",
        "PCK chain *",
        "quote_format chain_length",
    ),
    _class(
        "3.4",
        "root certificate in the PCK chain",
        "PCK chain root*, chain pck",
        "cert_bad_signature cert_constraints unexpected_subject untrusted_root",
    ),
    _class("3.4", "profile of the trust anchor", "root *", "untrusted_root wrong_value"),
    _class(
        "3.5",
        "length and order of issuer chains",
        "chain pck_crl, chain tcb_info, chain qe_identity",
        "chain_length unexpected_subject cert_constraints",  # a leaf with the name of a CA
    ),
    _class("3.6", "length and order of the PCK chain", "chain pck", "chain_length"),
    _class("3.2", "serial numbers", "* serial", _MALFORMED),
    _class(
        "3.2",
        "the five extensions",
        "* left_out 14, * left_out 15, * left_out 19, * left_out 31, * left_out 35",
        "cert_constraints",
    ),
    _class(
        "3.2",
        "path length and key usage",
        "* path_length, * usage",
        "cert_constraints",
    ),
    _class(
        "3.2",
        "name and policy constraints, alternative names",
        "* extra 17, * extra 30, * extra 33, * extra 36, * extra 54",
        f"cert_constraints {_MALFORMED}",
    ),
    _class("3.3", "names", "* name", "unexpected_subject"),
    _class(
        "3.7",
        "SGX extension: number of entries, PPID, instance ID, flags, components",
        "sgx flags, sgx instance_id, sgx ppid, sgx components, sgx pceid",
        "quote_format",
    ),
    _class("7", "PCEID", "sgx pceid, tcb_info.pceId replaced", "tcb_info_mismatch"),
    # CRLs
    _class(
        "4", "CRL without number or authority key identifier", "crl * left_out", "crl_malformed"
    ),
    # TCB info and QE identity
    _class(
        "5.2",
        "platform or module levels twice",
        "platform level twice, module level twice",
        "tcb_info_malformed",
    ),
    _class("6", "QE levels twice", "QE level twice", "qe_identity_malformed"),
    _class(
        "5.2",
        "version, type and PCEID of TCB info",
        "tcb_info.version *, tcb_info.tcbType *, tcb_info.pceId *",
        "tcb_info_wrong_type tcb_info_malformed",
    ),
    _class("6", "version of QE identity", "qe_identity.version replaced", "qe_identity_wrong_type"),
    _class(
        "5.2",
        "dates in one form",
        "*Date replaced, *.nextUpdate replaced",
        "tcb_info_malformed qe_identity_malformed",
    ),
    _class(
        "5.2",
        "TDX modules in TCB info of SGX",
        "tcb_info.tdxModule added, tcb_info.tdxModuleIdentities added",
        "tcb_info_malformed tcb_info_wrong_type",
    ),
    _class(
        "5.2",
        "components of a level that is not reached, and their labels",
        "tcb_info.tcbLevels[].tcb.*",
        "tcb_info_malformed",
    ),
    _class(
        "5.2",
        "status words of levels that are not reached",
        "*tcbLevels[].tcbStatus replaced",
        "tcb_info_malformed qe_identity_malformed",
    ),
    _class(
        "8.1",
        "expected values of QE identity outside of the mask",
        "qe_identity.attributes*, qe_identity.miscselect*",
        "qe_identity_mismatch",
    ),
    _class(
        "8.3",
        "attributes of the TDX module",
        "tcb_info.tdxModule*attributes*, quote seam_attributes",
        "tdx_module_mismatch",
    ),
    # Quote
    _class(
        "7", "bytes behind the quote", "behind the quote, PCK chain * and behind", "trailing_bytes"
    ),
    _class("7", "bodies of TD 1.5 extended", "TD 1.5 extended", "body_type"),
    _class(
        "7",
        "headers of the certification data",
        "section header, certification header",
        "outer_cert_type inner_cert_size",
    ),
)
"""Classes that attestkit rejects and dcap-qvl accepts."""


def name_of(found: DisagreementClass) -> str:
    """Return section and name of a class, as in the record."""
    return f"{found.section} {found.name}"
