"""One round: a chunk of clients as one program, a cohort as chunks, and the number of clients per chunk."""
