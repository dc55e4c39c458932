"""The two Dockerfiles stand alone; what they have in common stays the same."""

import re
import tomllib
from pathlib import Path

import yaml

from ktrdr_operator.manifests import MALLOC_ENV

ROOT = Path(__file__).parents[2]
OPERATOR = (ROOT / "Dockerfile").read_text(encoding="utf-8")
TRAINER = (ROOT / "trainer_image/Dockerfile").read_text(encoding="utf-8")


def build_stages(dockerfile: str) -> str:
    """From the base image's argument to the stage that is shipped."""
    return dockerfile[dockerfile.index("ARG BASE=") : dockerfile.rindex("FROM ")]


def test_images_are_built_the_same_way_but_for_the_extra() -> None:
    assert "--extra operator" in OPERATOR
    same = build_stages(OPERATOR).replace("--extra operator", "--extra trainer")
    assert same == build_stages(TRAINER)


def test_versions_agree_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((ROOT / "charts/ktrdr/Chart.yaml").read_text())
    texts = (OPERATOR, TRAINER)
    assert [re.findall(r"^ARG VERSION=(.+)$", text, re.MULTILINE) for text in texts] == [
        [project]
    ] * 2
    assert (chart["version"], chart["appVersion"]) == (project, project)


def test_wheelhouse_has_the_uv_that_the_images_ask_for() -> None:
    script = (ROOT / "tests/cluster/images.sh").read_text()
    found = [re.findall(r"UV_VERSION=(\S+)", text) for text in (OPERATOR, TRAINER, script)]
    assert len({*map(tuple, found)}) == 1, found


def test_trainer_image_without_the_operator_allocates_as_with_it() -> None:
    assert dict(re.findall(r"(MALLOC_\w+_)=(\d+)", TRAINER)) == MALLOC_ENV


def test_images_run_as_the_user_that_manifests_and_chart_name() -> None:
    for text in (OPERATOR, TRAINER):
        assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001:10001"]
