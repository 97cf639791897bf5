"""Methods: ways from a model and a request to an unlearned handle."""
