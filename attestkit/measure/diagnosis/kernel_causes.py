"""Causes of changed events of RTMR1 and RTMR2: kernel, command line, initrd."""

import re
from collections.abc import Iterator
from itertools import islice, product
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit._sanitize import shown
from attestkit.attestation.launch.td_hob import SPLIT_MEMORY, memory_below_4g
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import Event
from attestkit.measure.diagnosis.difference import Cause, CauseName
from attestkit.measure.diagnosis.guest_inputs import ComparedGuest
from attestkit.measure.kernel.linux_kernel import measured_kernel_digest
from attestkit.measure.kernel.load_options import encode_options, options_text

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
    """A form in which QEMU may hand over a kernel."""

    cause: Cause
    memory_size: int | None = None  # bytes, in the changed header; None for the kernel as it is
    initrd_size: int | None = None  # bytes
    cmdline: str = ""


class _OptionForm(NamedTuple):
    """Load options; the words in which they differ from others."""

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
    """Return why the kernel's hash differs; hashes 768 MiB at most, or a kernel four times: 2 s."""
    kernel = guest.inputs.kernel
    if kernel is None:
        text = "another kernel, or its header as QEMU before 10.0 changes it: memory, initrd size"
        return Cause("kernel", text)
    expected = guest.expected_digest("kernel")
    most = max(4, _MOST_HASHED // max(1, len(kernel)))
    for form in islice(_kernel_forms(guest), most):
        digest = _digest_of(kernel, form)
        if digest == event.digest and digest != expected:
            return form.cause
    return Cause("kernel", "another kernel; or the initrd, whose size is in a changed header")


def find_load_option_cause(guest: ComparedGuest, event: Event) -> Cause:
    """Return why the load options differ: their form, or the command line."""
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
    """Yield the forms of a kernel, more likely ones first."""
    text = "the kernel is measured as it is: QEMU 10.1 or later, or 10.0 with edk2 from 202502"
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
    """Yield a kernel as QEMU changes it, with and without an initrd."""
    low, cmdline = memory_below_4g(memory_size), guest.inputs.cmdline
    text = f"the kernel's header is that of a guest with {low:#x} bytes of RAM below 4 GiB"
    if name == "kernel_patched":
        text = f"QEMU changed the kernel's header, as before 10.0, for {low:#x} bytes below 4 GiB"
    size = None if guest.inputs.initrd is None else len(guest.inputs.initrd)
    yield _KernelForm(Cause.found(name, text, low), memory_size, size, cmdline)
    if size is not None:
        text = "the kernel's header is that of a guest without an initrd"
        yield _KernelForm(Cause.found("initrd_presence", text, 0), memory_size, None, cmdline)


def _video_forms(memory_size: int, guest: ComparedGuest) -> Iterator[_KernelForm]:
    """Yield a kernel as QEMU changes it for other video modes."""
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
    """Return the cause for this command line in another form."""
    if usual is None or form.initrd != usual.initrd:
        return Cause.found("initrd_option", _INITRD_TEXTS[form.initrd], form.initrd)
    if form.terminated != usual.terminated:
        ending = "with" if form.terminated else "without"
        text = f"the load options end {ending} a NUL: {'OVMF' if form.terminated else 'GRUB'}"
        return Cause.found("option_terminator", text, int(form.terminated))
    text = f"the kernel was started {'by' if form.shim else 'without'} a shim"
    return Cause.found("shim", text, int(form.shim))


def _other_cmdlines(cmdline: str) -> Iterator[tuple[Cause, str]]:
    """Yield command lines that differ in white space, or lack one word."""
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
