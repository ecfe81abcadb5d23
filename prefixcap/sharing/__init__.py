"""Export captioners: to run without this package, or as a Hugging Face Space."""
