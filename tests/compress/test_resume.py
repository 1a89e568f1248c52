"""Work that is killed anywhere goes on where it was and ends as if it had never been cut off; rounds and targets."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynaxx
from dynaxx.compress.checkpoint import Piece
from dynaxx.compress.training import fit
from dynaxx.compress.workflow import compress

SCRIPT = """
    import os, signal, sys, torch
    from safetensors.torch import save_file
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset
    from dynaxx.compress.workflow import compress
    folder, die = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(120, 8)
    y = (x[:, :3] + 0.3 * torch.randn(120, 3)).argmax(1)
    own = torch.Generator().manual_seed(0)
    train = DataLoader(TensorDataset(x[:80], y[:80]), batch_size=16, shuffle=True, generator=own)
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))
    def tell(phase, done, total, note):
        if die and phase == die[0] and done == int(die[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    result = compress(model, train, (x[80:], y[80:]), epochs=4, fine_tune_epochs=2, probe_size=20, lr=0.1, rounds=2,
                      criterion="obs", steps=2, sparsity=0.9, target_accuracy=0.6, trials=2, sparsities=(0.5,),
                      criteria=("magnitude",), progress=tell, resume=folder,
                      optimizer=lambda p, lr: torch.optim.Adam(p, lr / 10))
    masks = {f"mask/{name}": mask for name, mask in result.pruning.masks.items()}
    scores = torch.tensor([[point.train_loss, point.validation_score] for point in result.journal.points])
    save_file({**model.state_dict(), **masks, "points": scores,
               "curves": torch.tensor([t.curve for t in result.journal.trials])}, folder + ".result")
"""


def run(folder, *die):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), *die],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if die else 0), done.stderr
    return load_file(f"{folder}.result") if not die else None


@pytest.mark.slow
def test_killed_three_times_and_the_same_in_the_end(tmp_path):
    whole = run(tmp_path / "whole")
    cut = tmp_path / "cut"
    run(cut, "Train", "2")
    assert (cut / "begin.safetensors").exists()
    run(cut, "Prune", "1")
    assert not (cut / "one_shot.safetensors").exists()
    run(cut, "Fine-tune and validate", "3")  # in the second trial
    assert (cut / "trial-1.safetensors").exists()
    assert not (cut / "trial-2.safetensors").exists()
    again = run(cut)
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
    assert len(whole["points"]) == 5


def digits():
    data = load_digits()
    x, y = torch.as_tensor(data.data / 16, dtype=torch.float32), torch.as_tensor(data.target)
    return [(x[:400], y[:400])] * 4, (x[400:600], y[400:600])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


QUICK = {"epochs": 8, "fine_tune_epochs": 2, "probe_size": 20, "sparsities": (), "criteria": (), "lr": 0.5}


def test_a_finished_run_is_read_back(tmp_path):
    train, validation = digits()
    first_model, second_model = mlp(), mlp()
    options = QUICK | {"sparsity": 0.7, "tolerance": 0.1, "resume": tmp_path / "folder"}
    first = compress(first_model, train, validation, **options)
    told = []
    with torch.no_grad():
        second_model[0].weight.zero_()  # whatever the model is now, the run began with another one
    second = compress(second_model, train, validation, progress=lambda *t: told.append(t), **options)
    assert all(torch.equal(value, second_model.state_dict()[name]) for name, value in first_model.state_dict().items())
    assert second.journal.points == first.journal.points
    assert [t.curve for t in second.journal.trials] == [t.curve for t in first.journal.trials]
    assert second.pruning.predicted_loss_increase == first.pruning.predicted_loss_increase
    assert not any(note.startswith("loss") for _, _, _, note in told)
    with pytest.raises(dynaxx.InputError, match=r"begun with other options \(sparsity\)"):
        compress(mlp(), train, validation, **(options | {"sparsity": 0.8}))


def test_fit_goes_on_bit_for_bit():
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    states = []
    for cut in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(1))
        kept = []
        if cut:

            def stop(epoch):
                if epoch.number == 3:
                    raise KeyboardInterrupt

            def keep(tensors, facts, kept=kept):
                kept.append(Piece({name: value.clone() for name, value in tensors.items()}, facts))

            with pytest.raises(KeyboardInterrupt):
                fit(model, loader, epochs=5, lr=0.1, callback=stop, keep=keep)
            assert len(kept) == 2
        fit(model, loader, epochs=5, lr=0.1, go_on=kept[-1] if kept else None)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_target_accuracy_finds_the_sparsest_that_reaches_it():
    train, validation = digits()
    result = compress(mlp(), train, validation, sparsity=0.5, target_accuracy=0.7, trials=2, **QUICK)
    trials = result.journal.trials
    assert trials[0].accepted
    assert trials[1].sparsity == 0.75  # above what was asked for
    assert result.sparsity > 0.5
    best = max((t for t in trials if t.accepted), key=lambda t: t.sparsity)
    assert best.evaluation.score >= 0.7
    assert result.kept == best.kept
    refused = [t for t in trials if not t.accepted]
    assert all(t.sparsity > best.sparsity and t.evaluation.score < 0.7 for t in refused)


def test_rounds_reach_the_sparsity_in_steps():
    train, validation = digits()
    result = compress(mlp(), train, validation, sparsity=0.8, tolerance=0.3, rounds=3, **QUICK)
    (trial,) = result.journal.trials
    assert len(trial.curve) == 3 * (1 + 2)
    assert [step for step, _ in trial.curve] == sorted(step for step, _ in trial.curve)
    assert result.sparsity == pytest.approx(0.8, abs=1e-3)
    assert result.journal.costs["FLOPs of an example, zeros skipped"][0] == 2 * (64 * 24 + 24 * 10)
    assert result.journal.costs["FLOPs of an example, zeros skipped"][1] == pytest.approx(
        2 * sum(row["kept"] for row in result.journal.layers)
    )
    page = "".join(str(block) for section in result.document().sections for block in section.blocks)
    assert "latency of 20 examples" in page


def test_the_report_holds_predictions_against_measurements():
    train, validation = digits()
    result = compress(mlp(), train, validation, tolerance=0.3, **(QUICK | {"sparsities": (0.3, 0.6)}))
    rows = result.journal.foreseen
    assert [(row.layer, row.sparsity) for row in rows] == [
        (layer, s) for layer in ("0.weight", "2.weight", "all") for s in (0.3, 0.6)
    ]
    assert all(row.predicted > 0 and row.measured > 0 for row in rows if row.sparsity == 0.6)
    (prune,) = [section for section in result.document().sections if section.title == "Prune"]
    assert "Rank correlation" in str(prune.blocks[-1])


def test_bad_input(tmp_path):
    train, validation = digits()
    (tmp_path / "file").write_text("")
    with pytest.raises(dynaxx.InputError, match="cannot write resume="):
        compress(mlp(), train, validation, resume=tmp_path / "file" / "below", **QUICK)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.safetensors").write_bytes(b"torn")
    with pytest.raises(dynaxx.InputError, match="delete it to do that part again"):
        compress(mlp(), train, validation, resume=tmp_path / "torn", **QUICK)
    with pytest.raises(dynaxx.InputError, match=r"target_accuracy=97 is not in \(0, 1\]"):
        compress(mlp(), train, validation, target_accuracy=97, **QUICK)
    with pytest.raises(dynaxx.InputError, match="target_accuracy belongs to models of classes"):
        compress(mlp(), train, validation, likelihood="gaussian", target_accuracy=0.9, **QUICK)
    with pytest.raises(dynaxx.InputError, match="rounds=0"):
        compress(mlp(), train, validation, rounds=0, **QUICK)
