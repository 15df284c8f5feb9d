"""What `doctor` finds out about a machine, and what it says and advises.

Nothing here changes the machine.
"""
