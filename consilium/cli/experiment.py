"""Train the members of one YAML file and their ensemble, evaluate all, and write a report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import consilium
from consilium.cli.options import positive_int
from consilium.experiments.config import KEYS, ExperimentConfig, load_experiment
from consilium.experiments.executors import Executor, LocalExecutor, RayExecutor, default_slots
from consilium.experiments.plan import command_line, plan, select_runs, validate_runs
from consilium.experiments.processes import fork_server_of_this_process
from consilium.experiments.run import Run
from consilium.experiments.scheduler import ProgressDisplay, Scheduler
from evaluation.files import write_text

ACTIONS = {
    "run": "train and evaluate every run that is not done yet, then write the report",
    "status": "print the state of every run: waiting, running, stopped, failed, done, changed",
    "report": "write report.html, results.json and results/*.csv from the runs that are done",
}
OWNER = ".experiment"  # in the folder of an experiment: path of its file
EPILOG = """\
keys of the file:
{keys}

example:
  title: Two backbones and their ensemble
  members:
    resnet: ../demo/resnet10t.yaml
    maxvit: [../demo/test_maxvit.yaml, {{trainer.max_epochs: 20}}]
  ensemble: ../demo/ensemble.yaml
  seeds: [0, 1]
  gates: {{ensemble.accuracy: 0.95, members.nll: 0.5}}

Paths are relative to the file. More examples: configs/experiments/*.yaml.
"""


def run(options: argparse.Namespace) -> int:
    """Executes `experiment run|status|report FILE`."""
    config = load_experiment(options.file)
    folder = options.output or default_folder(config, options.file)
    runs = plan(config, folder)
    if options.action == "status":
        ProgressDisplay(runs).close()  # prints one line per run
        return 0
    if options.action == "report":
        return write_report(config, folder)
    selected = select_runs(config, runs, options.only)
    for each in selected:
        each.refuse_change()
    is_ray = options.engine == "ray"
    if not is_ray and (options.ray_address is not None or options.num_gpus is not None):
        raise ValueError("--ray-address and --num-gpus require --engine ray")
    has_imports = "torch" in sys.modules
    validate_runs(config, selected)
    if options.dry_run:
        for each in selected:
            print(command_line(each.arguments))
        return 0
    if not options.output:
        write_text(folder / OWNER, str(options.file.resolve()))
    if not has_imports and "torch" in sys.modules and not is_ray and is_program():
        fork_server_of_this_process()  # before anything uses a GPU
    return Scheduler(config, folder, make_executor(options, selected)).run(selected, runs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    epilog = EPILOG.format(keys="\n".join(f"  {key:<16} {text}" for key, text in KEYS.items()))
    for name, text in ACTIONS.items():
        add = actions.add_parser(name, help=text, description=text, epilog=epilog).add_argument
        add("file", type=Path, metavar="FILE", help="for example configs/experiments/demo.yaml")
        add("--output", type=Path, metavar="DIR", help="folder of the experiment (runs/NAME)")
    add = actions.choices["run"].add_argument
    add("--dry-run", action="store_true", help="validate all configs, print the commands, stop")
    add("--only", action="append", metavar="NAME", help="only this member; may be repeated")
    help_ = "runs at a time on this machine (1 with a GPU, else as many as cores and memory allow)"
    add("--jobs", type=positive_int, metavar="N", help=help_)
    add("--isolated", action="store_true", help="a new Python interpreter per run, not a fork")
    add("--engine", choices=["local", "ray"], default="local", help="where to run (local)")
    add("--ray-address", metavar="HOST:PORT", help="a running Ray cluster (default: a local one)")
    add("--num-gpus", type=float, metavar="N", help="GPUs per Ray task (1 if there are any)")


def default_folder(config: ExperimentConfig, file: Path) -> Path:
    """runs/NAME; raises ValueError if it belongs to another experiment file of that name."""
    folder = Path("runs") / config.name
    owner = folder / OWNER
    other = Path(owner.read_text(encoding="utf-8")) if owner.is_file() else file.resolve()
    if other.is_file() and other != file.resolve():
        raise ValueError(f"{folder} belongs to {other}, not to {file}; use --output DIR")
    return folder


def make_executor(options: argparse.Namespace, runs: Sequence[Run]) -> Executor:
    """The executor that --engine names; it may start as many of `runs` at a time as --jobs."""
    if options.engine == "ray":
        return RayExecutor(options.ray_address, options.num_gpus)
    slots = default_slots([run for run in runs if not run.is_done()])
    return LocalExecutor(options.jobs or slots, options.isolated, runs)


def is_program() -> bool:
    """Whether this process is the command `consilium` alone, not a program that calls it."""
    main, program = Path(consilium.__file__).with_name("__main__.py"), Path(sys.argv[0])
    return program == main or program.name == "consilium"


def write_report(config: ExperimentConfig, folder: Path) -> int:
    """Writes the report of the runs that are done and prints its summary; 0 if all gates passed."""
    from consilium.experiments.report import write_experiment_report  # imports torch

    passed, lines = write_experiment_report(config, folder)
    print("\n".join(lines))
    return 0 if passed else 1
