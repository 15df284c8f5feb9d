"""Files of OS images that a verifier has, and the registers of a TD that boots one.

With these files a verifier also accepts evidence that names its image by the hash alone, without a
measurement document ("legacy"), and it recomputes ACPI tables from the VM's shape.
"""
