"""RTMR0 of a TD under QEMU, event by event: from firmware, memory, and items and tables of QEMU."""
