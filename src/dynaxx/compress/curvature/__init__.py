"""What the rest of a model costs and does when some weights go: H = F + damping I, its inverse's diagonal, and the
constrained optimum. One file per representation; ``build`` makes them from a model and data.
"""
