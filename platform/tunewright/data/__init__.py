"""From sources to verified, packed shards, on Ray Data. Row 4."""
