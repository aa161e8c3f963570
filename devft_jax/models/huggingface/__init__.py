"""Files of Hugging Face and PEFT: names, reading, writing, families, tokenizers."""
