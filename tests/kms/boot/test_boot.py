"""Boot with a KMS: nothing is measured or kept before the keys have passed all checks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.dstack.boot_sequence import events_before_keys
from attestkit.errors import (
    ConfigError,
    JournalError,
    KmsError,
    UnsupportedError,
    UsageError,
)
from attestkit.kms import KmsRoot, SimulatedKms, TimeLimits, boot_with_kms
from attestkit.kms.release.roots import KmsRoots
from tests.kms.boot.booting import EVENTS, PREFIX, SEED, guest, kms_of, names
from tests.raising import raises
from tests.untyped import untyped

KEY_FILE = ".appkeys.json"
DEAD = "https://localhost:1"
OTHER = KmsRoots.from_seed(b"\7" * 32)
OTHER_ROOT = KmsRoot(OTHER.ca_spki, OTHER.k256_public_key)
NONCE = b"challenge"


@pytest.fixture
def kms() -> Iterator[SimulatedKms]:
    """Return a KMS for guests of SEED."""
    with kms_of(SEED) as found:
        yield found


def app(**fields: object) -> bytes:
    """Return an app-compose."""
    known = {"manifest_version": 2, "name": "app", "runner": "docker-compose"}
    return json.dumps({**known, "key_provider": "kms", **fields}).encode()


def state(tee: Attester[Simulator], folder: Path) -> tuple[object, ...]:
    """Return register, log and key file."""
    file = folder / KEY_FILE
    kept = file.read_bytes() if file.exists() else None
    return tee.registers(), names(tee), kept, sorted(one.name for one in folder.glob(".app*"))


# -- boots ------------------------------------------------------------------------------------


def test_first_boot_measures_provider_and_keeps_keys(kms: SimulatedKms, tmp_path: Path) -> None:
    """The log is complete, the verified evidence names the KMS, and the file is private."""
    with guest(state_dir=tmp_path) as tee:
        with raises(UnsupportedError, "no_keys"):
            _ = tee.keys
        booted = boot_with_kms(tee, kms.url, roots=[kms.root])
        assert (booted.is_kept, booted.root, booted.not_proven) == (False, kms.root, ())
        assert booted.events == tee.event_log().runtime
        assert names(tee) == EVENTS
        result = tee.verifier().verify(tee.attest(nonce=NONCE), nonce=NONCE)
        provider = {"name": "kms", "id": kms.root.provider_id}
        assert result.app_info is not None
        assert json.loads(result.app_info.key_provider_info) == provider
    file = tmp_path / KEY_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    kept = json.loads(file.read_bytes())["key_provider"]["Kms"]
    assert kept["url"] == booted.url
    assert kept["tmp_ca_key"]
    assert kept["tmp_ca_cert"]


def test_restarted_process_uses_kept_keys_without_kms(kms: SimulatedKms, tmp_path: Path) -> None:
    """After a complete boot, no event is emitted, and the KMS may be down."""
    with guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        key, before = tee.keys.derive("a", "secp256k1").key, state(tee, tmp_path)
    with guest(state_dir=tmp_path) as tee:
        booted = boot_with_kms(tee, DEAD, roots=[kms.root])
        assert (booted.is_kept, booted.url) == (True, f"{kms.url}/prpc")
        assert booted.root == kms.root
        assert tee.keys.derive("a", "secp256k1").key == key
        assert state(tee, tmp_path) == before


def test_second_boot_asks_the_kms_again(kms: SimulatedKms, tmp_path: Path) -> None:
    """A reboot has no keys until the KMS has released them again, and gets the same ones."""
    with guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        key = tee.keys.derive("a", "secp256k1").key
        tee.backend.reset()
        with raises(UnsupportedError, "no_keys"):
            _ = tee.keys
        with raises(KmsError, "connection"):
            boot_with_kms(tee, DEAD, roots=[kms.root])
        assert names(tee) == PREFIX
        assert not boot_with_kms(tee, kms.url, roots=[kms.root]).is_kept
        assert tee.keys.derive("a", "secp256k1").key == key
        assert names(tee) == EVENTS


def test_missing_key_file_of_complete_boot_is_fetched(kms: SimulatedKms, tmp_path: Path) -> None:
    """With the full log the KMS releases the same keys; nothing is emitted."""
    with guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        before, key = state(tee, tmp_path)[:2], tee.keys.derive("a", "secp256k1").key
        tee.emit_event("of-the-app", b"")
        before = (tee.registers(), [*EVENTS, "of-the-app"])
    (tmp_path / KEY_FILE).unlink()
    with guest(state_dir=tmp_path) as tee:
        assert not boot_with_kms(tee, kms.url, roots=[kms.root]).is_kept
        assert state(tee, tmp_path)[:2] == before
        assert tee.keys.derive("a", "secp256k1").key == key
    assert (tmp_path / KEY_FILE).exists()


def test_key_file_of_another_kms_is_not_used(kms: SimulatedKms, tmp_path: Path) -> None:
    """A file with keys of another provider than the log's is replaced by those of the KMS."""
    with guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
    own = (tmp_path / KEY_FILE).read_bytes()
    other = tmp_path / "other"
    with kms_of(SEED, seed=b"\7" * 32) as foreign, guest(state_dir=other) as tee:
        boot_with_kms(tee, foreign.url, roots=[foreign.root])
    (tmp_path / KEY_FILE).write_bytes((other / KEY_FILE).read_bytes())
    with guest(state_dir=tmp_path) as tee:
        booted = boot_with_kms(tee, kms.url, roots=[kms.root, OTHER_ROOT])
        assert not booted.is_kept
        assert booted.root == kms.root
    file = json.loads((tmp_path / KEY_FILE).read_bytes())
    assert file["k256_key"] == json.loads(own)["k256_key"]


