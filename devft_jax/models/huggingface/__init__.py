"""Hugging Face's and PEFT's files: names, reading, writing, families, tokenizers."""
