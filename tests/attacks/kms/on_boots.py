"""Attempts of a host on the boot of an app with a KMS, and of clients on a served KMS."""

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from attestkit.errors import AttestKitError, ConfigError, JournalError, KmsError, UsageError
from attestkit.keys import AppKeys
from attestkit.kms import KmsBoot, KmsRoot, SimulatedKms, boot_with_kms
from attestkit.kms.release.roots import KmsRoots
from tests.attacks.attempts import Surfaces, bound
from tests.kms.boot.booting import EVENTS, PREFIX, SEED, guest, kms_of, names
from tests.raising import raises
from tests.serve.kms_service.kms_clients import KEY, anonymous, evidence_of, with_certificate
from tests.untyped import untyped

attacks = Surfaces("kms")
KEY_FILE: Final = ".appkeys.json"
DEAD: Final = "https://localhost:1"
ROOT: Final = KmsRoots.from_seed(SEED).public_root
OTHER: Final = KmsRoots.from_seed(b"\7" * 32)
_FOLDER: Final = TemporaryDirectory()  # removed with the process
OTHER_ROOT: Final = KmsRoot(OTHER.ca_spki, OTHER.k256_public_key)


@cache
def booted() -> Path:
    """Return the folder of a guest that has booted, and was restarted without the KMS."""
    folder = Path(_FOLDER.name) / "booted"
    with kms_of(SEED) as kms, guest(state_dir=folder) as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        assert names(tee) == EVENTS
    with guest(state_dir=folder) as tee:
        assert boot_with_kms(tee, DEAD, roots=[ROOT]).is_kept
    return folder


def restart(
    change: Callable[[Path], object] = lambda _: None, *, roots: Any = None, is_reset: bool = False
) -> KmsBoot:
    """Let the host change the folder of a guest, and restart the guest without the KMS."""
    with TemporaryDirectory() as name:
        folder = Path(shutil.copytree(booted(), name, dirs_exist_ok=True))
        if is_reset:
            with guest(state_dir=folder) as tee:
                tee.backend.reset()
        change(folder)
        with guest(state_dir=folder) as tee:
            return boot_with_kms(tee, DEAD, roots=roots or [ROOT])


def edit(**changes: Any) -> Callable[[Path], object]:
    """Return a change of the key file."""

    def change(folder: Path) -> None:
        file = folder / KEY_FILE
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


FILES: Final[dict[str, tuple[Callable[[Path], object], type[AttestKitError], tuple[str, ...]]]] = {
    "with another root key": (edit(k256_key="11" * 32), KmsError, ("connection",)),
    "with another signature": (edit(k256_signature="11" * 65), KmsError, ("connection",)),
    "without a signature": (edit(k256_signature=""), KmsError, ("connection",)),
    "with a disk key of 31 bytes": (edit(disk_crypt_key="11" * 31), KmsError, ("connection",)),
    "with an unknown provider": (edit(key_provider={"Evil": {}}), ConfigError, ("wrong_value",)),
    "with keys of a seed": (
        lambda folder: AppKeys.from_seed(bytes(32)).save(folder / KEY_FILE),
        KmsError,
        ("connection",),
    ),
    "that is cut": (
        lambda folder: (folder / KEY_FILE).write_text((folder / KEY_FILE).read_text()[:-9]),
        ConfigError,
        ("syntax",),
    ),
    "with a member twice": (
        lambda folder: (folder / KEY_FILE).write_text(
            (folder / KEY_FILE).read_text().replace("{", '{"k256_key": "00",', 1)
        ),
        ConfigError,
        ("duplicate",),
    ),
    "that is missing": (lambda folder: (folder / KEY_FILE).unlink(), KmsError, ("connection",)),
}
for _name, (_change, _error, _reasons) in FILES.items():
    attacks.add(
        "replay", f"boot with a key file {_name}", bound(restart, _change), _error, *_reasons
    )


@attacks.attempt("replay", KmsError, "connection")
def keys_of_an_earlier_boot_without_the_kms() -> KmsBoot:
    """The KMS may have withdrawn its permission since: the file does not replace its answer."""
    return restart(is_reset=True)


@attacks.attempt("relay", KmsError, "connection", "wrong_provider")
def restart_under_other_pins() -> KmsBoot:
    """Keys of a KMS that is not pinned any more are not used."""
    return restart(roots=[OTHER_ROOT])


