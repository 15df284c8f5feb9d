"""The `.proto` file: protoc accepts it and encodes as the codec does."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given

from attestkit.serve import listener_apps
from attestkit.serve.api_docs.api_model import Api, list_calls
from attestkit.serve.api_docs.views import proto_file
from attestkit.serve.rpc import messages, messages_v1, protobuf_codec
from attestkit.serve.rpc.message_fields import package_of
from attestkit.serve.services import dstack_guest, guest_v1, worker_api
from tests.serve.asgi import Client
from tests.serve.protobuf import MESSAGES, any_message

PROTOC: Final = shutil.which("protoc")
needs_protoc = pytest.mark.skipif(PROTOC is None, reason="protoc is not installed")
ALL: Final = [
    *(dstack_guest.SERVICE, listener_apps._OLD_CLIENTS, worker_api.SERVICE),
    *(guest_v1.SERVICE, worker_api.SERVICE_V1),
]
PACKAGES: Final = (messages.PACKAGE, messages_v1.PACKAGE)
EMPTY: Final = 'syntax = "proto3"; package google.protobuf; message Empty {}'


def _protoc(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    assert PROTOC is not None
    files = [str(folder / f"{package}.proto") for package in PACKAGES]
    command = [PROTOC, f"-I{folder}", *arguments, *files]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of all services."""
    found = tmp_path_factory.mktemp("proto")
    api = Api("All services", "", "", ALL)
    assert api.packages == [*PACKAGES]
    for package in PACKAGES:
        (found / f"{package}.proto").write_text(proto_file(api, package))
    (found / "google/protobuf").mkdir(parents=True)  # Debian packages it separately
    (found / "google/protobuf/empty.proto").write_text(EMPTY)
    return found


@pytest.fixture(scope="module")
def pool(folder: Path) -> DescriptorPool:
    """Return a pool with protoc's descriptors."""
    _protoc(folder, f"--descriptor_set_out={folder / 'out'}", "--include_imports")
    found = DescriptorPool()
    for file in FileDescriptorSet.FromString((folder / "out").read_bytes()).file:
        found.Add(file)
    return found


@pytest.fixture(scope="module", params=PACKAGES)
def compiled(pool: DescriptorPool, request: pytest.FixtureRequest) -> FileDescriptorProto:
    """Return protoc's descriptor of a package's file."""
    found = FileDescriptorProto()
    pool.FindFileByName(f"{request.param}.proto").CopyToProto(found)
    assert (found.package, found.syntax) == (request.param, "proto3")
    return found


@needs_protoc
def test_descriptors_equal_protoc(compiled: FileDescriptorProto) -> None:
    """The codec's message descriptors equal protoc's."""
    made = {message.name: message for message in compiled.message_type}
    messages = {m.__name__: m for m in MESSAGES if package_of(m) == compiled.package}
    assert set(made) == {*messages, "Error"}
    for name, message in messages.items():
        found = made[name]
        mine = protobuf_codec.describe(message)
        for field, other in zip(mine.field, found.field, strict=True):
            field.json_name = other.json_name  # protobuf's JSON name is not used
        assert found == mine


@needs_protoc
def test_services_are_complete(compiled: FileDescriptorProto) -> None:
    """Every served method is declared with its messages."""
    package = compiled.package
    services = [service for service in ALL if service.package == package]
    for service, described in zip(services, compiled.service, strict=True):
        assert described.name == service.name
        for call, method in zip(list_calls(service), described.method, strict=True):
            names = [
                ".google.protobuf.Empty" if kind is None else f".{package}.{kind.__name__}"
                for kind in (call.request, call.response)
            ]
            assert [method.name, method.input_type, method.output_type] == [call.name, *names]


@needs_protoc
@given(any_message())
def test_encoding_equals_protobuf_library(pool: DescriptorPool, message: Any) -> None:
    """Classes of the compiled file write the same bytes and read the codec's."""
    name = f"{package_of(type(message))}.{type(message).__name__}"
    theirs = GetMessageClass(pool.FindMessageTypeByName(name))
    built = theirs(**_values(message))
    ours = b"".join(protobuf_codec.encode(message))
    assert built.SerializeToString() == ours
    assert theirs.FromString(ours) == built
    assert protobuf_codec.decode(type(message), built.SerializeToString()) == message


def _values(message: Any) -> dict[str, Any]:
    """Return the values that are set, for the constructor of protobuf's classes."""
    found = {}
    for name, value in message._asdict().items():
        if isinstance(value, tuple):
            found[name] = [_values(item) if isinstance(item, tuple) else item for item in value]
        elif value is not None:
            found[name] = value
    return found


def test_file_lists_services_of_listener(dstack: Client, tappd: Client, external: Client) -> None:
    """A listener's file of a package contains exactly its services and their messages."""
    v0, v1 = PACKAGES
    for client, package, services in (
        (dstack, v0, ["DstackGuest"]),
        (dstack, v1, ["DstackGuest"]),
        (tappd, v0, ["DstackGuest", "Tappd"]),
        (external, v0, ["Worker"]),
        (external, v1, ["Worker"]),
    ):
        response = client.get(f"/{package}.proto")
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        text = response.body.decode()
        assert re.findall(r"^service (\w+)", text, re.MULTILINE) == services
        assert all(len(line) <= 100 for line in text.splitlines())
        assert ("GetKeyResponse" in text) == (client is not external)
        assert f"package {package};" in text
    assert tappd.get(f"/{v1}.proto").status == 404
