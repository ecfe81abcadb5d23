"""Tests of `prefixcap.metrics`, against the Java tokenizer and the scorers of the COCO caption tools."""
