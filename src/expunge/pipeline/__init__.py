"""The way through the house: request, method, handle, audit, report."""
