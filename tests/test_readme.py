import re
import shlex
from pathlib import Path

import pytest

from consilium.cli import serve
from consilium.cli.main import main
from tests.consilium.test_serve_page import REQUIRED

ROOT = Path(__file__).parents[1]
SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"]
ELSEWHERE = {  # what the demo study would have made, as the commands before have made it
    "[runs/demo/members/*]": "[runs/resnet10t]",
    "runs/demo/ensemble": "runs/ensemble",
    "runs/demo/members/resnet10t": "runs/resnet10t",
    "PATH/labels.csv": "data/phantoms/*/manifest.csv",
}
LONG = {  # what takes minutes, GPUs or a cluster is read to its end, and not begun
    "study run mine/mine.yaml": ["--dry-run"],
    "--engine ray": ["--dry-run"],
    "configs/trainer/ddp.yaml": ["--print_config"],
}


def commands() -> list[str]:
    """Every consilium line of the README's code blocks but what needs a well trained model."""
    lines = re.findall(r"^\s*\.venv/bin/consilium (.*)$", (ROOT / "README.md").read_text(), re.M)
    return [line for line in lines if "--measure" not in line]


def as_typed(line: str) -> list[str]:
    for name, instead in ELSEWHERE.items():
        line = line.replace(name, instead)
    words = [w for word in shlex.split(line) for w in (sorted(map(str, Path().glob(word)))[:1]
             if "*" in word and "/" in word else [word])]  # fmt: skip
    more = [flag for long, flag in LONG.items() if long in line]
    return words + (more[0] if more else SHORT if words[0] == "fit" else [])


@pytest.mark.usefixtures("tiny")
def test_the_commands_of_the_readme_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    verbs = []
    for line in commands():
        words = as_typed(line)
        if words[0] == "serve":  # it answers until it is stopped; test_serve_process does that
            assert serve.parser().parse_args(words[1:])
        elif "--print_config" in words:
            with pytest.raises(SystemExit, match=r"^0$"):
                main(words)
        else:
            assert main(words) == 0, (words, capsys.readouterr().err)
        verbs.append(words[0])
    before = ["fit", "test", "test", "study", "study", "explain", "serve", "export"]
    assert verbs == [*before, "audit", "study", "fit", "study", "fit", "prune"]
    assert (tmp_path / "runs" / "ensemble" / "ensemble.json").is_file()
    assert list((tmp_path / "runs" / "maps").glob("*.png"))
    assert len(list((tmp_path / "runs" / "board").glob("wandb/offline-run-*/*.wandb"))) == 1


def test_ci_runs_the_readmes_own_test_command():
    line = re.search(r"^python3 -m venv .*pytest$", (ROOT / "README.md").read_text(), re.M)
    assert line
    script = (ROOT / ".ci/run").read_text()
    assert "README.md" in script
    assert 'eval "$command"' in script


def test_ci_skips_no_test_for_want_of_a_browser():
    """Elsewhere a bare clone passes without one."""
    assert f"export {REQUIRED}=1\n" in (ROOT / ".ci/run").read_text()
