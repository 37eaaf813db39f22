"""OpenAI-compatible serving of registered versions. Row 5; Ray only in deployment.py and app.py."""
