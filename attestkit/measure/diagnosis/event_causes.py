"""The cause of a register's first difference; searches for kernel, initrd and command line."""

import re
from collections.abc import Iterator
from itertools import islice, product
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit._sanitize import shown
from attestkit.attestation.launch.td_hob import SPLIT_MEMORY, memory_below_4g
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.event import ACPI_LABELS
from attestkit.event_log.event_types import ACPI_CONFIG, IMAGE_TYPES, IPL, SEPARATOR
from attestkit.measure.diagnosis import rtmr0_causes
from attestkit.measure.diagnosis.acpi_causes import find_acpi_cause
from attestkit.measure.diagnosis.difference import Cause, CauseName, FirstDifference
from attestkit.measure.diagnosis.guest_inputs import ComparedGuest, Search
from attestkit.measure.diagnosis.logged_event import name_event
from attestkit.measure.expected import is_same_type
from attestkit.measure.kernel.kernel_events import encode_options, options_text
from attestkit.measure.kernel.linux_kernel import measured_kernel_digest

_MOST_HASHED: Final = 768 << 20  # bytes of kernels, 2 s
_CLASSES: Final = (SPLIT_MEMORY, *(size << 20 for size in range(256, 2816, 256)))
_VIDEO_MODES: Final = ("normal", "ext", "ask", *(str(mode) for mode in range(0x301, 0x320)))
_VIDEO: Final = re.compile(r" ?vga=\S*")
_MOST_WORDS: Final = 256

_INITRD_TEXTS: Final = {
    "first": "`initrd=initrd` stands before the command line: edk2-stable202508 or later",
    "last": "`initrd=initrd` stands after the command line: edk2 until 202505",
    "none": "no `initrd=initrd`: a boot without -initrd, or not by -kernel",
}


class _KernelForm(NamedTuple):
    """A setup header that a measured kernel may have, as QEMU fills it in or unchanged.

    Attributes:
        cause: The cause if the kernel was measured with this header.
        memory_size: Bytes of memory in the changed header; None: an unchanged header.
        initrd_size: Bytes of the initrd in it; None without an initrd.
        cmdline: Command line that determines the header.
    """

    cause: Cause
    memory_size: int | None = None  # bytes, in the changed header; None for the kernel as it is
    initrd_size: int | None = None  # bytes
    cmdline: str = ""


class _OptionForm(NamedTuple):
    """An encoding of load options.

    Attributes:
        initrd: Place of `initrd=initrd`: `first`, `last` or `none`.
        terminated: Whether a NUL ends them.
        shim: Whether they are those of a boot by a shim.
    """

    initrd: str  # first, last, none
    terminated: bool
    shim: bool

    def encode(self, cmdline: str) -> bytes:
        text = options_text(cmdline, self.initrd, shim=self.shim)
        return encode_options(text, terminated=self.terminated)


_OPTION_FORMS: Final = [
    _OptionForm(initrd, terminated, shim)
    for shim, terminated, initrd in product((False, True), (True, False), _INITRD_TEXTS)
]


