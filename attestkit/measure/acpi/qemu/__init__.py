"""A stopped QEMU: its command line, its qtest protocol, and the data that it shows the firmware.

It runs without KVM and executes no guest instruction.
"""
