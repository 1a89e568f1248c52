"""Channels and heads: the graph, the scores against dense matrices, and models that are smaller and the same."""

import copy

import pytest
import torch
from torch import nn

import dynaxx
from compress.structured.resnet import ResNet
from dynaxx.compress.scoring import evaluate
from dynaxx.compress.structured import shrink
from dynaxx.compress.structured.channels import groups_of
from dynaxx.compress.structured.cutting import cut, heads_left, indices, silence
from dynaxx.compress.structured.scores import fisher_scores, magnitudes, slimming
from dynaxx.compress.structured.selection import select
from dynaxx.compress.training import fit
from dynaxx.estimators import resolve
from dynaxx.likelihoods import Categorical
from dynaxx.model.data import Data, read_batch
from dynaxx.model.network import Network

pytest.importorskip("torch_pruning", reason="structured pruning follows channels with torch-pruning")


class Concatenated(nn.Module):
    """Two branches side by side, a depthwise convolution, an activation that does not map 0 to 0, and a Flatten."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.norm, self.prelu = nn.BatchNorm2d(7), nn.PReLU(7)
        self.depthwise, self.mix = nn.Conv2d(7, 7, 3, padding=1, groups=7), nn.Conv2d(7, 5, 1)
        self.hidden, self.head = nn.Linear(5 * 16, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.prelu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = torch.sigmoid(self.mix(self.depthwise(x)))
        return self.head(torch.cos(self.hidden(x.flatten(1))))


def concatenated():
    torch.manual_seed(0)
    model = Concatenated().double()
    model.train()(torch.randn(20, 2, 4, 4).double())  # running statistics of its own
    return model.eval(), torch.randn(6, 2, 4, 4).double()


def residual():
    torch.manual_seed(0)
    model = ResNet(2, (4, 4, 8, 12)).double()
    model.train()(torch.randn(8, 3, 8, 8).double())
    return model.eval(), torch.randn(4, 3, 8, 8).double()


def bert():
    transformers = pytest.importorskip("transformers", reason="heads are tested on a HuggingFace model")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, vocab_size=30,
        max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(0, 30, (5, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return model, {"input_ids": ids, "attention_mask": mask}


CASES = {"concatenated": concatenated, "residual": residual, "bert": bert}


def groups(model, data):
    return groups_of(model, read_batch(data, torch.device("cpu")).part(0, 2))


def logits(model, data):
    out = model(**data) if isinstance(data, dict) else model(data)
    return getattr(out, "logits", out)


# ---------------------------------------------------------------------------------------------------------------------
# The graph


def test_groups_are_those_one_sees():
    found = {group.name: group for group in groups(*concatenated())[0]}
    assert {name: group.units for name, group in found.items()} == {"left": 7, "mix": 5, "hidden": 6}
    members = {(m.module, m.side): m.units.tolist() for m in found["left"].members}
    passed = list(range(7))
    assert members == {
        ("left", "out"): [0, 1, 2, 3],
        ("right", "out"): [4, 5, 6],
        ("norm", "out"): passed,
        ("prelu", "out"): passed,
        ("depthwise", "out"): passed,
        ("mix", "in"): passed,
    }
    (reader,) = found["mix"].readers
    assert reader.units.tolist() == [unit for unit in range(5) for _ in range(16)]


def test_padded_shortcuts_are_left_whole_with_a_remark():
    found, remarks = groups(*residual())
    assert {group.name for group in found} == {f"layer{i}.{j}.conv1" for i in (1, 2, 3) for j in (0, 1)}
    assert any("stays whole" in remark for remark in remarks)


def test_heads_are_units():
    found, remarks = groups(*bert())
    heads = [group for group in found if group.attention]
    assert [(group.attention, group.units) for group in heads] == [
        (f"bert.encoder.layer.{i}.attention.self", 4) for i in (0, 1)
    ]
    assert {m.module.split(".")[-1] for m in heads[0].members} == {"query", "key", "value", "dense"}
    assert any("LayerNorm" in remark for remark in remarks)


def test_attention_whose_heads_fill_its_width_is_left_whole():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)).eval()
    found, remarks = groups(model, torch.randn(4, 5, 8))
    assert {group.name for group in found} == {"0.linear1"}
    assert any("MultiheadAttention" in remark or "LayerNorm" in remark for remark in remarks)


# ---------------------------------------------------------------------------------------------------------------------
# Cutting


@pytest.mark.parametrize("name", CASES)
def test_cut_model_is_the_dense_one_with_units_silenced(name):
    """Each group alone, then random units of all of them."""
    model, data = CASES[name]()
    found, _ = groups(model, data)
    generator = torch.Generator().manual_seed(1)
    choices = [torch.randperm(group.units, generator=generator) >= group.units // 2 for group in found]
    whole = [torch.ones_like(mask) for mask in choices]
    trials = [[*whole[:i], choices[i], *whole[i + 1 :]] for i in range(len(found))] + [choices]
    dense, numbers = logits(model, data), []
    for trial in trials:
        masks = {group.name: mask for group, mask in zip(found, trial, strict=True)}
        small = cut(copy.deepcopy(model), indices(found, masks), heads_left(model, found, masks))
        expected = logits(silence(copy.deepcopy(model), found, masks), data)
        torch.testing.assert_close(logits(small, data), expected, rtol=1e-9, atol=1e-11)
        assert float((expected - dense).detach().abs().max()) > 1e-6  # the units did something
        numbers.append(sum(p.numel() for p in small.parameters()))
    assert max(numbers) < sum(p.numel() for p in model.parameters())
    assert numbers[-1] == min(numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def gates(model, data, found, estimator="exact", **options):
    meaning = Categorical()
    network = Network(model, meaning, lambda name, parameter: True)
    return fisher_scores(network, Data(data, network.device), found, resolve(estimator, meaning, **options))[0]


@pytest.mark.parametrize("name", CASES)
def test_fisher_score_is_the_quadratic_form_of_the_weights_that_read_the_unit(name):
    """1/2 w_Q^T F w_Q against products with the implicit operator."""
    model, data = CASES[name]()
    found, _ = groups(model, data)
    scores = gates(model, data, found)
    F = dynaxx.fisher(model, data)
    for group in found[:3]:
        for unit in (0, group.units - 1):
            v = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
            for member in group.readers:
                where = member.units == unit
                weight = model.get_submodule(member.module).weight.detach()
                v[f"{member.module}.weight"][:, where] = weight[:, where]
            expected = 0.5 * float(F.quadratic(F.layout.ravel(v)))
            assert float(scores[group.name][unit]) == pytest.approx(expected, rel=1e-8)
            assert expected > 0


def test_fisher_score_predicts_the_divergence_of_a_nearly_closed_gate():
    """KL(p || p with gate 1 - e) = e^2 score + O(e^3), by differences."""
    model, x = concatenated()
    found, _ = groups(model, x)
    scores, e = gates(model, x, found), 1e-3
    log_p = torch.log_softmax(model(x), 1).detach()
    group = next(group for group in found if group.name == "hidden")
    for unit in range(3):
        near = copy.deepcopy(model)
        with torch.no_grad():
            near.head.weight[:, group.readers[0].units == unit] *= 1 - e
        other = torch.log_softmax(near(x), 1).detach()
        divergence = float((log_p.exp() * (log_p - other)).sum(1).mean())
        assert divergence / e**2 == pytest.approx(float(scores["hidden"][unit]), rel=0.02)


def test_sampled_labels_agree_with_the_exact_score():
    """Mean over 400 labels an example, within 5 standard errors of the mean over 20 seeds."""
    model, x = concatenated()
    found, _ = groups(model, x)
    exact = gates(model, x, found)["hidden"]
    draws = torch.stack([gates(model, x, found, "monte_carlo", samples=20, seed=s)["hidden"] for s in range(20)])
    error = draws.std(0) / 20**0.5
    assert bool(((draws.mean(0) - exact).abs() < 5 * error).all())
    assert bool((error < 0.3 * exact).all())


def test_empirical_score_is_that_of_the_observed_labels():
    model, x = concatenated()
    found, _ = groups(model, x)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    scores = gates(model, (x, y), found, "empirical")["hidden"]
    weight = model.head.weight.detach()
    hidden = torch.cos(model.hidden(torch.sigmoid(model.mix(model.depthwise(_front(model, x)))).flatten(1))).detach()
    residual = nn.functional.one_hot(y, 3) - torch.softmax(model(x), 1).detach()
    torch.testing.assert_close(scores, 0.5 * (hidden * (residual @ weight)).square().mean(0), rtol=1e-9, atol=0)


def _front(model, x):
    return model.prelu(model.norm(torch.cat([model.left(x), model.right(x)], 1)))


def test_batches_do_not_matter_and_the_model_is_left_as_it_was():
    model, x = concatenated()
    state, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    found, _ = groups(model, x)
    one, many = gates(model, x, found), gates(model, list(x.split(4)), found)
    for name, score in one.items():
        torch.testing.assert_close(score, many[name], rtol=1e-10, atol=0)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_baselines_are_their_definitions():
    model, x = concatenated()
    found, _ = groups(model, x)
    norms, scales = magnitudes(model, found), slimming(model, found)
    both = [layer.weight.detach().flatten(1).norm(dim=1) for layer in (model.left, model.right)]
    torch.testing.assert_close(norms["left"], torch.cat(both))
    torch.testing.assert_close(norms["hidden"], model.hidden.weight.detach().norm(dim=1))
    assert set(scales) == {"left"}
    torch.testing.assert_close(scales["left"], model.norm.weight.detach().abs())


def test_time_first_inputs_are_refused():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x.transpose(0, 1)))).mean(0)

    model = TimeFirst().eval()
    with pytest.raises(dynaxx.InputError, match="axis 0"):
        shrink(model, torch.randn(5, 5, 3), reduction=0.3, repeats=0)
    with pytest.raises(dynaxx.InputError, match="first axis"):
        shrink(model, torch.randn(5, 4, 3), reduction=0.3, repeats=0)


# ---------------------------------------------------------------------------------------------------------------------
# Selection


def test_cheapest_units_go_until_the_target_is_met():
    scores = {"a": torch.tensor([5.0, 1.0, 3.0, 9.0]), "b": torch.tensor([2.0, 4.0])}
    ties = {name: torch.zeros_like(score) for name, score in scores.items()}
    count = lambda left: sum(left.values())
    masks = select(scores, ties, count, 3.0)
    assert masks["a"].tolist() == [True, False, False, True]
    assert masks["b"].tolist() == [False, True]
    masks = select(scores, ties, count, 3.0, scope="layer")
    assert (int(masks["a"].sum()), int(masks["b"].sum())) == (2, 1)
    masks = select(scores, ties, count, 5.0, cap=0.25)  # one of a may go, of b's two none
    assert masks["a"].tolist() == [True, False, True, True]


def test_equal_scores_go_by_the_second_key_and_a_target_out_of_reach_is_an_error():
    scores, ties = {"a": torch.zeros(4)}, {"a": torch.tensor([3.0, 1.0, 2.0, 4.0])}
    assert select(scores, ties, lambda left: left["a"], 2)["a"].tolist() == [True, False, False, True]
    with pytest.raises(dynaxx.InputError, match="cannot be reached"):
        select(scores, ties, lambda left: left["a"], 0.5)


# ---------------------------------------------------------------------------------------------------------------------
# The whole


def test_per_flop_ranks_by_what_a_unit_saves():
    """By hand: a unit of the wide hidden layer saves 2 (2 + 40) operations and one of the narrow 2 (40 + 3)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    x = torch.randn(12, 2).double()
    result = shrink(model, x, reduction=0.4, per_flop=True, repeats=0)
    saves = {"0": 2 * (2 + 4), "2": 2 * (40 + 3)}
    ranked = {name: score / saves[name] for name, score in gates(model, x, groups(model, x)[0]).items()}
    gone = {
        name: torch.tensor([i not in result.kept[name]["out"].tolist() for i in range(len(score))])
        for name, score in ranked.items()
        if name in result.kept
    }
    assert "2" in gone
    cheapest_left = min(
        float(score[~gone[name]].min()) if name in gone else score.min() for name, score in ranked.items()
    )
    for name, mask in gone.items():
        capped = int(mask.sum()) == min(len(mask) - 1, int(0.9 * len(mask)))
        assert capped or float(ranked[name][mask].max()) <= cheapest_left


