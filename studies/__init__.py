"""Studies: what is measured, trained and made once, from data that the package does not hold."""
