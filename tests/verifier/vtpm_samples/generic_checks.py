"""Checks of samples of any TPM, and of composed evidence, against `expected.json`."""

from collections.abc import Callable

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.event_log.ima import ImaLog
from attestkit.tpm import TpmtPublic, TpmtSignature
from attestkit.verifier.platforms.vtpm.pcr_logs import replay_pcr_logs
from tests.verifier.platforms.vtpm import test_quote as quotes
from tests.verifier.platforms.vtpm.tpm_samples import qemu
from tests.verifier.vtpm_samples import facts
from tests.verifier.vtpm_samples.facts import Facts
from tests.verifier.vtpm_samples.samples import EXPECTED, sample


def generic_quote(name: str) -> None:
    """The quote of CoCo's generic attester is valid, by the key beside it."""
    quote = quotes.trustee()
    platform = Attestation.from_bytes(sample(name)).evidence.platform
    assert isinstance(platform, Tpm)
    assert platform.vtpm_quote.message == quote.message
    quote.verify()
    signature = TpmtSignature.parse(quote.signature)
    seen = {
        "attest": facts.attest_facts(quote.message),
        "signature": f"{signature.algorithm}-{signature.hash_name}",
        "signature_ok": True,
        "pcr_digest_ok": True,
    }
    assert seen == EXPECTED[name]


def lone_attest(name: str) -> None:
    """A TPMS_ATTEST without its signature has the expected fields."""
    assert {"attest": facts.attest_facts(sample(name))} == EXPECTED[name]


def swtpm_boot(name: str) -> None:
    """Keys, quotes, boot log and IMA lists of one boot are as expected, and agree."""
    expected = EXPECTED[name]
    seen: Facts = {}
    for kind in ("ecc", "rsa"):
        public = TpmtPublic.parse(sample(f"{name}/ak-{kind}.public"))
        own = public.qualified_name(facts.ENDORSEMENT).hex()
        seen[f"ak-{kind}"] = facts.public_facts(public) | {"key_qualified_name": own}
    for kind in ("sha256", "sha384", "rsa"):
        quote = qemu(kind)
        quote.verify()
        signature = TpmtSignature.parse(quote.signature)
        attest = facts.attest_facts(quote.message)
        key = seen["ak-rsa" if kind == "rsa" else "ak-ecc"]
        seen[f"quote-{kind}"] = {
            "attest": attest,
            "signature": f"{signature.algorithm}-{signature.hash_name}",
            "signature_ok": True,
            "pcr_digest_ok": True,
            "qualified_signer_ok": attest["qualified_signer"] == key["key_qualified_name"],
        }
    assert seen | swtpm_logs(name) == expected


def swtpm_logs(name: str) -> Facts:
    """Return the facts of the logs of the boot."""
    boot = sample(f"{name}/binary_bios_measurements")
    pcrs = {bank: qemu(bank).verify().pcrs for bank in ("sha256", "sha384")}
    replayed = {bank: replay_pcr_logs(pcrs[bank], boot, b"").replayed for bank in pcrs}
    equal = {bank: {str(index): True for _, index in replayed[bank]} for bank in pcrs}
    values = {(bank, index): value for found in pcrs.values() for bank, index, value in found}
    lists = {}
    for bank, suffix in (("sha1", ""), ("sha256", "_sha256"), ("sha384", "_sha384")):
        lists[bank] = ImaLog.parse(sample(f"{name}/binary_runtime_measurements{suffix}"))
        assert lists[bank].bank == bank
    found: Facts = {"boot_log": {**facts.log_facts(boot), "replay_equals": equal}}
    for bank in pcrs:
        reached = lists[bank].match(bank, values[bank, 10])
        assert reached is not None
        found[f"ima_{bank}"] = {
            "records": len(lists[bank].records),
            "template": ", ".join({one.template for one in lists[bank].records}),
            "template_digests_ok": all(
                one.digest == one.template_digest(bank) for one in lists[bank].records
            ),
            "pcr10_reached_after": reached.records,
        }
    reached = lists["sha1"].match("sha256", values["sha256", 10])
    assert reached is not None
    aggregate = sha256(b"".join(values["sha256", index] for index in range(10)))
    found["ima_sha1_list"] = {
        "records": len(lists["sha1"].records),
        "sha256_pcr10_reached_after": reached.records,
        "boot_aggregate_is_sha256_of_pcr0_to_9": lists["sha1"].boot_aggregate
        == ("sha256", aggregate),
    }
    return found


def composed(name: str, verdict: Callable[[str, str], None], claims: Callable[[], None]) -> None:
    """Each case passes or fails at its place, in both encodings, with the expected claims."""
    for case, expected in EXPECTED[name]["cases"].items():
        for encoding in ("v0", "v1"):
            raw = sample(f"{name}/{case}.{encoding}.bin")
            assert len(raw) == expected[f"{encoding}_size"]
            assert sha256(raw).hex() == expected[f"{encoding}_sha256"]
            verdict(case, encoding)
    claims()
