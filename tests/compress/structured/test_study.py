"""studies/structured.py: the quick mode holds, and the page shows the kept results."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def study(studies):
    return studies("structured")


@pytest.mark.slow
def test_quick_study_holds(studies, study, capsys):
    try:
        data = study.data_folder(None)
    except studies("runs").Skipped as reason:
        pytest.skip(str(reason))
    if not (data / "cifar10").is_dir():
        pytest.skip("the CIFAR-10 images are not there")
    assert study.main(["--quick"]) == 0
    assert "every check holds" in capsys.readouterr().out


def test_page_shows_the_kept_results(study, capsys):
    page = (ROOT / "docs" / "concepts" / "structured.md").read_text(encoding="utf-8")
    assert study.main(["--table"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert not set(rows) - set(page.splitlines())
