"""The study: the paper's tables and figures, and further questions, each declared in a short file; see README.md."""
