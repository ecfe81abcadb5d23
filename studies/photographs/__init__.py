"""Every family of methods on the photographs of Flickr8k: `python -m studies.photographs` prints the table."""
