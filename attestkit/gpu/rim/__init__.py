"""Reference integrity manifests (RIMs) of NVIDIA: fetched, parsed, verified and compared.

A RIM is an XML document with an XML signature that lists the expected measurements of a driver, a
VBIOS or a switch.
"""
