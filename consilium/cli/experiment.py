"""consilium experiment: trains members in processes of their own, then ensembles and a report."""

import argparse
from pathlib import Path

from consilium.cli import words
from consilium.experiments.config import ExperimentConfig, read_study
from consilium.experiments.executors import Engine, Local, Ray
from consilium.experiments.plan import chosen, command_line, plan
from consilium.experiments.progress import Progress
from consilium.experiments.run import Run
from consilium.experiments.scheduler import Runner
from evaluation.files import write_text

VERBS = {
    "run": "fit what is not yet fitted, then elect, test, compare, report",
    "status": "say what is done, running, waiting, failed, or made with other settings (changed)",
    "report": "write report, results.json and results/ anew from what is there",
}
OWNER = ".study"  # in a study's folder: the file that fills it
KEYS = """\
what a study's file says (configs/experiments holds examples):
  members    NAME: a config file, settings by dotted name, or a list of both; later ones win
  matrix     axes whose combinations are members, each made of the template `member`
  overrides  the same as a member's, for all of them
  like       another study, whose members are taken over; null leaves one out
  ensemble    config of the ensemble of all; ensembles: {NAME: [MEMBER, ...]} for several
  voter      what ensembles go by (soft); attribute, attend: for weights of each body part
  control    {NAME: [MEMBER, ...]}: trained as the first of them, with all weights; or true
  seeds      [0, 1, 2]: every member with each of them
  folds      5: as many parts of the patients, each tested once, by models that never saw it
  level      study or patient: judged beside images
  gates      {ensemble.METRIC: LEAST}; also members.METRIC, NAME.METRIC, and * within METRIC
  claims     named like gates: {claimed: VALUE, believable: [FROM, TO], why: TEXT}
  maps       {methods: [GradCAM, LayerCAM], limit: 100}: measure heat maps of test pictures
"""


def run(args: list[str]) -> int:
    """Carries out `study run FILE`, `study status FILE` or `study report FILE`."""
    asked = parser().parse_args(args)
    study = read_study(asked.file)
    folder = Path(asked.output) if asked.output else own_folder(study, Path(asked.file))
    runs = plan(study, folder)
    if asked.verb == "status":
        return status(runs)
    if asked.verb == "report":
        return report(study, folder)
    names = chosen(study, runs, asked.only)
    if asked.dry_run:
        for each in names:
            print(command_line(each.arguments))
        return 0
    for each in names:
        each.refuse_changed()
    runner = Runner(study, folder, engine(asked))
    if not asked.output:
        write_text(folder / OWNER, str(Path(asked.file).resolve()))
    return runner.run(names, runs)


def own_folder(study: ExperimentConfig, file: Path) -> Path:
    """The folder named like the study; one that another file of that name fills is refused."""
    folder = Path("runs") / study.name
    owner = folder / OWNER
    other = Path(owner.read_text(encoding="utf-8")) if owner.is_file() else file.resolve()
    if other.is_file() and other != file.resolve():
        raise ValueError(f"{folder} is of the study {other}, not of {file}: give --output DIR")
    return folder


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("study", __doc__)
    verbs = main.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for verb, what in VERBS.items():
        sub = verbs.add_parser(
            verb, help=what, description=what, epilog=KEYS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.add_argument(
            "file", help="the study, a YAML file such as configs/experiments/demo.yaml"
        )
        sub.add_argument("--output", metavar="DIR", help="folder of the study (runs/STUDY)")
    add = verbs.choices["run"].add_argument
    add("--dry-run", action="store_true", help="print the command of each run and stop")
    add("--only", action="append", metavar="NAME", help="this member alone; may be repeated")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (1)")
    add("--engine", choices=["local", "ray"], default="local", help="where runs run (local)")
    add("--ray-address", metavar="HOST:PORT", help="a running Ray cluster (one of this machine)")
    add("--num-gpus", type=float, metavar="N",
        help="GPUs that a Ray task asks for (1 where there are any)")  # fmt: skip
    return main


def engine(asked: argparse.Namespace) -> Engine:
    """Where the runs run."""
    if asked.engine == "ray":
        return Ray(asked.ray_address, asked.num_gpus)
    if asked.ray_address is not None or asked.num_gpus is not None:
        raise ValueError("--ray-address and --num-gpus are for --engine ray")
    return Local(asked.jobs)


def status(runs: list[Run]) -> int:
    """Prints where every run stands."""
    with Progress(runs) as progress:
        progress.update()
    return 0


def report(study: ExperimentConfig, folder: Path) -> int:
    """Writes the report of the runs that are done; 0 when every gate passed."""
    # torch and all: seconds that a dry run does not need
    from consilium.experiments import report as page

    passed, lines = page.write(study, folder)
    for line in lines:
        print(line)
    return 0 if passed else 1
