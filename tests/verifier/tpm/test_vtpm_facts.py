"""Facts of a TPM's quote: registers of the claims, look-up of PCRs, JSON and pickling."""

import pickle

from attestkit.verifier.claims import Claims, VtpmFacts

FACTS = VtpmFacts(
    attestation_key=b"key",
    key_trust="hardware_report",
    joins=("hardware_to_ak",),
    pcrs=(
        *(("sha384", index, bytes([index]) * 48) for index in (0, 7)),
        *(("sha256", index, bytes([index]) * 32) for index in (14, 0, 7)),
        ("sha1", 23, b"\1" * 20),
    ),
    replayed=(("sha256", 7),),
    reset_count=5,
    details=(("secure_boot", "true"),),
)


def test_registers_are_those_of_the_first_bank_in_order() -> None:
    """Registers are the PCRs of one bank, SHA-256 before others, by ascending number."""
    assert FACTS.registers() == tuple((f"pcr{index}", bytes([index]) * 32) for index in (0, 7, 14))
    assert VtpmFacts(b"", "listed", (), ()).registers() == ()
    sha1 = VtpmFacts(b"", "listed", (), (("sha1", 4, b"\4" * 20),))
    assert sha1.registers() == (("pcr4", b"\4" * 20),)


def test_pcr_is_found_by_bank_and_index() -> None:
    """A PCR that is not quoted has no value, whatever another bank has."""
    assert FACTS.pcr("sha384", 7) == b"\7" * 48
    assert FACTS.pcr("sha384", 14) is None
    assert FACTS["reset_count"] == 5


def test_facts_have_values_for_json() -> None:
    """Bytes are hex, PCRs have the names of their bank and index."""
    found = FACTS.to_dict()
    assert found["replayed"] == ["sha256:7"]
    assert isinstance(pcrs := found["pcrs"], dict)
    assert pcrs["sha1:23"] == "01" * 20
    assert (found["attestation_key"], found["clock_ms"]) == (b"key".hex(), None)


def test_claims_with_facts_pickle() -> None:
    """Claims keep the facts of the TPM when they are pickled, and have its PCRs by name."""
    claims = Claims("hcl-snp", bytes(64), FACTS.registers(), (), (), (), b"", vtpm=FACTS)
    again = pickle.loads(pickle.dumps(claims))
    assert again == claims
    assert again["pcr7"] == b"\7" * 32
