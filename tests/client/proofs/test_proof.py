"""Text and data of a proof: every line is a check that was made."""

import json
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest

from attestkit.client import verify_proof
from attestkit.client.proofs.proof import Proof
from attestkit.client.services.service import Binding
from attestkit.verifier import AppraisalPolicy, ReferenceValues
from tests.client.proofs.saved_proofs import saved_proof
from tests.runner.cases import every_case
from tests.untyped import untyped

KEY = bytes(range(32))


def proof() -> Proof:
    """Return the proof of a simulated server."""
    return saved_proof().proof


def proof_by(**rules: Any) -> Proof:
    """Return the proof of a simulated server, verified with these rules alone."""
    saved = saved_proof()
    return verify_proof(
        saved.proof.bundle,
        policy=AppraisalPolicy.default().replace(**rules),
        trust_anchor=saved.trust_anchor,
    )


def identity() -> tuple[bytes, bytes, bytes]:
    """Return app id, compose hash and OS image hash of the simulated server."""
    result = proof().result
    assert result.app_info is not None
    image = result.claims.os_image_hash
    return result.app_info.app_id, result.app_info.compose_hash, image


def line(text: str, name: str) -> str:
    """Return the line of a name."""
    [found] = [one for one in text.splitlines() if one.startswith(f"  {name} ")]
    return found


def test_text() -> None:
    """Origin, service, times; hardware, code, freshness and channel; that it is simulated."""
    found = proof()
    text = str(found)
    first = text.splitlines()[0]
    assert first.startswith(f"{found.origin}  PROVEN  SIMULATED, protects nothing  (attestkit, ")
    assert f"until {found.valid_until:%H:%M:%S})" in first
    assert line(text, "hardware").endswith("TCB UpToDate, not in debug mode")
    assert "as the policy pins it" in line(text, "code")
    assert "our nonce" in line(text, "fresh")
    assert found.bindings[0].key.hex()[:16] in line(text, "channel")
    assert "NOT shown" not in text


def test_what_is_not_shown() -> None:
    """It is in the text, in one line, without control characters."""
    text = str(replace(proof(), not_proven=("one\x1b[31m", "two\nthree")))
    assert "\x1b" not in text
    shown = line(text, "NOT shown")
    assert "one" in shown
    assert "three" in shown


def test_proof_lists_cautions_of_results() -> None:
    """Skipped checks and cautions of a machine are among what is not proven, as text and data."""
    app, _, image = identity()
    found = proof_by(app_id=[app], os_image_hash=[image])
    assert found.result.not_proven == ("acpi_tables",)
    [caution] = [step.text for step in found.result.steps if step.check == "acpi_tables"]
    assert caution in found.not_proven
    assert caution in untyped(found.to_dict())["not_proven"]
    assert caution in line(str(found), "NOT shown")


def test_proof_of_certificate_does_not_show_age_of_evidence() -> None:
    """Any lifetime of an RA-TLS certificate is accepted, which the proof states."""
    found = saved_proof(ra_tls=True).proof
    [caution] = [step.text for step in found.result.steps if step.check == "certificate_key"]
    assert caution in found.not_proven


@pytest.mark.parametrize(
    ("rules", "pinned", "others"),
    [
        ("app_id os_image_hash", "app image", "compose"),
        ("compose_hash os_image_hash", "compose image", "app"),
        ("app_id compose_hash os_image_hash", "app compose image", ""),
        ("app_id registers", "app image", "compose"),
        ("rtmr3 registers", "app compose image", ""),
    ],
)
def test_proof_names_values_without_a_rule_as_not_pinned(
    rules: str, pinned: str, others: str
) -> None:
    """The policy is named as the source of those values only that it compares."""
    app, compose, image = identity()
    result = proof().result
    names = ("mrtd", "rtmr1", "rtmr2", "rtmr3")
    registers: dict[str, Any] = {name: [result.claims.get(name)] for name in names}
    values: dict[str, Any] = {"app_id": [app], "compose_hash": [compose], "os_image_hash": [image]}
    wanted = {name: values[name] for name in rules.split() if name in values}
    if "registers" in rules:
        if "rtmr3" not in rules:
            del registers["rtmr3"]
        wanted["reference_values"] = ReferenceValues(**registers)
    hashes = {"app": app, "compose": compose, "image": image}

    def listed(names: str) -> str:
        return ", ".join(f"{name} {hashes[name].hex()[:16]}…" for name in names.split())

    expected = f"{listed(pinned)} as the policy pins it"
    if others:
        expected += f"; not pinned: {listed(others)}"
    assert line(str(proof_by(**wanted)), "code").split(maxsplit=1)[1] == expected


def test_no_channel() -> None:
    """A proof without a binding says so."""
    found = replace(proof(), bindings=())
    assert found.binding is None
    assert "NOT protected" in line(str(found), "channel")


@every_case(
    ("kind", "part"),
    [
        ("tls-spki", "TLS key 0001020304050607… seen on this connection"),
        ("ra-tls", "TLS key 0001020304050607… seen on this connection"),
        ("tls-certificate", "TLS certificate 0001020304050607…"),
        ("signature", "requests are not protected"),
        ("hpke", "sealed (hpke) to the key 0001020304050607… of the router"),
        ("fields", "sealed (fields)"),
        ("kem", "sealed (kem)"),
    ],
)
def test_channels(kind: str, part: str) -> None:
    """Each kind of binding has its sentence."""
    found = replace(proof(), bindings=(Binding(untyped(kind), KEY, "router"),))
    assert part in line(str(found), "channel")


def test_several_machines_are_named() -> None:
    """Role by role, cleaned of control characters."""
    [machine] = proof().machines
    machines = (machine._replace(role="gateway"), machine._replace(role="model \x1b[2J"))
    text = str(replace(proof(), machines=machines))
    assert text.count("  hardware ") == text.count("  code ") == 2
    assert "(gateway)" in text.replace("'", "")
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("code", "part"), [("operator", "the operator names"), ("nobody", "not identified")]
)
def test_text_of_a_proof_states_what_determines_the_program(code: str, part: str) -> None:
    """It is in the line `code`."""
    assert part in line(str(replace(proof(), code=untyped(code))), "code")


@pytest.mark.parametrize(
    ("freshness", "part"), [("key possession", "may be older"), ("none", "any age")]
)
def test_freshness(freshness: str, part: str) -> None:
    """Less freshness than a nonce is stated."""
    assert part in line(str(replace(proof(), freshness=untyped(freshness))), "fresh")


def test_data() -> None:
    """All of it is JSON; bytes in hex, times with their zone; nothing of claims and bundle."""
    found = proof()
    values = json.loads(json.dumps(found.to_dict()))
    assert values["origin"] == found.origin
    assert values["simulated"] is True
    assert values["bindings"] == [
        {"kind": "tls-spki", "key": found.bindings[0].key.hex(), "is_of": "server"}
    ]
    assert values["proven_at"].endswith("+00:00")
    assert values["machines"][0]["role"] == "server"
    assert not {"bundle", "claims", "nonce"} & values.keys()


def test_shortcuts() -> None:
    """First binding, first result, keys of the service."""
    found = proof()
    assert found.binding is found.bindings[0]
    assert found.result is found.machines[0].result
    assert found.keys is found.claims.keys
    assert found.valid_until - found.proven_at <= timedelta(hours=1)


def test_proofs_do_not_change() -> None:
    """And their repr is short: no evidence in logs."""
    with pytest.raises(FrozenInstanceError):
        untyped(proof()).origin = "https://other.example"
    assert len(repr(proof())) < 1000
