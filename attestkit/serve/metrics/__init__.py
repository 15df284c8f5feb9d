"""`/metrics` of the agent: figures of the machine and counters of the listeners.

The format is that of Prometheus.
"""
