"""For every test and doctest: one thread, because operations this small only wait for each other on two."""

import torch

torch.set_num_threads(1)
