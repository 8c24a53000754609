"""Batch to Emissions: the one place where a network runs."""
