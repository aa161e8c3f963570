"""Exports of runs and adapters: folders that PEFT and transformers load."""
