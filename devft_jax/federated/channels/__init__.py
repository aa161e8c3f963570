"""Channels between clients and server: fewer bits, fewer entries, low rank, and error feedback."""
