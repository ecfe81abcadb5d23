"""Captioners for others: folders and the model hub, model cards, exports that do without this package."""
