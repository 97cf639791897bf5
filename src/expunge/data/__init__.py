"""Splits and fingerprints, text to ids and answer masks, built-in worlds, benchmark loaders."""
