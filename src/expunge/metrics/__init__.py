"""Pure functions of scored rows and texts: probabilities, extraction strength, truth ratio, statistics."""
