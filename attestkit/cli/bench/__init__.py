"""Benchmarks for `bench`: cases, timing, and a description of the machine.

Peers are measured if they are installed.
"""
