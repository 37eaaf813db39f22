"""Hyperparameter sweeps on Ray Tune. Row 6."""
