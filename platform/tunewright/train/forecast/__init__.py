"""What a training needs, before it runs: memory, time and money; and what to change when it does not fit."""
