"""A model in shards is refused before training starts: a look on one rank would wait for the others for ever."""

import pytest
import torch
from torch import nn

from dynaxx.errors import InputError
from dynaxx.monitor import Monitor
from dynaxx.monitor.sharded import require_whole
from processes import run

SCRIPT = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import distribute_module
from dynaxx.errors import InputError
from dynaxx.monitor import Monitor

mesh = init_device_mesh("cpu", (2,))

def made(kind):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    if kind.startswith("FSDP"):
        whole = FullyShardedDataParallel(net, device_id=torch.device("cpu"), use_orig_params="original" in kind)
        return net if "inside" in kind else whole
    if kind == "fully_shard":
        return fully_shard(net, mesh=mesh)
    if kind == "a part":
        fully_shard(net[2], mesh=mesh)
    if kind == "tensor parallel":
        distribute_module(net, mesh)
    return nn.parallel.DistributedDataParallel(net) if kind == "DDP" else net

for kind in ("FSDP", "FSDP original", "FSDP inside", "FSDP original inside", "fully_shard", "a part",
             "tensor parallel", "DDP"):
    try:
        monitor = Monitor(made(kind), (torch.randn(8, 6), torch.arange(8) % 4))
    except InputError as error:
        print(f"{kind}: {error}")
    else:
        print(f"{kind}: {monitor.measure(0) is not None}")

# how such a training is looked at all the same
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
torch.manual_seed(0)
net, batch = made("plain"), (torch.randn(8, 6), torch.arange(8) % 4)
expected = Monitor(net, batch).measure(0)
state = get_model_state_dict(fully_shard(net, mesh=mesh), options=StateDictOptions(full_state_dict=True))
whole = made("plain")
whole.load_state_dict(state)
found = Monitor(whole, batch).measure(0)
print(f"copy: {rank == 0 and found.values['dynaxx/trace'] == expected.values['dynaxx/trace']}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_each_kind_of_sharding_is_refused_on_all_ranks(tmp_path):
    for rank, said in enumerate(run(SCRIPT, tmp_path)):
        *refused, parallel, copy = said.splitlines()
        assert [line.split(": ")[0] for line in refused] == [
            "FSDP",
            "FSDP original",
            "FSDP inside",
            "FSDP original inside",
            "fully_shard",
            "a part",
            "tensor parallel",
        ]
        assert all("sharded" in line and "Train under DistributedDataParallel" in line for line in refused), said
        assert "'2' is sharded by FSDP" in refused[5]
        assert "parameter '0.weight' is sharded (a DTensor)" in refused[6]
        assert (parallel, copy) == (f"DDP: {rank == 0}", f"copy: {rank == 0}")


def test_deepspeeds_mark_on_a_parameter_is_known():
    net = nn.Linear(3, 2)
    require_whole(net)
    net.weight.ds_id = 0
    with pytest.raises(InputError, match=r"'weight' is sharded \(by DeepSpeed ZeRO 3\): .* keep an unsharded copy"):
        Monitor(net, torch.ones(4, 3))