def test_complete_boot_of_another_kms_is_refused(kms: SimulatedKms, tmp_path: Path) -> None:
    """If the log names another KMS, keys of a pinned one are not used, and the file is kept."""
    with kms_of(SEED, seed=b"\7" * 32) as foreign, guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, foreign.url, roots=[foreign.root])
        before = state(tee, tmp_path)
    with guest(state_dir=tmp_path) as tee:
        with raises(KmsError, "wrong_provider"):
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert state(tee, tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", range(1, len(EVENTS)))
def test_boot_continues_where_it_stopped(kms: SimulatedKms, tmp_path: Path, count: int) -> None:
    """A log that is a prefix of the boot events is completed."""
    with guest(state_dir=tmp_path) as tee:
        events = boot_with_kms(tee, kms.url, roots=[kms.root]).events
        tee.backend.reset()
        if count <= 7:  # with key-provider, the keys of the file are used
            (tmp_path / KEY_FILE).unlink()
        for event in events[:count]:
            tee.backend.open_journal().emit(event)
    with guest(state_dir=tmp_path) as tee:
        booted = boot_with_kms(tee, kms.url, roots=[kms.root])
        assert booted.is_kept is (count > 7)
        assert names(tee) == EVENTS


@pytest.mark.parametrize("count", [0, 3, 6, 7])
def test_other_events_in_between_are_refused(kms: SimulatedKms, tmp_path: Path, count: int) -> None:
    """An event of an app before the end of the boot makes it impossible."""
    with guest(state_dir=tmp_path) as tee:
        events = boot_with_kms(tee, kms.url, roots=[kms.root]).events
        tee.backend.reset()
        (tmp_path / KEY_FILE).unlink()
        for event in events[:count]:
            tee.backend.open_journal().emit(event)
        tee.emit_event("of-the-app", b"")
        before = state(tee, tmp_path)
        with raises(JournalError, "too_late"):
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert state(tee, tmp_path) == before


def test_extended_register_is_refused(kms: SimulatedKms) -> None:
    """A register that does not match the log is an error before the KMS is asked."""
    with guest() as tee:
        tee.backend.extend_rtmr(3, b"\1" * 48)
        with raises(JournalError, "mismatch"):
            boot_with_kms(tee, DEAD, roots=[kms.root])


def test_upgraded_app_reboots_and_gets_the_same_keys(kms: SimulatedKms, tmp_path: Path) -> None:
    """Another compose file is another boot, with an app id given as before."""
    app_id = b"\5" * 20
    keys = set()
    for name in ("one", "two"):
        options = {"app_id": app_id, "app_compose": app(name=name), "state_dir": tmp_path}
        with guest(**options) as tee:
            assert not boot_with_kms(tee, kms.url, roots=[kms.root]).is_kept
            keys.add(tee.keys.derive("a", "secp256k1").key)
    assert len(keys) == 1


# -- failures ---------------------------------------------------------------------------------

FAULTS = {
    "kms_refuses": "refused",
    "kms_fails": "connection",
    "kms_slow:30s": "timeout",
    "kms_closes": "connection",
    "kms_truncates": "connection",
    "kms_wrong_root": "wrong_root",
    "kms_other_kms": "wrong_root",
    "kms_temp_ca_expired": "",
    "kms_app_cert:2": "wrong_usage",
    "kms_no_usage:2": "wrong_usage",
    "kms_unattested:2": "no_evidence",
    "kms_bad_signature": "bad_signature",
    "kms_short_key": "wrong_size",
    "kms_other_image": "wrong_image",
    "kms_rollover": "wrong_root",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_leaves_log_register_and_file(fault: str, tmp_path: Path) -> None:
    """After each fault of a KMS the log ends at `boot-mr-done`, and there is no key file."""
    with attestkit.open("simulator", seed=SEED) as own, guest(state_dir=tmp_path) as tee:
        with kms_of(SEED, attester=own) as kms:
            root = kms.root
            kms.arm(fault)
            verifier = own.verifier() if fault.startswith("kms_unattested") else None
            limits = TimeLimits(call=1.0) if fault.startswith("kms_slow") else None
            with pytest.raises(KmsError) as caught:
                boot_with_kms(tee, kms.url, roots=[root], verifier=verifier, limits=limits)
        assert FAULTS[fault] in {"", caught.value.reason}
        assert names(tee) == PREFIX
        assert not list(tmp_path.glob(".app*"))
        with raises(UnsupportedError, "no_keys"):
            _ = tee.keys
        if fault not in {"kms_other_kms", "kms_rollover"}:
            with kms_of(SEED) as kms:
                boot_with_kms(tee, kms.url, roots=[root])
            assert names(tee) == EVENTS


@pytest.mark.parametrize("fault", ["kms_refuses", "kms_bad_signature", "kms_other_image"])
def test_fault_at_a_later_boot_leaves_the_file(fault: str, tmp_path: Path) -> None:
    """The file of an earlier boot is unchanged, and its keys are not used."""
    with kms_of(SEED) as kms, guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        kept = (tmp_path / KEY_FILE).read_bytes()
        tee.backend.reset()
        kms.arm(fault)
        with pytest.raises(KmsError):
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert names(tee) == PREFIX
        assert (tmp_path / KEY_FILE).read_bytes() == kept
        with raises(UnsupportedError, "no_keys"):
            _ = tee.keys


def test_first_of_two_urls_is_wrong(kms: SimulatedKms) -> None:
    """The next URL is asked, whether the first is down or another KMS."""
    with kms_of(SEED, seed=b"\7" * 32) as foreign:
        for first in (DEAD, foreign.url):
            with guest() as tee:
                booted = boot_with_kms(tee, [first, kms.url], roots=[kms.root])
                assert booted.url == f"{kms.url}/prpc"
                assert names(tee) == EVENTS


def test_key_file_that_cannot_be_written_leaves_the_log(kms: SimulatedKms, tmp_path: Path) -> None:
    """The log names no provider whose keys could not be kept."""
    with guest(state_dir=tmp_path) as tee:
        (tmp_path / KEY_FILE).mkdir()
        with raises(ConfigError, "unwritable"):
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert names(tee) == PREFIX


# -- pins and the app's configuration ------------------------------------------------------------


def test_roots_are_required(kms: SimulatedKms) -> None:
    """Without roots nothing is emitted; "first-use" has to be written."""
    with guest() as tee:
        with raises(UsageError, "missing"):
            boot_with_kms(tee, kms.url, roots=None)
        with raises(UsageError, "missing"):
            boot_with_kms(tee, kms.url, roots=[])
        assert names(tee) == []
        booted = boot_with_kms(tee, kms.url, roots="first-use")
        assert booted.not_proven == ("kms_root", "kms_k256_root")


def test_roots_may_be_an_iterator(kms: SimulatedKms) -> None:
    """They are read once; a pin without secp256k1 key leaves that key unproven."""
    with guest() as tee:
        booted = boot_with_kms(tee, kms.url, roots=iter([KmsRoot(kms.root.ca_spki)]))
        assert booted.not_proven == ("kms_k256_root",)
        assert booted.root == kms.root


def test_pin_of_the_ca_alone_is_reported_beside_a_full_one(kms: SimulatedKms) -> None:
    """It accepts any secp256k1 root, which is then not proven, unless a full pin has it."""
    of_ca, full = KmsRoot(kms.root.ca_spki), kms.root
    other = KmsRoot(kms.root.ca_spki, KmsRoots.from_seed(b"\7" * 32).k256_public_key)
    for roots, missing in (([of_ca, full], ()), ([of_ca, other], ("kms_k256_root",))):
        with guest() as tee:
            assert boot_with_kms(tee, kms.url, roots=roots).not_proven == missing


def test_malformed_url_is_refused_before_the_first_event(kms: SimulatedKms) -> None:
    """A mistake in an argument leaves the log empty, so that the boot can be repeated."""
    with guest() as tee:
        with raises(ConfigError, "wrong_value"):
            boot_with_kms(tee, ["http://localhost"], roots=[kms.root])
        assert names(tee) == []


def test_first_use_pins_the_kms_of_the_key_file(kms: SimulatedKms, tmp_path: Path) -> None:
    """A later boot with "first-use" accepts the same KMS only, and states that none was pinned."""
    unproven = ("kms_root", "kms_k256_root")
    with guest(state_dir=tmp_path) as tee:
        assert boot_with_kms(tee, kms.url, roots="first-use").not_proven == unproven
        tee.backend.reset()
        with kms_of(SEED, seed=b"\7" * 32) as foreign, raises(KmsError, "wrong_root"):
            boot_with_kms(tee, foreign.url, roots="first-use")
        again = boot_with_kms(tee, kms.url, roots="first-use")
        assert (again.is_kept, again.not_proven) == (False, unproven)
        kept = boot_with_kms(tee, kms.url, roots="first-use")
        assert (kept.is_kept, kept.not_proven) == (True, unproven)


def test_broken_key_file_is_refused_with_a_remedy(kms: SimulatedKms, tmp_path: Path) -> None:
    """After a complete boot the KMS is not asked, and the error names file and remedy."""
    with guest(state_dir=tmp_path) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        (tmp_path / KEY_FILE).write_text("{")
        with pytest.raises(ConfigError, match=rf"{KEY_FILE}: .*; remove the key file") as caught:
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert caught.value.reason == "syntax"
        (tmp_path / KEY_FILE).unlink()
        assert not boot_with_kms(tee, kms.url, roots=[kms.root]).is_kept


def test_key_provider_id_pins_the_ca(kms: SimulatedKms) -> None:
    """With it roots may be missing, and the k256 root is not proven; another KMS is refused."""
    compose = app(key_provider_id=kms.root.provider_id)
    with guest(app_compose=compose) as tee:
        booted = boot_with_kms(tee, kms.url, roots=None)
        assert booted.not_proven == ("kms_k256_root",)
    with guest(app_compose=compose) as tee:
        assert boot_with_kms(tee, kms.url, roots=[kms.root]).not_proven == ()
    with guest(app_compose=compose) as tee, kms_of(SEED, seed=b"\7" * 32) as foreign:
        for roots in (None, "first-use"):
            with raises(KmsError, "wrong_root"):
                boot_with_kms(tee, foreign.url, roots=untyped(roots))
        with raises(KmsError, "wrong_provider"):
            boot_with_kms(tee, foreign.url, roots=[foreign.root])
        assert names(tee) == PREFIX


def test_invalid_key_provider_id_is_refused() -> None:
    """It must be the key of a CA."""
    with guest(app_compose=app(key_provider_id="00")) as tee, raises(ConfigError, "wrong_value"):
        boot_with_kms(tee, DEAD, roots=None)


@pytest.mark.parametrize("provider", ["none", "local", "tpm"])
def test_app_with_another_provider_is_refused(provider: str, kms: SimulatedKms) -> None:
    """The compose file is measured, and would contradict the key provider."""
    with guest(app_compose=app(key_provider=provider)) as tee:
        with raises(ConfigError, "conflict"):
            boot_with_kms(tee, kms.url, roots=[kms.root])
        assert names(tee) == []


def test_simulator_that_has_booted_is_refused(kms: SimulatedKms) -> None:
    """Its log has other events, and its keys are from its seed."""
    with attestkit.open("simulator", seed=SEED) as tee, raises(UsageError, "conflict"):
        boot_with_kms(tee, kms.url, roots=[kms.root])


def test_prefix_is_what_the_kms_sees(kms: SimulatedKms) -> None:
    """The evidence in the request ends at `boot-mr-done`."""
    seen: list[int] = []
    with guest() as tee:
        attest = tee.attest

        def observe(**arguments: object) -> object:
            seen.append(len(tee.event_log().runtime))
            return untyped(attest)(**arguments)

        untyped(tee).attest = observe
        boot_with_kms(tee, kms.url, roots=[kms.root])
        assert seen
        assert set(seen) == {len(events_before_keys(tee.backend.launch()))}
