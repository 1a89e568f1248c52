"""Peak memory, before a call runs and while it runs."""
