"""What guards a run: which addresses it may ask, and the keys of what it keeps. Row 3."""
