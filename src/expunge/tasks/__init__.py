"""The table of quantities, and the families of models that can compute them."""
