"""Lightning's own DistributedDataParallel in two real processes: the first alone measures and writes."""

import pytest
import torch

from dynaxx.track import Store
from processes import DIGITS, run

pytest.importorskip("lightning", reason="pip install lightning (extra: lightning)")
pytest.importorskip("sklearn", reason="trains on scikit-learn's digits (extra: demo)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed"),
]

SCRIPT = (
    DIGITS
    + """
import warnings
warnings.simplefilter("ignore")
os.environ |= {"TORCHELASTIC_RUN_ID": "here", "GROUP_RANK": "0"}  # Lightning then starts no processes itself
import lightning.pytorch as pl
from dynaxx.integrations.lightning import DynaxxCallback

class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.optimizer = made()
        self.steps = 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        self.steps += 1
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return self.optimizer

def fit(kind):
    part = lambda a, b: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[a:b], y[a:b]), batch_size=16)
    signals = [Late(1, level="info", actions=[Stop()])] if kind == "stopped" else None
    watch = DynaxxCallback(probe, every=2 if kind == "watched" else 1, store=f"{folder}/runs.db", name=kind,
                           signals=signals)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, callbacks=[] if kind == "plain" else [watch],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, part(0, 256), part(256, 320))
    assert trainer.world_size == 2 and isinstance(trainer.model, (nn.parallel.DistributedDataParallel, Classifier))
    assert model.steps == (3 if kind == "stopped" else 8), model.steps
    if kind == "watched":
        assert watch.monitor.steps == 8 and watch.monitor.events == []
        looks = [record.step for record in watch.monitor.history if "dynaxx/trace" in record.values]
        assert looks == ([0, 2, 4, 6, 8] if rank == 0 else []), looks
    torch.save(model.state_dict(), f"{folder}/{kind}-{rank}.pt")

for kind in ("plain", "watched", "stopped"):
    fit(kind)
"""
)


def test_one_rank_measures_both_train_as_without_and_both_stop(tmp_path):
    run(SCRIPT, tmp_path)
    for rank in (0, 1):
        plain, watched = (
            torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=True) for kind in ("plain", "watched")
        )
        assert all(torch.equal(value, watched[name]) for name, value in plain.items())
    with Store(tmp_path / "runs.db", readonly=True) as store:
        runs = {info.name: info for info in store.runs()}
        assert sorted(runs) == ["stopped", "watched"]  # of two processes one writes
        assert runs["watched"].status == "finished"
        assert store.metrics(runs["watched"].id, "dynaxx/trace").steps.tolist() == [0, 2, 4, 6, 8]
        assert store.metrics(runs["watched"].id, "validation_loss").steps.tolist() == [8]
