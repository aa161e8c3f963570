"""Small generated tasks with exact answers."""
