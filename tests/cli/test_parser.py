"""What the command lines of all commands have in common: one code, one line, and the option that was meant."""

import pytest

from segkit.cli import COMMANDS, main

# A command, with an option that is misspelt, and the one that was meant.
MISSPELT = {
    "fit --modl.network FCN": "model",
    "test --trainer.limit_test_batchs 1": "limit_test_batches",
    "fit --proobe": "probe",
    "infer a.png --outptu x --checkpoint y": "--output",
    "benchmark score a b --metrics all": "--metric",
    "benchmark compare a b --sample 3": "--samples",
    "weights inspect a --al": "--all",
    "weights convert a --outputt b.safetensors": "--output",
    "export a --reslt b": "--result",
    "data check folder x --splitt val": "--split",
    "submission check ade20k x --limt 3": "--limit",
    "doctor --jsn": "--json",
    "demo --epoch 3": "--epochs",
    "data chek": "check",
    "tst": "test",
}


@pytest.mark.parametrize("line", MISSPELT)
def test_a_misspelt_name_is_one_line_that_says_what_was_meant(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith(f"segkit {line.split()[0]}: error: ")
    assert f"did you mean {MISSPELT[line]}? " in said.err


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("validate", "predict", "test")])
def test_help_is_a_code(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")


# A command, and the words of the line that refuses it.
INCOMPLETE = {
    "fit": "no data or no network given; needed is a recipe, --config RECIPE (`segkit recipes` lists them)",
    "fit --config ade20k/deeplabv3_resnest5": "did you mean ade20k/deeplabv3_resnest50? `segkit recipes` lists them",
    "fit --config": "--config: no recipe behind it",
    "test --trainer.devices 1 --config=": "--config: no recipe behind it",
    "fit --probe true": "'true' belongs to no option: a switch such as --probe takes no value",
    "doctor --json=true": "argument --json",
    "export a --aux false": "unrecognized arguments: false",
    "infer": "required: --checkpoint, --output",
    "infer --checkpoint a.ckpt --output out": "no images: give some, folders of them, or a --list",
}


@pytest.mark.parametrize("line", INCOMPLETE)
def test_a_line_says_what_is_missing_or_too_much(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert INCOMPLETE[line] in said and said.count("\n") == 1
