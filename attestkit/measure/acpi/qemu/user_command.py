"""A user's QEMU command line of a TD, cleaned so that it runs without TDX, KVM and the host.

Machine, memory, vCPUs, PCI topology and serial ports stay: the ACPI tables depend on them. Devices
become stand-ins at the same place; host resources are removed. An unknown option is refused,
because it could change the tables.
"""

import re
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import UsageError
from attestkit.measure.acpi.qemu.qemu_command import CPU, DEFAULT_PROGRAM, STAND_IN
from attestkit.measure.acpi.qemu.qemu_options import (
    Properties,
    check_safe,
    check_words,
    format_properties,
    has_unknown_boot_order,
    list_properties,
    parse_properties,
    parse_size,
    select,
    split_command,
    stand_in_options,
)

_MEBIBYTE: Final = 1 << 20
_BOOT_FILES: Final = ("-kernel", "-initrd", "-append", "-shim")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Without influence on the tables: of the host, the monitor, the accelerator or the firmware.
_IGNORED_FLAGS: Final = _names(
    "-nographic -S -s -daemonize -no-reboot -no-shutdown -enable-kvm -no-user-config -snapshot "
    "-mem-prealloc -no-fd-bootchk -only-migratable"
)
_IGNORED: Final = _names(
    "-accel -action -add-fd -audio -audiodev -bios -blockdev -cdrom -chardev -compat -d "
    "-D -debugcon -dfilter -display -fsdev -gdb -hda -hdb -hdc -hdd -icount -k -L "
    "-mem-path -mon -monitor -msg -name -netdev -overcommit -pflash -pidfile -qmp -qmp-pretty "
    "-rtc -run-with -runas -sandbox -spice -tpmdev -trace -vnc -watchdog-action"
)
_KEPT: Final = frozenset({"-smp", "-numa", "-uuid", "-vga"})

_MACHINE_IGNORED: Final = _names(
    "accel aux-ram-share confidential-guest-support dump-guest-core firmware graphics "
    "kernel-irqchip kernel_irqchip mem-merge memory-encryption pflash0 pflash1 suppress-vmdesc"
)
_MACHINE_KEPT: Final = _names(
    "default-bus-bypass-iommu hpet i8042 max-ram-below-4g pic pit sata smbios-entry-point-type "
    "smbus smm usb vmport"
)
# Other values change the tables in ways that were never compared.
_MACHINE_FIXED: Final = {"acpi": "on", "cxl": "off", "hmat": "off", "nvdimm": "off"}
_BOOT_KEPT: Final = ("order", "once", "menu", "splash-time", "reboot-timeout", "strict")

_WINDOW_SIZE: Final = "opt/ovmf/X-PciMmio64Mb"
_FILE_VALUE: Final = re.compile(r"romfile|/", re.IGNORECASE)
_RAM: Final = "attestkit-ram"  # id of the memory backend


class UserCommand(NamedTuple):
    """A cleaned command line.

    Attributes:
        command: Program and options, for `read_machine`.
        memory_size: Bytes of memory.
        kernel: Value of -kernel, a path, which is not in `command`; None without the option.
        initrd: Value of -initrd, a path; None without it.
        cmdline: Value of -append, the kernel's command line; None without it.
        shim: Value of -shim, a path; None without it.
        boot_order_known: Whether the boot order that QEMU reports is that of the user's machine.
            False if a device other than a virtio disk or network interface has a boot index.
    """

    command: tuple[str, ...]
    memory_size: int
    kernel: str | None
    initrd: str | None
    cmdline: str | None
    shim: str | None
    boot_order_known: bool


