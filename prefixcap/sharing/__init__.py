"""Export captioners to run without this package."""
