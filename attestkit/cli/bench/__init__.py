"""What `bench` measures: the cases, how they are timed, and on which machine.

Peers are measured where they are installed.
"""
