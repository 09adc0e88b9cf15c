import pytest
import yaml

from consilium.cli.main import main, run_command
from consilium.training.run_lock import RunStopped


def exit_code(error):
    """The exit code of a command that raises an error."""

    def run(args):
        raise error

    return run_command(run, ["command"])


@pytest.mark.parametrize(
    "args",
    [["experiment", "run", "s.yaml", "--jbs", "2"], ["experiment"], ["cache", "foo"], ["compare"],
     ["cache", "build"], ["audit", "x", "--size", "wide"], ["serve", "x", "--port", "http"]],
)  # fmt: skip
def test_invalid_arguments_are_one_line_that_names_the_help(args, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(args)
    output = capsys.readouterr()
    assert not output.out
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"consilium {args[0]}")
    assert f"see consilium {args[0]}" in output.err
    assert output.err.endswith(" --help\n")


def test_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("consilium 0.")


def test_unknown_command_suggests_the_nearest(capsys):
    assert main(["experimnt"]) == 2
    assert capsys.readouterr().err.endswith("did you mean 'experiment'?\n")


def test_stopped_command_returns_its_exit_code(capsys):
    assert exit_code(RunStopped("stopped after epoch 3", 143)) == 143
    assert capsys.readouterr().err == "consilium command: stopped after epoch 3\n"
    assert exit_code(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "consilium command: interrupted\n"


@pytest.mark.parametrize(
    ("module", "message"),
    [("ray", "ray is not installed: pip install 'consilium[ray]'"),
     ("onnx.helper", "onnx is not installed: pip install 'consilium[onnx]'"),
     ("uvicorn", "uvicorn is not installed: pip install 'consilium[serve]'"),
     ("nowhere", "No module named 'nowhere'")],
)  # fmt: skip
def test_missing_optional_dependency_names_the_extra_that_installs_it(module, message, capsys):
    assert exit_code(ModuleNotFoundError(f"No module named {module!r}", name=module)) == 2
    assert capsys.readouterr().err == f"consilium command: {message}\n"


def test_invalid_yaml_is_one_line_with_file_line_and_column(tmp_path, capsys):
    file = tmp_path / "broken.yaml"
    file.write_text("a: 1\nb: [2\n")
    for source, name in ((file.open(), str(file)), (file.read_text(), "<unicode string>")):
        with pytest.raises(yaml.YAMLError) as caught:
            yaml.safe_load(source)
        assert exit_code(caught.value) == 2
        line = capsys.readouterr().err
        assert line.startswith("consilium command: while parsing a flow sequence")
        assert "expected ',' or ']', but got '<stream end>'" in line
        assert f'in "{name}", line 3, column 1' in line
        assert line.count("\n") == 1
