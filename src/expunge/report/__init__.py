"""What people read: one self-contained page, a model card, tables, plots."""
