"""What is odd, old or wrong about a simulated platform, as a value, and the named ones.

A scenario is fixed when a platform is made; what happens later is a fault.
"""
