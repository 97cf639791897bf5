"""Handles: what every method yields, and how they are stored and opened."""
