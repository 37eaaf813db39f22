"""What a base model, a tokenizer and an adapter are. Row 3: torch and peft only where weights are loaded."""
