"""Scripts in two real processes that meet through a file, and what some of them begin with."""

import os
import subprocess
import sys

# what Trainers of other tests leave in the environment would decide how these processes are joined
FOREIGN = ("ACCELERATE_", "GROUP_", "LOCAL_", "MASTER_", "NODE_", "PL_", "RANK", "TORCHELASTIC_", "WORLD_")

JOIN = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
rank, folder = int(sys.argv[1]), sys.argv[2]
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
dist.init_process_group("gloo", init_method="file:/" + f"/{folder}/meet", rank=rank, world_size=2)
"""

# A group's threads are joined where its last holder lets go of it, and DistributedDataParallel is one: an interpreter
# that takes such a model down with itself is aborted now and then ("terminate called without an active exception").
LEAVE = """
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""

DIGITS = """
from sklearn.datasets import load_digits
from dynaxx.integrations.ranks import should_stop
from dynaxx.monitor import Monitor
from dynaxx.monitor.actions import Stop
from dynaxx.monitor.signals import Signal

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
    """Runs ``script`` as rank 0 and as rank 1 of a group (it finds ``rank``, ``folder``, ``dist``, ``torch``, ``nn``
    and ``os``); what each of them printed."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    command = [sys.executable, "-W", "ignore", "-c", JOIN + script + LEAVE]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    printed = []
    try:
        for process in ranks:
            said, complaints = process.communicate(timeout=150)
            assert process.returncode == 0, complaints
            printed.append(said)
    finally:
        for process in ranks:
            process.kill()  # the other one would wait for it
    return printed
