"""What a run executes on: devices, compiled programs, work done ahead, signals, the terminal."""
