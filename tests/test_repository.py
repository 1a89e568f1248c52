"""What the repository promises about itself: documents that run, names that resolve, files that stay small."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dynaxx

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dynaxx"
BUILT = {"_build", "gallery"}
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if not BUILT & set(p.parts))]
MODULES = ["dynaxx", *(found.name for found in pkgutil.walk_packages(dynaxx.__path__, "dynaxx."))]


def relative(path):
    return str(path.relative_to(ROOT))


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def between(whole, start, end):
    return whole.partition(start)[2].partition(end)[0]


def text_files():
    """Text files that are tracked or would be: git knows; in a bare export, everything but what tools make."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        made = {".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis", *BUILT}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.parts)]
    for path in paths:
        if path.is_file():
            try:
                yield path, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


# documents


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_code_of_the_page_runs(page):
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S))
    if "sklearn" in code:
        pytest.importorskip("sklearn", reason="this page uses scikit-learn's digits (extra: demo)")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    heard: list[str] = []
    test = doctest.DocTestParser().get_doctest(code, {}, relative(page), str(page), 0)
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=heard.append)
    assert not heard, "".join(heard)


def test_readme_shows_code():
    shown = re.findall(r"^>>> ", text("README.md"), flags=re.M)
    assert len(shown) >= 10


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=relative)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"`((?:tests|docs|benchmarks|src)/[\w/.-]+)`", text("README.md")):
        assert (ROOT / name).exists(), name


def test_architecture_names_every_room():
    page = text("docs/architecture.md")
    house = between(page, "src/dynaxx/\n", "```")
    for path in PACKAGE.iterdir():
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in house, f"docs/architecture.md does not show {path.name}/"
        elif path.suffix == ".py" and path.stem not in ("version",):
            assert path.name in house, f"docs/architecture.md does not show {path.name}"


def test_layers_of_the_page_are_those_that_are_enforced():
    block = between(text(".importlinter"), "layers =\n", "\n\n")
    enforced = [set(re.findall(r"\w+", line)) for line in block.splitlines()]
    picture = between(text("docs/architecture.md").partition("from the top")[2], "```text\n", "```")
    assert len(enforced) > 10
    assert enforced == [set(line.split()) for line in picture.splitlines()]


# versions and metadata


def test_version_is_the_same_everywhere():
    from dynaxx.version import __version__

    assert dynaxx.__version__ == __version__
    citation = text("CITATION.cff")
    assert re.search(r"^version: (\S+)$", citation, flags=re.M).group(1) == __version__


def test_changelog_has_a_section_for_the_version():
    changelog = text("CHANGELOG.md")
    sections = dict(re.findall(r"^## \[([^\]]+)\][^\n]*\n(.*?)(?=^## |\Z)", changelog, flags=re.M | re.S))
    released, development, _ = dynaxx.__version__.partition(".dev")
    section = sections["Unreleased" if development else released]
    assert not development or released in section  # work in progress says what it is going to be
    assert re.search(r"^### (Added|Changed|Deprecated|Removed|Fixed|Security)$", section, flags=re.M)


def test_licence_is_whole():
    licence = text("LICENSE")
    assert "Apache License" in licence
    for clause in range(1, 10):
        assert re.search(rf"^\s+{clause}\. [A-Z]", licence, flags=re.M), f"clause {clause}"


def test_constraints_cover_what_is_required():
    import tomllib

    project = tomllib.loads(text("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *(one for group in project["optional-dependencies"].values() for one in group)]
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    names = {normal(re.match(r"[\w.-]+", line).group()) for line in wanted} - {"dynaxx"}
    lines = [line for line in text("constraints.txt").splitlines() if line[:1] != "#"]
    pins = {normal(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert lines == sorted(lines, key=str.casefold)
    assert names <= set(pins), f"not pinned: {sorted(names - set(pins))}"
    assert pins["torch"] == "2.13.0"
    assert "torchvision" not in pins


# the package


def test_torchvision_is_absent():
    # it has no CPU build beside this torch, and breaks what imports it when it is there
    assert importlib.util.find_spec("torchvision") is None


def test_importing_dynaxx_does_not_import_torch():
    heavy = ["torch", "numpy", "scipy", "matplotlib", "sqlalchemy"]
    code = f"import sys, dynaxx; dir(dynaxx); print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", dynaxx.__all__)
def test_public_name_resolves_and_explains_itself(name):
    value = getattr(dynaxx, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", value)
        return
    explanation = inspect.getdoc(value)
    assert explanation, f"dynaxx.{name} has no docstring"
    assert len(explanation.split()) >= 5
    if inspect.isclass(value):
        for member, attribute in vars(value).items():
            if not member.startswith("_") and (inspect.isfunction(attribute) or isinstance(attribute, property)):
                assert inspect.getdoc(attribute), f"dynaxx.{name}.{member} has no docstring"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'fischer'.*fisher"):
        _ = dynaxx.fischer


def test_readme_and_api_show_the_public_names():
    api = text("docs/api.md")
    for name in dynaxx.__all__:
        if name != "__version__":
            assert f"dynaxx.{name}" in api, f"docs/api.md does not show dynaxx.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_is(name):
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert not source or ast.get_docstring(ast.parse(source)), f"{name} has no docstring"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=relative)
def test_files_stay_small(path):
    source = path.read_text(encoding="utf-8")
    if len(source.splitlines()) > 400:
        head = "\n".join(source.splitlines()[:30])
        assert re.search(r"400 lines", head), f"{relative(path)} is past 400 lines and does not say at its top why"


def test_no_file_holds_a_path_of_a_machine():
    # spelled in pieces, so that this file does not find itself
    places = "|".join(
        ("/" + "home" + "/", "/" + "root" + "/", "/" + "work" + "/", "/" + "Users" + "/", "file" + ":///")
    )
    found = []
    for path, content in text_files():
        if ".min." in path.name:  # vendored
            continue
        found += [f"{relative(path)}: {line.strip()[:80]}" for line in content.splitlines() if re.search(places, line)]
    assert not found, "\n".join(found)
