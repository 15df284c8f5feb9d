"""Client of a TPM 2.0: the commands for keys, quotes, PCRs and capabilities."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from attestkit.backends.linux.device_errors import failed
from attestkit.backends.tpm.command_channel import ParameterReader, TpmError
from attestkit.backends.tpm.frames import TpmResponse, password
from attestkit.backends.tpm.nv_commands import LARGEST_NAME, NvCommands
from attestkit.backends.tpm.transports import malformed, reading
from attestkit.errors import AttestKitError, BackendError, FormatError
from attestkit.tpm import command_codes as cc
from attestkit.tpm.algorithms import ALG_NULL, HASH_IDS, LARGEST_DIGEST, hash_size
from attestkit.tpm.handles import NULL, OWNER
from attestkit.tpm.pcr_selection import PcrSelection, encode_selections, read_selections
from attestkit.tpm.public_area import TpmtPublic
from attestkit.tpm.reader import TpmReader, encode_number, encode_sized
from attestkit.tpm.response_codes import RC_INITIALIZE

FAMILY: Final = 0x100  # TPM_PT_FAMILY_INDICATOR

_PAGE: Final = 64  # items requested by one GetCapability
_MOST_PAGES: Final = 64
_MOST_DIGESTS: Final = 8  # in one response of PCR_Read (TPML_DIGEST)

PcrValues = dict[tuple[str, int], bytes]


class QuoteResponse(NamedTuple):
    """A quote as the TPM returned it: two encoded structures."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE


class LoadedKey(NamedTuple):
    """A loaded or persistent key of the TPM: its handle, public area and names."""

    handle: int
    public: TpmtPublic
    raw: bytes  # TPMT_PUBLIC
    name: bytes = b""
    qualified_name: bytes = b""


