"""The user's model as a function: its data, its parameters, its forward pass, and cotangents
pulled back to layer outputs.
"""
