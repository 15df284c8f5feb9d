"""Run a program under a seccomp profile: python run_under_seccomp.py PROFILE WORD...

It applies the profile as a container engine does, with libseccomp, and executes the program. With
CONFINED_BY=kill in the environment, a default action of SCMP_ACT_ERRNO is replaced by killing the
process, so that a system call missing from the profile cannot go unnoticed.
"""

import ctypes
import json
import os
import sys
from io import FileIO
from typing import Any

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # of seccomp.h
_OPERATORS = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_load.argtypes = (ctypes.c_void_p,)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p),
    )
    return library


def _action(name: str, errno: int) -> int:
    return {"SCMP_ACT_ALLOW": _ALLOW, "SCMP_ACT_ERRNO": _ERRNO | errno, "kill": _KILL}[name]


def _comparison(argument: dict[str, Any]) -> _Comparison:
    operator = _OPERATORS[argument["op"]]
    return _Comparison(argument["index"], operator, argument["value"], argument.get("valueTwo", 0))


def confine(profile: dict[str, Any], *, kill: bool) -> None:
    """Apply a profile to this process and its children.

    Args:
        profile: In Docker's format; names unknown on this machine are ignored.
        kill: Kill the process at a call that no rule allows.

    Raises:
        OSError: If the kernel or libseccomp rejects the filter or a rule.
    """
    library = _library()
    default = _action(
        "kill" if kill else profile["defaultAction"], profile.get("defaultErrnoRet", 1)
    )
    context = library.seccomp_init(default)
    if not context:
        raise OSError("seccomp_init() has no context for us")
    for rule in profile["syscalls"]:
        action = _action(rule["action"], rule.get("errnoRet", 1))
        if action == default:
            continue  # libseccomp rejects rules without effect
        arguments = [_comparison(argument) for argument in rule.get("args", [])]
        array = (_Comparison * len(arguments))(*arguments)
        for name in rule["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue
            refused = library.seccomp_rule_add_array(context, action, number, len(arguments), array)
            if refused:
                raise OSError(-refused, f"libseccomp refuses the rule for {name}")
    if refused := library.seccomp_load(context):
        raise OSError(-refused, "the kernel refuses the filter")


def main() -> None:
    """Confine this process and execute the program."""
    path, *words = sys.argv[1:]
    with FileIO(path) as file:
        profile = json.load(file)
    confine(profile, kill=os.environ.pop("CONFINED_BY", "") == "kill")
    os.execv(words[0], words)  # noqa: S606 - a test's own program


if __name__ == "__main__":
    main()