class TpmClient(NvCommands):
    """Client of a TPM 2.0. Thread-safe; close it to close its transport.

    Passwords of hierarchies and keys must be empty. Methods raise TpmError if the TPM answers with
    an error, and the other errors of `execute`.
    """

    # -- start and capabilities ----------------------------------------------------------------

    def startup(self) -> None:
        """Start the TPM, if the firmware or the kernel has not done so."""
        try:
            self.execute(cc.STARTUP, parameters=b"\0\0")
        except TpmError as error:
            if error.code != RC_INITIALIZE:
                raise

    def get_capability(self, kind: int, first: int, count: int) -> tuple[bool, bytes]:
        """Return whether more items follow, and the list of items, encoded, with its count.

        Args:
            kind: Capability (TPM_CAP), such as `CAP_HANDLES`.
            first: First item: a handle, command code or property.
            count: Largest number of items.
        """
        parameters = b"".join(encode_number(number, 4) for number in (kind, first, count))
        reader = ParameterReader(
            self.execute(cc.GET_CAPABILITY, parameters=parameters), "GetCapability"
        )
        with reading(self.path):
            more, found = reader.u8(), reader.u32()
            if found != kind:
                raise reader.error(f"capability {found} instead of {kind}", "wrong_value", 1)
        return bool(more), reader.take(reader.remaining)

    def list_handles(self, first: int, last: int) -> tuple[int, ...]:
        """Return the handles from `first` to `last` that exist, ascending."""
        handles: list[int] = []
        for _ in range(_MOST_PAGES):
            more, data = self.get_capability(cc.CAP_HANDLES, first, _PAGE)
            page = self._numbers(data, 1)
            handles += [number for (number,) in page if first <= number <= last]
            if not more or not page or page[-1][0] >= last:
                return tuple(handles)
            first = page[-1][0] + 1
        raise self._endless("handles")

    def list_commands(self) -> frozenset[int]:
        """Return the command codes that the TPM implements, with those of the vendor."""
        commands: set[int] = set()
        first = 0
        for _ in range(_MOST_PAGES):
            more, data = self.get_capability(cc.CAP_COMMANDS, first, _PAGE)
            page = [number & cc.CODE_MASK for (number,) in self._numbers(data, 1)]
            commands.update(page)
            if not more or not page:
                return frozenset(commands)
            first = page[-1] + 1
        raise self._endless("commands")

    def read_property(self, tag: int) -> int | None:
        """Return the value of the property `tag` (TPM_PT) such as FAMILY; None if it is missing."""
        _, data = self.get_capability(cc.CAP_PROPERTIES, tag, 1)
        return next((value for found, value in self._numbers(data, 2) if found == tag), None)

    def _numbers(self, data: bytes, width: int) -> list[tuple[int, ...]]:
        """Return the items in `data`, a count and items of `width` 32-bit numbers each."""
        reader = TpmReader(data, "GetCapability")
        with reading(self.path):
            count = reader.u32()
            if count > reader.remaining // (4 * width):
                raise reader.truncated(count, 0)
            found = [tuple([reader.u32() for _ in range(width)]) for _ in range(count)]
            reader.end()
        return found

    def _endless(self, what: str) -> BackendError:
        text = f"GetCapability: more than {_MOST_PAGES} answers with {what}"
        return failed(self.path, text, "malformed_response")

    # -- PCRs ----------------------------------------------------------------------------------

    def pcr_read(self, selections: tuple[PcrSelection, ...]) -> PcrValues:
        """Return the values of the selected PCRs by bank and number, such as `("sha256", 7)`.

        PCRs of absent banks are missing.

        A response has at most 8 values, so others may change between them: compare the digest with
        that of a quote.
        """
        values: PcrValues = {}
        left = selections
        while any(selection.pcrs for selection in left):
            found = self._pcr_read_some(left)
            if not found:
                break  # banks that are not allocated
            values.update(found)
            left = tuple(
                one._replace(pcrs=tuple(n for n in one.pcrs if (one.bank, n) not in values))
                for one in left
            )
        return values

    def _pcr_read_some(self, selections: tuple[PcrSelection, ...]) -> PcrValues:
        """Return values as `pcr_read`, but only those in one response; empty for absent banks.

        Raises:
            BackendError: If the response has PCRs that are not selected, or is malformed.
        """
        selected = {(one.bank, pcr) for one in selections for pcr in one.pcrs}
        response = self.execute(cc.PCR_READ, parameters=encode_selections(selections))
        reader = ParameterReader(response, "PCR_Read")
        with reading(self.path):
            reader.u32()  # update counter
            start = reader.at
            read = [(one.bank, pcr) for one in read_selections(reader) for pcr in one.pcrs]
            count = reader.u32()
            if count != len(read) or count > _MOST_DIGESTS or not selected.issuperset(read):
                problem = (
                    f"{count} values of {len(read)} PCRs, of {len(selected)} that were selected"
                )
                raise reader.error(problem, "inconsistent", start)
            found: PcrValues = {}
            for bank, pcr in read:
                found[bank, pcr] = reader.sized("PCR", LARGEST_DIGEST)
                if len(found[bank, pcr]) != hash_size(bank):
                    problem = f"{len(found[bank, pcr])} bytes in the bank {bank}"
                    raise reader.error(problem, "wrong_size", reader.at)
            reader.end()
        return found

    def pcr_extend(self, pcr: int, digests: dict[str, bytes]) -> None:
        """Extend PCR number `pcr` in each bank of `digests`, such as "sha256", by its digest."""
        parameters = encode_number(len(digests), 4) + b"".join(
            encode_number(HASH_IDS[bank], 2) + digest for bank, digest in digests.items()
        )
        self.execute(cc.PCR_EXTEND, (pcr,), parameters, [password()])

    # -- keys ----------------------------------------------------------------------------------

    def create_primary(self, hierarchy: int, template: bytes | TpmtPublic) -> LoadedKey:
        """Make a primary key, whose handle the caller flushes; a template always gives one key.

        Args:
            hierarchy: Handle of a hierarchy, such as 0x4000000B (endorsement).
            template: TPMT_PUBLIC without a key, parsed or encoded.
        """
        area = template.encode() if isinstance(template, TpmtPublic) else template
        parameters = (
            encode_sized(bytes(4))  # no password, no data
            + encode_sized(area)
            + encode_sized(b"")  # no outside info
            + encode_number(0, 4)  # no creation PCRs
        )
        response = self.execute(
            cc.CREATE_PRIMARY, (hierarchy,), parameters, [password()], returns_handle=True
        )
        handle = response.handle
        assert handle is not None  # `returns_handle`
        try:
            raw = ParameterReader(response, "CreatePrimary").sized("public area")
            public = TpmtPublic.parse(raw)
        except FormatError as error:
            with suppress(AttestKitError):
                self.flush_context(handle)
            raise malformed(self.path, error) from error
        return LoadedKey(handle, public, raw, public.name, public.qualified_name(hierarchy))

    @contextmanager
    def primary_key(self, hierarchy: int, template: bytes | TpmtPublic) -> Iterator[LoadedKey]:
        """Context manager: make a primary key as `create_primary` does, and flush it on exit.

        The loaded key is yielded. A template always gives the same key.

        Args:
            hierarchy: Handle of a hierarchy, such as 0x4000000B (endorsement).
            template: TPMT_PUBLIC without a key, parsed or encoded.
        """
        key = self.create_primary(hierarchy, template)
        with self.flushed(key.handle):
            yield key

    def read_public(self, handle: int) -> LoadedKey:
        """Return the public area and the names of the key at `handle`, persistent or loaded."""
        reader = ParameterReader(self.execute(cc.READ_PUBLIC, (handle,)), "ReadPublic")
        with reading(self.path):
            raw = reader.sized("public area")
            names = reader.sized("name", LARGEST_NAME), reader.sized("qualified name", LARGEST_NAME)
            reader.end()
            return LoadedKey(handle, TpmtPublic.parse(raw), raw, *names)

    def find_key(self, handle: int) -> LoadedKey | None:
        """Return the public area and the names of the key at `handle`; None if there is none."""
        try:
            return self.read_public(handle)
        except TpmError as error:
            if error.is_absent:
                return None
            raise

    def evict_control(self, handle: int, persistent: int) -> None:
        """Make the loaded key `handle` persistent; if both handles are equal, remove that key."""
        self.execute(cc.EVICT_CONTROL, (OWNER, handle), encode_number(persistent, 4), [password()])

    def flush_context(self, handle: int) -> None:
        """Unload the key or session with this handle."""
        self.execute(cc.FLUSH_CONTEXT, parameters=encode_number(handle, 4))

    @contextmanager
    def flushed(self, handle: int) -> Iterator[None]:
        """Context manager: unload a key or a session, by its handle, on exit.

        If the `with` block raised an error, an error of unloading is suppressed.
        """
        try:
            yield
        except BaseException:
            with suppress(AttestKitError):
                self.flush_context(handle)
            raise
        self.flush_context(handle)

    def start_auth_session(
        self, key: int, nonce: bytes, encrypted_salt: bytes, hash_name: str
    ) -> TpmResponse:
        """Start an HMAC session that is salted but not bound to an object.

        Args:
            key: Handle of the key that decrypts the salt.
            nonce: The caller's nonce.
            encrypted_salt: The salt, encrypted to that key.
            hash_name: Hash of the session.

        Returns:
            The response, with the session's handle and nonceTPM.
        """
        parameters = (
            encode_sized(nonce)
            + encode_sized(encrypted_salt)
            + b"\0"  # TPM_SE_HMAC
            + encode_number(ALG_NULL, 2)  # no parameter encryption
            + encode_number(HASH_IDS[hash_name], 2)
        )
        return self.execute(cc.START_AUTH_SESSION, (key, NULL), parameters, returns_handle=True)

    # -- quotes --------------------------------------------------------------------------------

    def quote(
        self, key: int, qualifying_data: bytes, selections: tuple[PcrSelection, ...]
    ) -> QuoteResponse:
        """Return a quote of PCRs (TPM2_Quote), signed by the key's own scheme.

        Args:
            key: Handle of an attestation key.
            qualifying_data: At most 2 bytes more than the largest digest of the TPM; 34 bytes are
                portable.
            selections: The PCRs. Those of a bank that is not allocated are left out by the TPM.
        """
        parameters = (
            encode_sized(qualifying_data)
            + encode_number(ALG_NULL, 2)  # the key's own scheme
            + encode_selections(selections)
        )
        response = self.execute(cc.QUOTE, (key,), parameters, [password()])
        reader = ParameterReader(response, "Quote")
        with reading(self.path):
            message = reader.sized("quote")
        return QuoteResponse(message, reader.take(reader.remaining))
