"""`/metrics` of an agent: the machine's figures and what listeners have counted.

Prometheus reads them.
"""
