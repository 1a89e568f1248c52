"""Bad input is answered with what was given, what is wrong and what to do."""

import pytest
import torch

from dynaxx.errors import InputError
from dynaxx.likelihoods import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Poisson, resolve
from likelihoods.cases import EVERY, INF, draw

NAN = float("nan")


@pytest.mark.parametrize(
    ("likelihood", "z", "words"),
    [
        (Categorical(), torch.zeros(3, 1), r"shape \(3, 1\).*two classes.*bernoulli"),
        (HeteroscedasticGaussian(), torch.zeros(2, 3), r"shape \(2, 3\).*odd.*D log variances"),
        (Gaussian(variance=torch.ones(2)), torch.zeros(4, 3), r"2 variances.*\(4, 3\).*each of the 3"),
        (Bernoulli(), torch.zeros(3, 0), "at least one output"),
        (Poisson(), torch.zeros(3, 2, dtype=torch.int64), "floating-point.*int64"),
        (Categorical(), torch.tensor(1.0), "scalar"),
        (Categorical(), torch.tensor([[0.0, 1.0], [0.0, NAN]]), r"nan at position \(1,\).*finite or -inf"),
        (Categorical(), torch.tensor([[-INF, -INF]]), r"position \(0,\).*at least one"),
        (Categorical(), torch.tensor([0.0, INF]), "finite or -inf"),
        (Bernoulli(), torch.tensor([0.0, NAN]), r"position \(1,\)"),
        (Gaussian(), torch.tensor([[0.0, INF]]), r"inf at position \(0, 1\).*finite"),
        (HeteroscedasticGaussian(), torch.tensor([0.0, -INF]), "finite"),
        (Poisson(), torch.tensor([INF]), "log rates"),
    ],
)
def test_outputs_that_do_not_fit(likelihood, z, words):
    with pytest.raises(InputError, match=words):
        likelihood.check(z)


@pytest.mark.parametrize(
    ("likelihood", "z", "y", "words"),
    [
        (Categorical(), (4, 3), torch.tensor([0, 2, 3, 1]), r"label 3 at position \(2,\).*0 to 2.*-100"),
        (
            Categorical(),
            (2, 2, 3),
            torch.tensor([[0, 1], [2, -100]]),
            r"label -100 at position \(1, 1\).*ignore_index \(-100\)",
        ),
        (Categorical(), (4, 3), torch.zeros(4, 3, dtype=torch.int64), r"shape \(4, 3\).*\(4,\).*argmax"),
        (Categorical(), (4, 3), torch.zeros(5, dtype=torch.int64), r"shape \(5,\).*\(4,\)"),
        (Categorical(), (4, 3), torch.zeros(4), r"float32.*int64.*y\.long\(\)"),
        (Categorical(), (4, 3), torch.zeros(4, dtype=torch.bool), "bool"),
        (Bernoulli(), (4, 3), torch.tensor([0, 1, 2]).expand(4, 3), r"label 2\.0 at position \(0, 2\).*0 or 1"),
        (Bernoulli(), (4, 3), torch.zeros(4), r"shape \(4,\).*\(4, 3\).*categorical"),
        (Bernoulli(), (4, 1), torch.zeros(3), r"\(4, 1\) \(or \(4,\)\)"),
        (Gaussian(), (2, 1), torch.tensor([0.0, NAN]), r"label nan at position \(1, 0\).*missing"),
        (HeteroscedasticGaussian(), (2, 4), torch.zeros(2, 4), r"shape \(2, 4\).*\(2, 2\)"),
        (Poisson(), (1, 3), torch.tensor([[0.0, 1.5, 2.0]]), r"label 1\.5 at position \(0, 1\).*counts"),
        (Poisson(), (1, 3), torch.tensor([[0, -1, 2]]), r"label -1\.0"),
        (Gaussian(), (1, 1), torch.zeros(1, 1, dtype=torch.complex64), "real"),
    ],
)
def test_labels_that_do_not_fit(likelihood, z, y, words):
    with pytest.raises(InputError, match=words):
        likelihood.check(torch.zeros(z), y)


def test_labels_that_fit_pass():
    for dtype in (torch.int64, torch.int32, torch.uint8):
        Categorical().check(torch.tensor([[0.0, -INF]]), torch.tensor([1], dtype=dtype))
    Categorical().check(torch.zeros(3), torch.tensor(2))
    Bernoulli().check(torch.tensor([INF, -INF]), torch.tensor([True, False]))
    Poisson().check(torch.tensor([[-INF]]), torch.tensor([0]))
    Gaussian().check(torch.zeros(2, 1), torch.tensor([1, 2]))


@pytest.mark.parametrize("likelihood", EVERY, ids=str)
def test_wrong_options_list_the_right_ones(likelihood):
    z = draw(2, 4)
    with pytest.raises(InputError, match=r"kind='square'.*'symmetric', 'householder', 'cholesky', 'eigen'"):
        likelihood.columns(z, "square")
    with pytest.raises(InputError, match=r"method='power'.*'eigen', 'cholesky', 'nystrom'"):
        likelihood.lower(z, method="power")
    with pytest.raises(InputError, match=r"method='power'.*'diagonal', 'laplacian', 'tail'"):
        likelihood.upper(z, method="power")
    with pytest.raises(InputError, match="rank=0"):
        likelihood.lower(z, 0)
    with pytest.raises(InputError, match=r"xi has shape \(2, 9\).*must be 4"):
        likelihood.factor(z, torch.ones(2, 9))
    with pytest.raises(InputError, match="u has shape"):
        likelihood.quantile(z, torch.rand(3, 3))


def test_wrong_shapes_are_refused_by_every_method_not_by_check_alone():
    with pytest.raises(InputError, match="bernoulli"):
        Categorical().factor(torch.zeros(3, 1), torch.ones(3, 1))
    with pytest.raises(InputError, match="argmax"):
        Categorical().log_prob(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64))


@pytest.mark.parametrize("variance", [0.0, -1.0, INF, NAN, torch.ones(2, 2), torch.tensor([1.0, 0.0])])
def test_variances_that_are_none(variance):
    with pytest.raises(InputError, match="positive and finite"):
        Gaussian(variance=variance)


def test_resolve():
    assert isinstance(resolve("categorical"), Categorical)
    assert isinstance(resolve("bernoulli"), Bernoulli)
    assert isinstance(resolve("gaussian"), Gaussian)
    assert isinstance(resolve("heteroscedastic_gaussian"), HeteroscedasticGaussian)
    assert isinstance(resolve("poisson"), Poisson)
    mine = Gaussian(variance=3.0)
    assert resolve(mine) is mine
    with pytest.raises(InputError, match=r"likelihood='softmax'.*'categorical', 'bernoulli'"):
        resolve("softmax")
    with pytest.raises(InputError, match="neither a name nor a Likelihood"):
        resolve(Categorical)


def test_output_size_counts_network_outputs():
    assert [resolve(name).output_size(3) for name in ("categorical", "gaussian", "heteroscedastic_gaussian")] == [
        3,
        3,
        6,
    ]
