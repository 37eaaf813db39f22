"""The shapes in which rows come, and how each is read."""
