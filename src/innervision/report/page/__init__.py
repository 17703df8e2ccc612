"""The report of a study: one HTML page that holds all it needs."""
