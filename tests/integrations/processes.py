"""Two real processes that meet through a file, and what their scripts begin with."""

import os
import subprocess
import sys

# what Trainers of other tests leave in the environment would decide how these processes are joined
FOREIGN = ("ACCELERATE_", "GROUP_", "LOCAL_", "MASTER_", "NODE_", "PL_", "RANK", "TORCHELASTIC_", "WORLD_")

COMMON = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from sklearn.datasets import load_digits
from dynaxx.integrations.ranks import should_stop
from dynaxx.monitor import Monitor
from dynaxx.monitor.actions import Stop
from dynaxx.monitor.signals import Signal

rank, folder = int(sys.argv[1]), sys.argv[2]
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
dist.init_process_group("gloo", init_method="file:/" + f"/{folder}/meet", rank=rank, world_size=2)

class Late(Signal):
    name = "late"
    def statistic(self, seen):
        return float(seen.step >= 3)

digits = load_digits()
x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
probe = (x[300:330], y[300:330])

def made():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    return net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
"""


def run(script, folder):
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(folder)], env=own, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    for process in ranks:
        _, said = process.communicate(timeout=150)
        assert process.returncode == 0, said
