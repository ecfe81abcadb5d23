"""The web page and the HTTP API of `prefixcap serve`."""
