"""OS images at hand, and the registers of a TD that boots one.

A verifier with images proves evidence that names its image without measuring it ("legacy"), and
recomputes ACPI tables from the VM's shape.
"""
