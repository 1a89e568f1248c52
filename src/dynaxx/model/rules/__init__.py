"""Layer rules, one file per layer family.

From (input, pulled cotangent) to per-example gradients, and to what is cheaper than they are.
"""
