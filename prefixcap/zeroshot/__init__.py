"""Captions without training: a CLIP guides a language model as it generates (ZeroCap, MAGIC)."""
