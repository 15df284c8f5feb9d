"""No error about a URL shows its password, also not as the cause of the error."""

import traceback
from collections.abc import Callable

import pytest

from attestkit._formats.host_names import read_proxy
from attestkit.backends.dstack_agent.endpoint import parse_endpoint
from attestkit.client.origin import Origin
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.pccs_client import base_url
from attestkit.errors import AttestKitError
from attestkit.gpu.nras.client import _base as nras_base
from attestkit.kms.local_provider import HostApi
from attestkit.kms.url import parse_kms_url
from attestkit.serve.docker.engine import ContainerEngine
from tests.concurrency.keeping import Keeping

SECRET = "hunter2secret"
READERS: list[Callable[[str], object]] = [
    *(Origin.of, parse_endpoint, parse_kms_url, base_url, read_proxy),
    *(HttpGetter(timeout=1), HostApi, nras_base, ContainerEngine),
]
URLS = [
    "{scheme}://me:{secret}@h:99999/",
    "{scheme}://me:{secret}@[::1",
    "{scheme}://me:{secret}@h/ x?y#z",
    "{scheme}://me:{secret}/x@h/",
    "{scheme}://me:{secret}\u2100@h/",
    "{scheme}:/me:{secret}@h",
    "me:{secret}@h",
]


@pytest.mark.parametrize("reader", READERS)
def test_error_about_url_does_not_show_its_password(reader: Callable[[str], object]) -> None:
    """The error and the errors that caused it are without the password."""
    refused: list[BaseException] = []
    for url in (url.format(scheme=s, secret=SECRET) for url in URLS for s in ("https", "HTTP")):
        with Keeping(refused, only=AttestKitError):
            reader(url)
    # An agent's endpoint may be any path of a socket, and a proxy may have a password.
    assert len(refused) >= 10
    shown = ["".join(traceback.format_exception(error)) for error in refused]
    assert not any(SECRET in text for text in shown)
