import pytest
import yaml

from consilium.cli.errors import Stopped, ended
from consilium.cli.main import main


def told(error):
    """What the front door makes of an error."""

    def verb(args):
        raise error

    return ended(verb, ["verb"])


@pytest.mark.parametrize(
    "args",
    [["experiment", "run", "s.yaml", "--jbs", "2"], ["study"], ["cache", "foo"], ["compare"],
     ["cache", "build"], ["audit", "x", "--size", "wide"], ["serve", "x", "--port", "http"]],
)  # fmt: skip
def test_wrong_arguments_are_one_line_that_says_where_help_is(args, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(args)
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"consilium {args[0]}")
    assert f"see consilium {args[0]}" in said.err
    assert said.err.endswith(" --help\n")


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("consilium 0.")


def test_a_mistyped_verb_gets_the_nearest(capsys):
    assert main(["stduy"]) == 2
    assert capsys.readouterr().err.endswith("did you mean study?\n")


def test_a_stopped_verb_ends_with_its_code(capsys):
    assert told(Stopped("stopped after epoch 3", 143)) == 143
    assert capsys.readouterr().err == "consilium verb: stopped after epoch 3\n"
    assert told(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "consilium verb: stopped before its end\n"


def test_broken_yaml_is_one_line_with_its_place(tmp_path, capsys):
    file = tmp_path / "broken.yaml"
    file.write_text("a: 1\nb: [2\n")
    for source, name in ((file.open(), f"{file}, "), (file.read_text(), "")):
        with pytest.raises(yaml.YAMLError) as caught:
            yaml.safe_load(source)
        assert told(caught.value) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"consilium verb: not YAML: {name}line 3, column 1: expected")
        assert said.count("\n") == 1
