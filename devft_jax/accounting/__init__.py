"""What a run costs: communication, operations, memory and energy, computed from shapes or measured."""
