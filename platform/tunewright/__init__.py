"""Tunewright: exact, resumable LLM fine-tuning and serving on Ray."""

__version__ = "0.1.0"
