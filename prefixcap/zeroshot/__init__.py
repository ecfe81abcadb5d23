"""Captions from no training at all: a CLIP steers a language model while it writes (ZeroCap, MAGIC)."""
