"""What a run would cost, from shapes alone."""
