"""The closed list of allowed disagreements with dcap-qvl 0.7.

A disagreement belongs to a class if the case has one of its facts (what was altered), and, if
attestkit alone rejects the case, one of its reasons. Everything else is a failure.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final, NamedTuple


class DisagreementClass(NamedTuple):
    """A kind of disagreement."""

    name: str
    facts: tuple[str, ...]  # patterns
    reasons: frozenset[str] = frozenset()  # of attestkit's rejection

    def has(self, facts: Iterable[str], reason: str) -> bool:
        """Return whether a case that attestkit rejects for a reason belongs to the class."""
        return reason in self.reasons and self.has_fact(facts)

    def has_fact(self, facts: Iterable[str]) -> bool:
        """Return whether a case has a fact of the class."""
        return any(fnmatchcase(fact, pattern) for fact in facts for pattern in self.facts)


def _class(name: str, facts: str, reasons: str = "") -> DisagreementClass:
    """Return a class; facts are separated by commas, reasons by blanks."""
    patterns = tuple(fact.strip().replace("[]", "[[]]") for fact in facts.split(","))
    return DisagreementClass(name, patterns, frozenset(reasons.split()))


_MALFORMED: Final = "cert_malformed quote_format"

READ_OTHERWISE: Final = (
    _class("SGX quotes of versions 4 and 5", "SGX quote of version 4 or 5"),
    _class("QE authentication data of other lengths", "QE authentication data"),
    _class("PCESVN over 32767", "PCESVN over 32767"),
    _class("CPUSVN is not the components", "CPUSVN is not the components"),
    _class(
        "unsorted levels of TDX module or quoting enclave",
        "QE levels unsorted, module levels unsorted, qe_identity.tcbLevels[].tcb.isvsvn replaced",
    ),
    _class("QE levels of one ISVSVN", "QE levels of one ISVSVN"),
    _class(
        "ISVSVN of a TDX module over 255",
        "tcb_info.tdxModuleIdentities[].tcbLevels[].tcb.isvsvn replaced",
    ),
    _class(
        "TDX components in TCB info of SGX",
        "tcb_info.tcbLevels[].tcb.tdxtcbcomponents added",
    ),
)
"""Classes in which dcap-qvl reads evidence in another way than attestkit and Intel.

Its result for `levels.normalized` evidence must be that of attestkit for the evidence itself.
"""

REJECTED_HERE_ONLY: Final = (
    # Time
    _class("thisUpdate of a CRL", "crl * early", "crl_expired"),
    _class(
        "TCB info and QE identity at nextUpdate",
        "* at its end, tcb_info.nextUpdate replaced, qe_identity.nextUpdate replaced",
        "tcb_info_expired qe_identity_expired",
    ),
    _class("validity of the trust anchor", "root early, root late", "cert_expired"),
    # Certificates
    _class(
        "form of the PCK chain's PEM",
        "PCK chain *",
        "quote_format chain_length",
    ),
    _class(
        "root certificate in the PCK chain",
        "PCK chain root*, chain pck",
        "cert_bad_signature cert_constraints unexpected_subject untrusted_root",
    ),
    _class("profile of the trust anchor", "root *", "untrusted_root wrong_value"),
    _class(
        "length and order of issuer chains",
        "chain pck_crl, chain tcb_info, chain qe_identity",
        "chain_length unexpected_subject cert_constraints",  # a leaf with the name of a CA
    ),
    _class("length and order of the PCK chain", "chain pck", "chain_length"),
    _class("serial numbers", "* serial", _MALFORMED),
    _class(
        "the five extensions",
        "* left_out 14, * left_out 15, * left_out 19, * left_out 31, * left_out 35",
        "cert_constraints",
    ),
    _class(
        "path length and key usage",
        "* path_length, * usage",
        "cert_constraints",
    ),
    _class(
        "name and policy constraints, alternative names",
        "* extra 17, * extra 30, * extra 33, * extra 36, * extra 54",
        f"cert_constraints {_MALFORMED}",
    ),
    _class("names", "* name", "unexpected_subject"),
    _class(
        "SGX extension: number of entries, PPID, instance ID, flags, components",
        "sgx flags, sgx instance_id, sgx ppid, sgx components, sgx pceid",
        "quote_format",
    ),
    _class("PCEID", "sgx pceid, tcb_info.pceId replaced", "tcb_info_mismatch"),
    # CRLs
    _class("CRL without number or authority key identifier", "crl * left_out", "crl_malformed"),
    # TCB info and QE identity
    _class(
        "platform or module levels twice",
        "platform level twice, module level twice",
        "tcb_info_malformed",
    ),
    _class("QE levels twice", "QE level twice", "qe_identity_malformed"),
    _class(
        "version, type and PCEID of TCB info",
        "tcb_info.version *, tcb_info.tcbType *, tcb_info.pceId *",
        "tcb_info_wrong_type tcb_info_malformed",
    ),
    _class("version of QE identity", "qe_identity.version replaced", "qe_identity_wrong_type"),
    _class(
        "dates in one form",
        "*Date replaced, *.nextUpdate replaced",
        "tcb_info_malformed qe_identity_malformed",
    ),
    _class(
        "TDX modules in TCB info of SGX",
        "tcb_info.tdxModule added, tcb_info.tdxModuleIdentities added",
        "tcb_info_malformed tcb_info_wrong_type",
    ),
    _class(
        "components of a level that is not reached, and their labels",
        "tcb_info.tcbLevels[].tcb.*",
        "tcb_info_malformed",
    ),
    _class(
        "status words of levels that are not reached",
        "*tcbLevels[].tcbStatus replaced",
        "tcb_info_malformed qe_identity_malformed",
    ),
    _class(
        "expected values of QE identity outside of the mask",
        "qe_identity.attributes*, qe_identity.miscselect*",
        "qe_identity_mismatch",
    ),
    _class(
        "attributes of the TDX module",
        "tcb_info.tdxModule*attributes*, quote seam_attributes",
        "tdx_module_mismatch",
    ),
    # Quote
    _class("bytes behind the quote", "behind the quote, PCK chain * and behind", "trailing_bytes"),
    _class("bodies of TD 1.5 extended", "TD 1.5 extended", "body_type"),
    _class(
        "headers of the certification data",
        "section header, certification header",
        "outer_cert_type inner_cert_size",
    ),
)
"""Classes that attestkit rejects and dcap-qvl accepts."""
