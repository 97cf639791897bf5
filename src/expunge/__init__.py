"""expunge: make trained models forget on request, and prove what was achieved."""

__version__ = "0.1.0"