@attacks.attempt("relay", KmsError, "wrong_root")
def kms_of_the_host() -> None:
    """A KMS that the host runs, and whose address it supplies, gets nothing measured."""
    with kms_of(SEED, seed=b"\7" * 32) as foreign, guest() as tee:
        try:
            boot_with_kms(tee, foreign.url, roots=[ROOT])
        finally:
            assert names(tee) == PREFIX


@attacks.attempt("replay", JournalError, "too_late")
def event_of_the_host_before_the_keys() -> None:
    """An event between the end of the boot and the keys makes the boot impossible."""
    with kms_of(SEED) as kms, guest() as tee:
        with raises(KmsError, "connection"):
            boot_with_kms(tee, DEAD, roots=[kms.root])
        tee.emit_event("of-the-host", b"")
        boot_with_kms(tee, kms.url, roots=[kms.root])


@attacks.attempt("confuse", ConfigError, "conflict")
def app_that_names_another_provider() -> None:
    """The app's own file says that its keys are of a local provider."""
    compose = json.dumps(
        {"manifest_version": 2, "name": "a", "runner": "bash", "key_provider": "local"}
    )
    with guest(app_compose=compose.encode()) as tee:
        boot_with_kms(tee, DEAD, roots=[OTHER_ROOT])


@attacks.attempt("confuse", UsageError, "missing")
def boot_without_pins() -> None:
    """No KMS is trusted by default."""
    with guest() as tee:
        boot_with_kms(tee, DEAD, roots=untyped(None))


# -- clients of a served KMS -------------------------------------------------------------------


def client_gets_nothing(extension: bytes | None, kms: SimulatedKms) -> None:
    """Request keys, roots and a certificate with this evidence."""
    found = with_certificate(kms, extension)
    for method in ("GetAppKey", "GetKmsKey", "KMS.GetAppKey", "KMS.KMS.GetKmsKey"):
        answer = found.call(method, {"api_version": 1})
        assert answer.status == 400, (method, answer.body)
        assert b"k256_key" not in answer.body


def own_evidence() -> bytes:
    """Return evidence of a guest whose vendor the KMS does not trust."""
    return evidence_of(KEY).stripped().to_bytes()


CLIENTS: Final[dict[str, bytes | None]] = {
    "without evidence": None,
    "with empty evidence": b"",
    "with evidence of an untrusted vendor": own_evidence(),
    "with a length beyond its evidence": b"\x01\xfe\xff\xff\xff",
    "with deep MessagePack": b"\x91" * 10_000,
    "with a map of billions": b"\xdf\xff\xff\xff\xff",
}
for _name, _extension in CLIENTS.items():
    attacks.add("forge", f"client of a KMS {_name}", partial(client_gets_nothing, _extension))


@attacks.attempt("forge")
def client_with_a_certificate_of_its_own_ca(kms: SimulatedKms) -> None:
    """Only the temporary CA of this KMS certifies clients."""
    import ssl

    from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca
    from tests.kms.replayed_kms import WINDOW

    window: Any = WINDOW._asdict()
    issued = issue_ca(key=KEY, subject="Dstack Client Temp CA", path_length=0, **window)
    own = (certificate_pem(issued), KEY)
    found = with_certificate(kms, own_evidence(), issuer=own)
    try:
        answer = found.call("GetAppKey", {"api_version": 1})
    except (ssl.SSLError, OSError):
        return
    assert answer.status == 400


@attacks.attempt("confuse")
def method_of_the_setup_on_a_running_kms(kms: SimulatedKms) -> None:
    """Neither setup nor administration is on the listener with the keys."""
    for method in ("Onboard.Bootstrap", "Onboard.Finish", "Admin.ClearImageCache", "../finish"):
        assert anonymous(kms).call(method, {"domain": "x"}).status == 404
    assert anonymous(kms).send("GET", "/finish").status == 404


@attacks.attempt("replay")
def second_guest_on_the_connection_of_the_first(kms: SimulatedKms) -> None:
    """Evidence belongs to a connection: without a certificate the next one has none."""
    client_gets_nothing(own_evidence(), kms)
    answer = anonymous(kms).call("GetAppKey", {"api_version": 1})
    assert answer.status == 400
    assert b"No attestation provided" in answer.body
