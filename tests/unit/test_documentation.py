"""What the pages name exists: files, tests, decisions."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "operator/README.md", "docs/architecture.md")),
    *sorted((ROOT / "docs/decisions").glob("*.md")),
]
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
TEST_NAME = re.compile(r"`(tests/[a-z_/]+\.py)` ((?:`[a-z_.]+`(?:, )?)+)")


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
        for word in re.findall(r"`\.*([a-z_]+)\.*`", words):
            assert word in source, (path, word)


def test_decisions_are_all_listed_and_numbered_once() -> None:
    folder = ROOT / "docs/decisions"
    files = sorted(path.name for path in folder.glob("0*.md"))
    listed = re.findall(r"\]\((0[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))
    assert listed == files
    assert len({name[:4] for name in files}) == len(files)
