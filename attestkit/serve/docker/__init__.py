"""Client of the container engine's API: list of containers, their states and their logs.

Responses are untrusted and limited in size, time and depth.
"""
