"""What a run executes on: devices, compiled programs, prefetching, requests to stop, the terminal."""
