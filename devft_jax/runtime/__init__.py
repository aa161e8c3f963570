"""The environment of a run: devices, compiled programs, prefetching, stop requests, the terminal."""
