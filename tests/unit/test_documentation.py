"""What the pages name exists: files, tests, decisions; and the examples are valid."""

import re
from pathlib import Path

import pytest
import yaml

from ktrdr_api.strategy import parse_strategy
from ktrdr_api.training_job import TrainingJobSpec

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for pattern in ("README.md", "*/README.md", "tests/*/README.md", "docs/**/*.md")
    for page in ROOT.glob(pattern)
    if not page.relative_to(ROOT).parts[0].startswith((".", "build"))
)
EXAMPLES = sorted((ROOT / "docs/examples").glob("*.yaml"))
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
TEST_NAME = re.compile(r"`(tests/[a-z0-9_/]+\.py)` ((?:`[a-z0-9_.]+`(?:, )?)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page_names_only_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    words = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    paths = [ROOT / word for word in words if word.startswith(FOLDERS) and "*" not in word]
    assert [str(path) for path in [*links, *paths] if not path.exists()] == []


def test_architecture_names_only_tests_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = TEST_NAME.findall(text)
    assert named
    for path, words in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        for word in re.findall(r"`\.*([a-z0-9_]+)\.*`", words):
            assert word in source, (path, word)


def test_decisions_are_all_listed_and_numbered_once() -> None:
    folder = ROOT / "docs/decisions"
    files = sorted(path.name for path in folder.glob("0*.md"))
    listed = re.findall(r"\]\((0[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == files
    assert len({name[:4] for name in files}) == len(files)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_says_nothing_that_the_resource_does_not_know(path: Path) -> None:
    job = yaml.safe_load(path.read_text(encoding="utf-8"))

    spec = TrainingJobSpec.model_validate(job["spec"])

    # Unknown fields are pruned, as by the API server: they would be missing here.
    assert spec.model_dump(mode="json", by_alias=True, exclude_unset=True) == job["spec"]
    assert job["metadata"] == {"name": path.stem}
    inline = job["spec"]["strategy"].get("inline")
    if inline is None:
        assert (ROOT / "strategies" / job["spec"]["strategy"]["configMapKeyRef"]["key"]).exists()
    else:
        assert parse_strategy(inline).warnings() == []
