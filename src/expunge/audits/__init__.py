"""Audits: what is measured on every handle, against the original and a control."""