@pytest.mark.parametrize("criterion", ["fisher", "magnitude", "slimming", "random"])
def test_reduction_is_met_and_counted(criterion):
    model, x = residual()
    state = copy.deepcopy(model.state_dict())
    result = shrink(model, x, reduction=0.3, criterion=criterion, repeats=2)
    report = result.report
    assert report["flops"]["small"] <= 0.7 * report["flops"]["dense"]
    assert report["flops"]["small"] > 0.55 * report["flops"]["dense"]
    assert report["parameters"]["small"] == sum(p.numel() for p in result.model.parameters())
    assert 0 < report["latency"]["small"]["low"] <= report["latency"]["small"]["median"]
    assert (result.predicted_loss_increase is not None) == (criterion == "fisher")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert result.model(x).shape == (4, 10)


def test_what_cannot_be_done_is_said():
    model, x = concatenated()
    linear = nn.Sequential(nn.Linear(2, 3)).eval()
    for call, said in (
        (lambda: shrink(linear, torch.randn(4, 2), reduction=0.5), "no channel of this model can be taken out"),
        (lambda: shrink(model, x, reduction=1.5), r"not in \(0, 1\)"),
        (lambda: shrink(model, x, reduction=0.5, criterion="obd"), "choose one of 'fisher'"),
        (lambda: shrink(model, x, reduction=0.5, protect=["nose"]), "protect names 'nose'"),
        (lambda: shrink(model, iter([x]), reduction=0.5), "can be read once"),
        (lambda: shrink(model, x, reduction=0.99), "cannot be reached"),
        (lambda: shrink(model, x, reduction=0.1, cap=0.0), "cap=0.0"),
    ):
        with pytest.raises(dynaxx.InputError, match=said):
            call()
    result = shrink(model, x, reduction=0.1, protect=["hidden"], repeats=0)
    assert {row["name"] for row in result.report["layers"]} == {"left"}
    assert result.model.hidden.weight.shape == model.hidden.weight.shape


def test_a_size_that_forward_has_written_down_is_an_error_with_a_remedy():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))

    with pytest.raises(dynaxx.InputError, match=r"protect=\[...\]"):
        shrink(Written().eval(), torch.randn(6, 3), reduction=0.3, repeats=0)


def test_missing_extra_names_the_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(dynaxx.InputError, match="pip install --no-deps torch-pruning"):
        shrink(*concatenated(), reduction=0.3)


def test_digits_net_shrinks_and_fine_tuning_brings_it_back():
    """Half of the operations; within 3 points of the dense accuracy after 5 epochs (397 test images, seed 0)."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    from dynaxx.cli.digits import cnn, digits

    data = digits()
    torch.manual_seed(0)
    model = cnn()
    fit(model, data.train, epochs=12, lr=0.1)
    model.eval()
    dense = evaluate(model, data.test)
    result = shrink(model, data.train, reduction=0.5, repeats=0)
    before = evaluate(result.model, data.test)
    fit(result.model, data.train, epochs=5, lr=0.05)
    after = evaluate(result.model, data.test)
    assert result.report["flops"]["small"] <= 0.5 * result.report["flops"]["dense"]
    assert dense.score > 0.95
    assert before.score < dense.score
    assert after.score > dense.score - 0.03
