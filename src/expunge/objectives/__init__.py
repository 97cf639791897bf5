"""Objectives: one small file per family; a pure function of quantities, unreduced."""
