"""What the pages say can be followed: links lead somewhere, commands and the recipes that they name are there."""

import re
from pathlib import Path

import pytest

from segkit.cli import COMMANDS
from segkit.recipes import find_recipe

REPOSITORY = Path(__file__).parents[1]
PAGES = [p for folder in (".", "docs", "datasets") for p in sorted((REPOSITORY / folder).glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_commands_and_the_recipes_that_they_name_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"(?:--config|--data|data browse) ((?:ade20k|camvid|cityscapes|data|overlays)/[\w./]+)", text
    ):
        assert find_recipe(name)
    for command in re.findall(r"`segkit (\w+)[ `]", text):
        assert command in COMMANDS


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 110
