"""YAML and JSON that stand for too much, through the readers of all commands, in one line and at once."""

from pathlib import Path

import pytest

from segkit.cli import main
from segkit.errors import InputError
from segkit.files import parse_json
from segkit.plain_data import DEEPEST, MOST_VALUES, parse_yaml

# Nine lists of nine lists of ...: 547 bytes for 9 ** 9 values.
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMBS = {
    "laughs": (LAUGHS, f"stands for more than {MOST_VALUES:,} values"),
    "deep": ("[" * 20_000, f"more than {DEEPEST} nested lists"),
    "block": ("- " * 20_000 + "x", f"more than {DEEPEST} nested lists"),
    "braces": ('{"a":' * 20_000 + "1" + "}" * 20_000, f"more than {DEEPEST} nested lists"),
    "self": ("x: &a [*a]", "the anchor a contains itself"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_what_stands_for_too_much_is_refused(name: str, tmp_path: Path, capsys, monkeypatch) -> None:
    text, words = BOMBS[name]
    (tmp_path / "bomb.yaml").write_text(text)
    (tmp_path / "outer.yaml").write_text("data: bomb.yaml\n")  # which its parser reads
    monkeypatch.chdir(tmp_path)
    for command in (
        "fit --config bomb.yaml",
        "fit --config outer.yaml",
        "test --data bomb.yaml",
        "test --data FolderDataModule --data.root x --model.network FCN --protocol bomb.yaml",
        "benchmark --plan bomb.yaml",
        "data check bomb.yaml",
        "data stats outer.yaml",
    ):
        assert main(command.split()) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"segkit {command.split()[0]}: error: ") and words in line and len(line) < 300
    assert main(["fit", "--model.network", text]) == 2
    assert words in capsys.readouterr().err


def test_anchors_that_configs_use_are_read() -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n"
    assert parse_yaml(text, "f.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}
    deep = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert parse_yaml(deep, "f.yaml") is not None
    with pytest.raises(InputError, match=r"^f.yaml, line 2, column 1: not valid YAML"):
        parse_yaml("a: [\n", "f.yaml")
    with pytest.raises(InputError, match=r"^f.yaml: not valid YAML: month must be in 1..12"):
        parse_yaml("2026-13-01", "f.yaml")


def test_deep_json_is_no_json() -> None:
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="too deep"):
        parse_json("[" * 100_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, shown",
    [
        ("weights inspect https://x.org/a.pth", "https://x.org/a.pth: "),
        ("data check cityscapes https://x.org/c", "https://x.org/c: "),
        ("benchmark --plan s3://x.org/plan.yaml", "s3://x.org/plan.yaml: "),
        ("test --data CamVidDataModule --data.root https://x.org/a --model.network FCN", "https://x.org/a: "),
    ],
)
def test_a_url_is_shown_as_one(command: str, shown: str, capsys) -> None:
    assert main(command.split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert shown in last and "a URL is not read: download the file, and give its path" in last


@pytest.mark.slow
def test_a_relative_root_says_where_it_led(tmp_path: Path, capsys, monkeypatch) -> None:
    """A recipe's paths begin where the command is run, as the command line's do."""
    monkeypatch.chdir(tmp_path)
    for data in ("{class_path: FolderDataModule, init_args: {root: mine}}", "{class_path: CamVidDataModule, init_args: "
                 "{root: mine}}"):  # fmt: skip
        (tmp_path / "recipe.yaml").write_text(f"data: {data}\nmodel: {{network: {{class_path: FCN}}}}\n")
        assert main(["test", "--config", "recipe.yaml"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert (
            f"mine: no such data folder (looked for {tmp_path / 'mine'}: a relative path begins at the folder" in last
        )
