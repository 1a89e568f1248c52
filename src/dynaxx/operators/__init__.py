"""Symmetric operators on parameter space: one set of verbs, whatever the form."""
