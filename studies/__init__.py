"""Studies measure how well methods do, where benchmarks measure how fast they are. Each is a folder or a file here."""
