"""Judges: whoever looks at two clips and gives scores. Each speaks one protocol; none retries or keeps anything."""
