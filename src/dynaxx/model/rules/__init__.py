"""Layer rules:

from (input, pulled cotangent) to per-example gradients and what is cheaper than they are. One file per layer family.
"""
