"""`/logs/<container>`: the output of a container, if its app-compose makes logs public.

The container engine's frames are converted to lines, with timestamps and colours as requested.
"""
