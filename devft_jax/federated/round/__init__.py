"""One round: a chunk of clients as one program, a cohort as chunks, and how many clients a chunk has."""
