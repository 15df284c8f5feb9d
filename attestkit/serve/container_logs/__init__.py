"""`/logs/<container>`: what a container wrote, for everybody, if its app wants it so.

The engine's frames become lines, with the time and colours that a request asks for.
"""