def find_kernel_cause(guest: ComparedGuest, event: Event) -> Cause:
    """Return why the hash of the logged kernel differs from the expected one.

    Hashes of the expected kernel with other setup headers are tried: 768 MiB in total at most, but
    four headers at least; this takes 2 s. `event` is the logged event of the kernel.
    """
    kernel = guest.inputs.kernel
    if kernel is None:
        text = "another kernel, or its header as QEMU before 10.2 changes it: memory, initrd size"
        return Cause("kernel", text)
    expected = guest.expected_digest("kernel")
    most = max(4, _MOST_HASHED // max(1, len(kernel)))
    for form in islice(_kernel_forms(guest), most):
        digest = _digest_of(kernel, form)
        if digest == event.digest and digest != expected:
            return form.cause
    return Cause("kernel", "another kernel; or the initrd, whose size is in a changed header")


def find_load_option_cause(guest: ComparedGuest, event: Event) -> Cause:
    """Return why the logged load options differ from the expected ones.

    The cause is their encoding, or the command line. `event` is their logged event.
    """
    if guest.inputs.kernel is None:
        return Cause("cmdline", "another command line, or another release of the firmware")
    cmdline = guest.inputs.cmdline
    expected = guest.expected_digest("load-options")
    usual = next((one for one in _OPTION_FORMS if sha384(one.encode(cmdline)) == expected), None)
    for form in _OPTION_FORMS:
        if sha384(form.encode(cmdline)) == event.digest:
            return _form_cause(form, usual)
    forms = _OPTION_FORMS if usual is None else [usual, *_OPTION_FORMS]
    for cause, changed in _other_cmdlines(cmdline):
        if any(sha384(form.encode(changed)) == event.digest for form in forms):
            return cause
    return Cause("cmdline", "another command line: none of the forms of this one was measured")


def _kernel_forms(guest: ComparedGuest) -> Iterator[_KernelForm]:
    """Yield the setup headers to try, the more likely ones first; `guest` has the kernel."""
    text = "the kernel is measured as it is: QEMU 10.2 or later, or from 10.0 with edk2 from 202502"
    yield _KernelForm(Cause.found("kernel_unpatched", text))
    expected, logged = guest.expected_memory, guest.logged_memory
    own = expected.size if expected else None
    other = logged.size if logged else None
    if own is not None:
        yield from _patched_forms("kernel_patched", own, guest)
    if other is not None and other != own:
        yield from _patched_forms("low_memory", other, guest)
    for size in _CLASSES:
        if size not in {own, other}:
            name: CauseName = "kernel_patched" if own is None else "low_memory"
            yield next(_patched_forms(name, size, guest))
    yield from _video_forms(other or own or _CLASSES[0], guest)


def _patched_forms(
    name: CauseName, memory_size: int, guest: ComparedGuest
) -> Iterator[_KernelForm]:
    """Yield the kernel with the setup header that QEMU fills in for `memory_size` bytes of RAM.

    It is the kernel of `guest`: with its initrd, reported as the cause `name`, then without.
    """
    low, cmdline = memory_below_4g(memory_size), guest.inputs.cmdline
    text = f"the kernel's header is that of a guest with {low:#x} bytes of RAM below 4 GiB"
    if name == "kernel_patched":
        text = f"QEMU changed the kernel's header, as before 10.2, for {low:#x} bytes below 4 GiB"
    size = None if guest.inputs.initrd is None else len(guest.inputs.initrd)
    yield _KernelForm(Cause.found(name, text, low), memory_size, size, cmdline)
    if size is not None:
        text = "the kernel's header is that of a guest without an initrd"
        yield _KernelForm(Cause.found("initrd_presence", text, 0), memory_size, None, cmdline)


def _video_forms(memory_size: int, guest: ComparedGuest) -> Iterator[_KernelForm]:
    """Yield setup headers as QEMU fills them in for other video modes (`vga=`).

    `memory_size` is the RAM of the machine in bytes.
    """
    cmdline = guest.inputs.cmdline
    size = None if guest.inputs.initrd is None else len(guest.inputs.initrd)
    plain = _VIDEO.sub("", cmdline)
    if plain != cmdline:
        cause = Cause.found("video_mode", "no vga= in the guest's command line", "")
        yield _KernelForm(cause, memory_size, size, plain)
    for mode in _VIDEO_MODES:
        cause = Cause.found("video_mode", f"vga={mode} in the guest's command line", mode)
        yield _KernelForm(cause, memory_size, size, f"{plain} vga={mode}")


def _digest_of(kernel: bytes, form: _KernelForm) -> bytes | None:
    try:
        return measured_kernel_digest(
            kernel,
            patched=form.memory_size is not None,
            memory_size=form.memory_size or 0,
            initrd_size=form.initrd_size,
            cmdline=form.cmdline,
        )
    except (FormatError, UsageError):  # such as an initrd that does not fit
        return None


def _form_cause(form: _OptionForm, usual: _OptionForm | None) -> Cause:
    """Return how the encoding `form` differs from the expected one, `usual`.

    If `usual` is None, the expected one is unknown.
    """
    if usual is None or form.initrd != usual.initrd:
        return Cause.found("initrd_option", _INITRD_TEXTS[form.initrd], form.initrd)
    if form.terminated != usual.terminated:
        ending = "with" if form.terminated else "without"
        text = f"the load options end {ending} a NUL: {'OVMF' if form.terminated else 'GRUB'}"
        return Cause.found("option_terminator", text, int(form.terminated))
    text = f"the kernel was started {'by' if form.shim else 'without'} a shim"
    return Cause.found("shim", text, int(form.shim))


def _other_cmdlines(cmdline: str) -> Iterator[tuple[Cause, str]]:
    """Yield causes, and variants of `cmdline` that differ in white space or lack one word."""
    for text, changed in (
        ("the guest's command line ends with a line break", f"{cmdline}\n"),
        ("the guest's command line ends with a space", f"{cmdline} "),
        ("the guest's command line has no white space at its ends", cmdline.strip()),
        ("the guest has no command line", ""),
    ):
        yield Cause.found("cmdline", text, changed), changed
    words = cmdline.split(" ")
    for at, word in enumerate(words[:_MOST_WORDS]):
        changed = " ".join([*words[:at], *words[at + 1 :]])
        yield Cause.found("cmdline", f"the guest's command line lacks {shown(word)}", word), changed


_BOOT_OPTION: Final = re.compile(r"Boot(?:Order|[0-9A-F]{4})")
_UNKNOWN: Final = Cause("unknown", "an event that is not known to vary")

# Changed events whose cause is searched for, and those whose cause is not.
_SEARCHES: Final[dict[str, Search]] = {
    **rtmr0_causes.NAMED_CAUSES,
    **dict.fromkeys(ACPI_LABELS, lambda guest, _event, _name: find_acpi_cause(guest)),
    "kernel": lambda guest, event, _name: find_kernel_cause(guest, event),
    "load-options": lambda guest, event, _name: find_load_option_cause(guest, event),
}
_CHANGED: Final[dict[str, tuple[CauseName, str]]] = {
    "gpt": ("partition_table", "another partition table: identifiers, or a resized partition"),
    "initrd": ("initrd", "another initrd"),
    "shim": ("shim", "another shim"),
    "MokList": ("shim", "keys enrolled in the shim"),
    "MokListX": ("shim", "revocations enrolled in the shim"),
    "MokListTrusted": ("shim", "state of the shim"),
    "SbatLevel": ("shim", "revocations of another shim"),
    "passed-cmdline": ("cmdline", "another command line passed to the unified kernel image"),
}
# Events of which the log has one more or one fewer.
_RELEASE: Final = "another release of the firmware"
_UNPAIRED: Final[dict[str, tuple[CauseName, str]]] = {
    "fw_cfg BootMenu": ("firmware_release", f"{_RELEASE}: measured from edk2-stable202505 on"),
    "fw_cfg bootorder": ("direct_boot", "-kernel given or not, or devices with a bootindex"),
    "fw_cfg etc/boot-menu-wait": ("boot_menu", "-boot menu=on with a splash time"),
    "fw_cfg etc/extra-pci-roots": ("fw_cfg_item", "expander bridges (pxb-pcie)"),
    "smbios": ("firmware_release", f"{_RELEASE}: measured from edk2-stable202505 on"),
    "separator": (
        "firmware_release",
        f"{_RELEASE}: the second one is in RTMR0 until 202408, in RTMR1 from 202411 on",
    ),
    "acpi-loader": ("firmware_release", f"{_RELEASE}: measured from edk2-stable202302 on"),
    "dbt": ("secure_boot_keys", "timestamp keys in the firmware image"),
    "calling": ("boot_attempt", "another number of boot attempts"),
    "returning": ("boot_attempt", "the first boot option failed or returned"),
    "gpt": ("partition_table", "booted from a disk with a partition table, or not"),
    "initrd": ("initrd_presence", "booted with an initrd, or without"),
    "load-options": ("kernel", "a kernel that does not measure them, or no command line"),
    "exit-invocation": ("boot_incomplete", "the guest did not leave the firmware"),
    "exit-success": ("boot_incomplete", "the guest did not leave the firmware"),
    "exit-failure": ("boot_attempt", "the kernel left the firmware at a second attempt"),
    "error-separator": ("boot_incomplete", "the firmware reported an error"),
    "SbatLevel": ("shim", "booted by a shim, or without"),
    "MokList": ("shim", "booted by a shim, or without"),
    "MokListTrusted": ("shim", "booted by a shim, or without"),
}


def find_cause(guest: ComparedGuest, difference: FirstDifference) -> Cause:
    """Return the cause of `difference`, a register's first one; searches take 3 s at most.

    Raises:
        FormatError: If one of the guest's inputs is malformed.
    """
    expected, logged = difference.expected, difference.logged
    if _is_first_separator(guest, difference):
        return _UNKNOWN
    if logged is None or difference.kind == "missing":
        return _absence_cause(guest, difference)
    if difference.kind == "extra" or expected is None:
        return _unpaired_cause(guest, name_event(logged), logged.event_type)
    if is_same_type(expected, logged):
        return _changed_cause(guest, expected.name, logged)
    return _other_type_cause(guest, expected.name, logged)


def _absence_cause(guest: ComparedGuest, difference: FirstDifference) -> Cause:
    """Return why the log lacks the expected event in `difference`."""
    event = difference.expected
    cause = _UNKNOWN if event is None else _unpaired_cause(guest, event.name, event.event_type)
    if difference.kind == "cut" and cause.name == "unknown":
        return Cause("boot_incomplete", "the boot did not get further, or the log is shortened")
    return cause


def _is_first_separator(guest: ComparedGuest, difference: FirstDifference) -> bool:
    """Return whether the differing event is a separator of RTMR0 before its last event.

    All releases of the firmware measure this one, so the release is not the cause.
    """
    event = difference.logged if difference.kind == "extra" else difference.expected
    if event is None or event.event_type != SEPARATOR or event.register:
        return False
    last = sum(one.register == 0 for one in guest.expected) - 1
    return difference.position < last


def _changed_cause(guest: ComparedGuest, name: str, logged: Event) -> Cause:
    """Return why the digest of the logged event differs from that of the expected event `name`."""
    search = _find_search(name)
    if search is not None:
        return search(guest, logged, name)
    if (known := _CHANGED.get(name)) is not None:
        return Cause(*known)
    if name.startswith("."):
        return Cause("uki_section", f"another section {name} of the unified kernel image")
    if logged.event_type in IMAGE_TYPES:
        return Cause("boot_image", f"another image {shown(name)}")
    return _unpaired_cause(guest, name_event(logged), logged.event_type)


def _find_search(name: str) -> Search | None:
    """Return the function that finds why the event `name` of `ExpectedEvent` has changed.

    None if its cause is not searched for.
    """
    if name.startswith("fw_cfg "):
        return rtmr0_causes.find_fw_cfg_cause
    if _BOOT_OPTION.fullmatch(name):
        return rtmr0_causes.find_boot_option_cause
    return _SEARCHES.get(name)


def _other_type_cause(guest: ComparedGuest, name: str, logged: Event) -> Cause:
    """Return why the type of a logged event differs from that of the expected event `name`."""
    cause = _unpaired_cause(guest, name_event(logged), logged.event_type)
    return cause if cause.name != "unknown" else _unpaired_cause(guest, name, 0)


def _unpaired_cause(guest: ComparedGuest, name: str, event_type: int) -> Cause:
    """Return why only one side, log or expected events, has an event of this name.

    Args:
        guest: The expected boot and the logged one.
        name: Name of the event, such as `gpt`; see `ExpectedEvent`.
        event_type: TCG event type of the event; 0 if unknown.
    """
    if name == "fw_cfg bootorder" and guest.expected_digest("fw_cfg BootMenu") is None:
        name = "fw_cfg BootMenu"  # the expected firmware measures neither
    if (known := _UNPAIRED.get(name)) is not None:
        return Cause(*known)
    if name.startswith("fw_cfg ") or event_type == ACPI_CONFIG:
        return Cause("fw_cfg_item", "items of fw_cfg: expander bridges, or options of QEMU")
    if _BOOT_OPTION.fullmatch(name):
        text = "another number of boot options: bootable devices, or release of the firmware"
        return Cause("boot_options", text)
    if event_type in IMAGE_TYPES:
        return Cause("boot_image", "another number of images: shim, boot loader, or driver")
    if event_type == IPL:
        return Cause("boot_loader", "measured by a boot loader or the stub of a kernel image")
    return _UNKNOWN
