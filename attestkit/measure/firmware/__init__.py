"""Firmware images of TDs: metadata, MRTD, and which events a boot measures into RTMR0."""
