"""Pure functions of scores and texts: no torch, no models, no files. See docs/metrics.md."""
