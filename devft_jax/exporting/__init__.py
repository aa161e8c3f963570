"""What a run or an adapter becomes for other tools: folders that PEFT and transformers load."""
