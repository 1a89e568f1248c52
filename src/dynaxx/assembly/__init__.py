"""From tape to operator: one sweep over the data, one collector per form."""
