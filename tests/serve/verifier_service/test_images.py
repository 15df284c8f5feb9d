"""The verifier service with OS images at hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.errors import ConfigError
from attestkit.serve.config.option_values import Address
from attestkit.serve.config.options import Options
from attestkit.serve.config.verifier_settings import VerifierSettings
from attestkit.serve.verifier_service.request import VerificationRequest
from attestkit.serve.verifier_service.response import Outcome, run_verification
from attestkit.serve.verifier_service.verifier_factory import open_verifier
from attestkit.verifier import Verifier
from tests.raising import raises
from tests.verifier.images.booted_images import (
    boot_files,
    config_of,
    evidence_of,
    expected_of,
    image_hash,
    store,
)
from tests.verifier.platforms import intel

FILES = boot_files(is_dev=True)


def fail_on_internal_error(error: BaseException) -> str:
    """Fail the test; nothing here is unexpected."""
    raise AssertionError from error


class Service:
    """A folder of images with one image, and evidence of a TD that booted it."""

    def __init__(self, tmp_path: Path) -> None:
        self.images = tmp_path / "images"
        self.folder = store(self.images, FILES)
        self.config = config_of(FILES)
        self.expected = expected_of(self.folder, self.config)

    def evidence(self, **options: Any) -> Attestation:
        """Return evidence of the TD."""
        return evidence_of(self.expected, self.config, **options)

    def verifier(self, images: object = ...) -> Verifier:
        """Return the verifier of the service."""
        return intel.verifier(images=self.images if images is ... else images)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """Return a service with an image."""
    return Service(tmp_path)


def verify(
    verifier: Verifier,
    evidence: Attestation,
    report: Callable[[BaseException], str] = fail_on_internal_error,
) -> Outcome:
    """Return the outcome of a request."""
    return run_verification(verifier, VerificationRequest(evidence.to_bytes()), report)


def test_details_have_metadata_and_tables(service: Service) -> None:
    """The response has the metadata of the image, and says that the ACPI tables are verified."""
    outcome = verify(service.verifier(), service.evidence())
    found = json.loads(outcome.to_json())
    assert found["is_valid"] is True
    details = found["details"]
    assert details["os_image_hash_verified"] is True
    assert details["acpi_tables_verified"] is True
    assert details["os_image_is_dev"] is True
    assert details["os_image_version"] == "0.5.4"
    assert details["app_info"]["os_image_hash"] == image_hash(FILES)


def test_quote_with_log_is_verified(service: Service) -> None:
    """The other form of a request, with the response of GetQuote, has the same details."""
    evidence = service.evidence()
    assert evidence.quote is not None
    request = VerificationRequest(
        quote=evidence.quote.raw,
        event_log=evidence.event_log.to_json(),
        vm_config=json.dumps(service.config),
    )
    outcome = run_verification(service.verifier(), request, fail_on_internal_error)
    assert outcome.details["acpi_tables_verified"] is True
    assert outcome.details["os_image_version"] == "0.5.4"


@pytest.mark.parametrize("shortened", [False, True])
def test_image_not_at_hand_is_a_rejection(
    service: Service, tmp_path: Path, *, shortened: bool
) -> None:
    """Evidence whose image is not at hand is rejected, and the reason names the image."""
    (tmp_path / "empty").mkdir()
    outcome = verify(service.verifier(tmp_path / "empty"), service.evidence(shortened=shortened))
    assert outcome.reason is not None
    assert outcome.reason.startswith("OS image hash verification failed: ")
    assert image_hash(FILES) in outcome.reason
    assert not outcome.failed


def test_without_images_the_reason_is_the_documented_one(service: Service) -> None:
    """A service without images answers as before."""
    outcome = verify(service.verifier(None), service.evidence())
    text = (
        "OS image hash verification failed: the evidence has only the hash of its OS image; "
        "pass the image (images, --images)"
    )
    assert outcome.reason == text
    assert outcome.details["os_image_is_dev"] is None


def test_altered_file_is_a_failure_of_the_service(service: Service) -> None:
    """An altered file is named and logged, without a path, and is not the evidence's fault."""
    (service.folder / "bzImage").write_bytes(b"another kernel")
    logged: list[BaseException] = []

    def report(error: BaseException) -> str:
        logged.append(error)
        return "id"

    outcome = verify(service.verifier(), service.evidence(), report)
    assert outcome.failed
    assert outcome.result is None
    assert outcome.reason is not None
    assert outcome.reason.startswith("OS image hash verification failed: ")
    assert "bzImage" in outcome.reason
    assert str(service.images) not in outcome.reason
    assert [type(error) for error in logged] == [ConfigError]
    assert outcome.details["os_image_hash_verified"] is False


def test_unreadable_image_is_named_without_path(service: Service) -> None:
    """An image that cannot be opened is reported by its hash; the path stays on the server."""
    for path in service.folder.iterdir():
        path.unlink()
    service.folder.rmdir()
    service.folder.symlink_to(service.folder)  # a loop
    (service.images / f"{image_hash(FILES)}.tar.gz").symlink_to("/dev/null")
    outcome = verify(service.verifier(), service.evidence(), lambda _: "id")
    assert outcome.reason is not None
    assert image_hash(FILES) in outcome.reason
    assert str(service.images) not in outcome.reason


def test_option_opens_the_folder(service: Service, tmp_path: Path) -> None:
    """--images names the folder; one that does not exist is an error at startup."""
    address = Address("127.0.0.1", 0)
    settings = VerifierSettings(Options(images=str(service.images)), address, alone=True)
    assert isinstance(open_verifier(settings), Verifier)
    settings = VerifierSettings(Options(images=str(tmp_path / "no")), address, alone=True)
    with raises(ConfigError, "unreadable", start="--images"):
        open_verifier(settings)