def clean_command(
    text: str | Sequence[str],
    version: QemuVersion,
    program: str | PathLike[str] = DEFAULT_PROGRAM,
) -> UserCommand:
    """Clean a user's QEMU command line.

    Options of TDX and KVM are removed, and properties that TDX implies are added: no SMM, and from
    QEMU 9.0 on no PIC.

    Args:
        text: Command line, as text for `split_command` or as words; the program at its start is
            optional.
        version: Version of the host's QEMU.
        program: QEMU's program in the result, a path or a name.

    Raises:
        UsageError: If an option, device or value is unknown or has an unknown effect on the tables;
            the machine is not q35; -nodefaults or -m is missing; or the line is malformed or too
            long.
    """
    words = split_command(text) if isinstance(text, str) else check_words(list(text))
    if words and not words[0].startswith("-"):
        words = words[1:]
    cleaner = _Cleaner()
    for option, value in _options(words):
        cleaner.add(option, value)
    return cleaner.finish(version, fspath(program))


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option in a command line without its program, with one dash, and its argument.

    The argument of an option that has none is "".

    Raises:
        UsageError: If a word is not an option, or the argument of the last one is missing.
    """
    flags = _IGNORED_FLAGS | {"-nodefaults", "-usb"}
    rest = iter(words)
    for word in rest:
        option = word[1:] if word.startswith("--") else word
        if not option.startswith("-"):
            message = f"QEMU command line: {shown(word)}: must be an option, which starts with -"
            raise UsageError(message, reason="wrong_value")
        if option in flags:
            yield option, ""
            continue
        value = next(rest, None)
        if value is None:
            message = f"QEMU command line: {shown(word)}: needs an argument, or is unknown"
            raise UsageError(message, reason="missing")
        yield option, value


class _Cleaner:
    """Collects the options on which the tables depend; a method `add_...` for each kind.

    Such a method gets the option with one dash, such as `-machine`, and its argument as it is in
    the command line. It raises UsageError if the argument is not supported.
    """

    def __init__(self) -> None:
        self._options: list[str] = []
        self._devices: list[str] = []
        self._on_board: list[str] = []  # network interfaces that the machine itself creates
        self._machine: Properties = {}
        self._memory: Properties = {}
        self._backends: list[Properties] = []
        self._cpu = CPU
        self._serial_ports = 0
        self._nodefaults = False
        self._unknown_boot_order = False
        self._files: dict[str, str] = {}

    def add(self, option: str, value: str) -> None:
        """Add the effect of an option on the tables; options without an effect are dropped.

        Args:
            option: The option with one dash, such as `-machine`.
            value: Its argument; empty if it has none.

        Raises:
            UsageError: If the option or the argument is not supported.
        """
        if option in _IGNORED_FLAGS or option in _IGNORED:
            return
        if option == "-nodefaults":
            self._nodefaults = True
        elif option == "-usb":
            self._options.append(option)
        elif option in _KEPT:
            check_safe(option, parse_properties(option, value, "value"))
            self._options += [option, value]
        elif option in _BOOT_FILES:
            self._files[option] = value
        else:
            handler = _HANDLERS.get(option)
            if handler is None:
                message = f"QEMU option {shown(option)}: not supported: effect on ACPI is unknown"
                raise UsageError(message, reason="unknown_name")
            handler(self, option, value)

    def add_machine(self, option: str, value: str) -> None:
        """Add the properties of -machine in `value`, the argument of `option`.

        Later options replace properties of earlier ones.
        """
        self._machine |= parse_properties(option, value, "type")

    def add_memory(self, option: str, value: str) -> None:
        """Add the properties of -m, such as the memory size, in `value`, the argument of `option`.

        Later options replace properties of earlier ones.
        """
        self._memory |= parse_properties(option, value, "size")

    def add_cpu(self, option: str, value: str) -> None:
        """Choose the CPU model in `value`, the argument of `option` (-cpu); drop its features.

        The model is in the SMBIOS table. The models `host`, `max` and `base` are ignored: the
        default model stays.
        """
        model = parse_properties(option, value, "model").get("model", "")
        if model in {"host", "max", "base"}:
            return
        check_safe(option, {"model": model})
        self._cpu = f"{model},phys-bits=52"

    def add_object(self, option: str, value: str) -> None:
        """Add the memory backend in `value`, the argument of `option` (-object), as plain RAM.

        A file of it is not opened, and objects of other types are dropped.

        Raises:
            UsageError: If a memory backend has no id or size.
        """
        found = parse_properties(option, value, "qom-type")
        if found.get("qom-type", "").startswith("memory-backend-"):
            if "id" not in found or "size" not in found:
                raise UsageError("-object: memory backend must have id and size", reason="missing")
            size = parse_size(option, found["size"], 1)
            backend = {"qom-type": "memory-backend-ram", "id": found["id"], "size": str(size)}
            check_safe(option, backend)
            self._backends.append(backend)

    def add_device(self, option: str, value: str) -> None:
        """Add the device in `value`, the argument of `option` (-device), or its stand-in.

        Raises:
            UsageError: As for `stand_in_options`.
        """
        found = parse_properties(option, value, "driver")
        self._unknown_boot_order |= has_unknown_boot_order(found)
        self._devices += stand_in_options(found, len(self._devices))

    def add_drive(self, option: str, value: str) -> None:
        """Add a stand-in for the device that `option` (-drive) implies, whose argument is `value`.

        With if=virtio that is a PCI device; other values of `if` have none.

        Raises:
            UsageError: If the value of `if` is not supported.
        """
        interface = parse_properties(option, value, "file").get("if", "ide")
        if interface == "virtio":
            self._devices += ["-device", STAND_IN]
        elif interface not in {"none", "ide", "pflash"}:
            message = f"{option}: if={shown(interface)}: must be virtio, none, ide or pflash"
            raise UsageError(message, reason="wrong_value")

    def add_shared_folder(self, _: str, __: str) -> None:
        """Add a stand-in for the device of -virtfs, whatever the option's argument."""
        self._devices += ["-device", STAND_IN]

    def add_network(self, option: str, value: str) -> None:
        """Add a stand-in for the network interface of -nic or `-net nic`.

        `option` is -nic or -net, `value` its argument. Other arguments of -net add nothing.
        """
        kind = parse_properties(option, value, "kind").get("kind", "")
        if kind != "none" and (option == "-nic" or kind == "nic"):
            self._on_board += ["-device", STAND_IN]

    def add_serial(self, _: str, value: str) -> None:
        """Count a serial port, unless `value`, the argument of -serial, is `none`."""
        self._serial_ports += value != "none"

    def add_parallel(self, option: str, value: str) -> None:
        """Raise UsageError unless `value`, the argument of `option` (-parallel), is `none`.

        A parallel port changes the tables.
        """
        if value != "none":
            raise UsageError(f"{option}: must be none, not {shown(value)}", reason="wrong_value")

    def add_global(self, option: str, value: str) -> None:
        """Add the default of a device's property in `value`, the argument of `option` (-global).

        Raises:
            UsageError: If it names a file for QEMU to open.
        """
        check_safe(option, parse_properties(option, value, "value"))
        if _FILE_VALUE.search(value):
            raise UsageError(f"{option}: must not name a file", reason="wrong_value")
        self._options += [option, value]

    def add_boot(self, option: str, value: str) -> None:
        """Add those properties in `value`, the argument of `option` (-boot), that are in fw_cfg.

        The splash picture, a file, is dropped.
        """
        kept = select(parse_properties(option, value, "order"), _BOOT_KEPT)
        check_safe(option, kept)
        if kept:
            self._options += [option, format_properties(kept, "")]

    def add_smbios(self, option: str, value: str) -> None:
        """Add the SMBIOS strings in `value`, the argument of `option` (-smbios).

        Raises:
            UsageError: If it names a file for QEMU to open.
        """
        names = {name for name, _ in list_properties(value, "type")}
        # QEMU parses a comma in a name as the end of it.
        if names & {"file", "path"} or any("," in name for name in names):
            raise UsageError(f"{option}: must not name a file", reason="wrong_value")
        self._options += [option, value]

    def add_fw_cfg(self, option: str, value: str) -> None:
        """Add the item in `value`, the argument of `option` (-fw_cfg), if it is a PCI window.

        This is the size of the 64-bit PCI window; other items are dropped: no measurement covers
        them.
        """
        found = parse_properties(option, value, "name")
        if found.get("name") == _WINDOW_SIZE and "string" in found:
            check_safe(option, found)
            self._options += [option, f"name={_WINDOW_SIZE},string={found['string']}"]

    def finish(self, version: QemuVersion, program: str) -> UserCommand:
        """Return the cleaned command line.

        Args:
            version: Version of the host's QEMU.
            program: QEMU's program in the result.

        Raises:
            UsageError: If -nodefaults or -m is missing, or the machine is not q35 or not supported.
        """
        if not self._nodefaults:
            message = "QEMU command line: must have -nodefaults; default devices are not supported"
            raise UsageError(message, reason="missing")
        memory, size = self._finish_memory()
        command = [program, "-nodefaults", "-cpu", self._cpu, *memory]
        command += ["-machine", self._finish_machine(version), *self._options]
        command += ["-serial", "null"] * self._serial_ports or ["-serial", "none"]
        command += [*self._on_board, *self._devices]
        return UserCommand(
            command=tuple(command),
            memory_size=size,
            kernel=self._files.get("-kernel"),
            initrd=self._files.get("-initrd"),
            cmdline=self._files.get("-append"),
            shim=self._files.get("-shim"),
            boot_order_known=not self._unknown_boot_order,
        )

    def _finish_memory(self) -> tuple[list[str], int]:
        if "size" not in self._memory:
            raise UsageError("QEMU command line: must have -m, the memory size", reason="missing")
        size = parse_size("-m", self._memory["size"], _MEBIBYTE)
        kept = {"size": f"{size // 1024}K", **select(self._memory, ("slots", "maxmem"))}
        check_safe("-m", kept)
        options = ["-m", format_properties(kept, "")]
        if not self._backends:
            self._machine["memory-backend"] = _RAM
            self._backends = [{"qom-type": "memory-backend-ram", "id": _RAM, "size": str(size)}]
        for backend in self._backends:
            # Not reserved: a host with less memory can compute the tables of a guest with more.
            options += ["-object", format_properties({**backend, "reserve": "off"}, "qom-type")]
        return options, size

    def _finish_machine(self, version: QemuVersion) -> str:
        kind = self._machine.get("type", "")
        if kind != "q35" and not kind.startswith("pc-q35-"):
            message = f"-machine: must be q35 or pc-q35-..., not {shown(kind)}"
            raise UsageError(message, reason="not_applicable")
        kept = {"type": kind}
        for name, value in self._machine.items():
            if name in _MACHINE_KEPT or name == "memory-backend":
                kept[name] = value
            elif name in _MACHINE_FIXED:
                if value != _MACHINE_FIXED[name]:
                    message = f"-machine: {name} must be {_MACHINE_FIXED[name]}, not {shown(value)}"
                    raise UsageError(message, reason="wrong_value")
            elif name != "type" and name not in _MACHINE_IGNORED:
                message = f"-machine: {shown(name)}: not supported: effect on ACPI is unknown"
                raise UsageError(message, reason="unknown_name")
        kept.setdefault("smm", "off")
        if version.release >= (9, 0):
            kept.setdefault("pic", "off")
        check_safe("-machine", kept)
        return format_properties(kept, "type")


_HANDLERS: Final = {
    "-machine": _Cleaner.add_machine,
    "-M": _Cleaner.add_machine,
    "-m": _Cleaner.add_memory,
    "-cpu": _Cleaner.add_cpu,
    "-object": _Cleaner.add_object,
    "-device": _Cleaner.add_device,
    "-drive": _Cleaner.add_drive,
    "-virtfs": _Cleaner.add_shared_folder,
    "-nic": _Cleaner.add_network,
    "-net": _Cleaner.add_network,
    "-serial": _Cleaner.add_serial,
    "-parallel": _Cleaner.add_parallel,
    "-global": _Cleaner.add_global,
    "-boot": _Cleaner.add_boot,
    "-smbios": _Cleaner.add_smbios,
    "-fw_cfg": _Cleaner.add_fw_cfg,
}
