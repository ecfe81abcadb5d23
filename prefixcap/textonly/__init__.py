"""Captioners that learn from text alone (MacCap, and what its paper compares with): noise, memories, retrieval."""
