"""The runs of an experiment: their folders, their commands, and what each needs."""

import shlex
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from consilium.experiments.config import MEMBERS, ExperimentConfig, SaliencyConfig
from consilium.experiments.members import layer_arguments
from consilium.experiments.run import Run
from evaluation import saliency
from evaluation.results import voters_folder

SALIENCY = "saliency"  # folder, and prefix of run names
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Round:
    """One repetition of all members and ensembles.

    Args:
        seed: seed of every run, None for the seeds of the configs.
        fold: the fold that is tested, None for the splits of the data.
        num_folds: number of folds.
    """

    seed: int | None = None
    fold: int | None = None
    num_folds: int = 0

    @property
    def suffix(self) -> str:
        """End of the run names of this round, such as `-seed1-fold0`."""
        parts = {"seed": self.seed, "fold": self.fold}
        return "".join(f"-{name}{value}" for name, value in parts.items() if value is not None)

    @property
    def arguments(self) -> list[str]:
        """Arguments that set seed and fold."""
        arguments = [] if self.seed is None else ["--seed_everything", str(self.seed)]
        if self.fold is not None:
            arguments += ["--data.init_args.fold.index", str(self.fold)]
            arguments += ["--data.init_args.fold.num_folds", str(self.num_folds)]
        return arguments


def rounds(config: ExperimentConfig) -> list[Round]:
    """Every seed with every fold; a single round without seed and fold if there are none."""
    folds: list[int] | list[None] = list(range(config.folds)) or [None]
    return [Round(s, fold, config.folds) for s, fold in product(seeds_or_none(config), folds)]


def seeds_or_none(config: ExperimentConfig) -> list[int] | list[None]:
    """The seeds of an experiment, [None] if it has none."""
    return list(config.seeds) or [None]


def plan(config: ExperimentConfig, folder: Path) -> list[Run]:
    """Every run, each after the runs that it needs."""
    runs: dict[str, Run] = {}
    for run, portable in zip(_runs(config, folder), _runs(config, Path()), strict=True):
        inputs = tuple(runs[name] for name in run.needs)
        runs[run.name] = replace(run, portable_arguments=portable.arguments, inputs=inputs)
    return list(runs.values())


def select_runs(config: ExperimentConfig, runs: list[Run], only: list[str] | None) -> list[Run]:
    """The runs of the members named in `only` and those that need no others; all if None."""
    member_of = {name + r.suffix: name for r in rounds(config) for name in config.members}
    for name in only or []:
        if name not in member_of and name not in config.members:
            known = ", ".join(config.members)
            raise ValueError(f"--only {name}: not a member; members are {known}")
    members = {run for run, name in member_of.items() if not only or {run, name} & set(only)}
    selected: dict[str, Run] = {}
    for run in runs:
        has_inputs = run.name not in member_of and selected.keys() >= set(run.needs)
        if run.name in members or has_inputs:
            selected[run.name] = run
    return list(selected.values())


def validate_runs(config: ExperimentConfig, runs: list[Run]) -> None:
    """Parses the config of every member and ensemble that is not done; ValueError on an error.

    Runs that differ only in seed and fold are parsed once.
    """
    names = (*config.members, *config.ensembles)
    name_of = {name + r.suffix: name for r in rounds(config) for name in names}
    commands = {name_of[r.name]: r.arguments for r in runs if r.name in name_of and not r.is_done()}
    if commands:
        from consilium.training.lightning_cli import validate_config  # imports torch

        for arguments in commands.values():
            validate_config(arguments, config.files)


def command_line(arguments: list[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["consilium", *arguments])


def _runs(config: ExperimentConfig, folder: Path) -> list[Run]:
    runs = []
    for r in rounds(config):
        runs += [_member_run(config, folder, name, r) for name in config.members]
        for name in config.ensembles:
            runs += _ensemble_runs(config, folder, name, r)
        if config.saliency is not None:
            explained = config.ensembles or config.members
            parent = folder if config.ensembles else folder / MEMBERS
            targets = [parent / f"{name}{r.suffix}" for name in explained]
            runs += [_saliency_run(config.saliency, folder, target) for target in targets]
    return runs


def _member_run(config: ExperimentConfig, folder: Path, name: str, each_round: Round) -> Run:
    run = folder / MEMBERS / f"{name}{each_round.suffix}"
    layers = layer_arguments((config.base, *config.members[name]))
    options = [*each_round.arguments, "--run", str(run), "--test", "true"]
    return Run(run.name, run, ["fit", *layers, *options])


def _ensemble_runs(
    config: ExperimentConfig, folder: Path, ensemble: str, each_round: Round
) -> list[Run]:
    """Fits and evaluates every voter on the members' predictions, then tests the ensemble."""
    names = [f"{member}{each_round.suffix}" for member in config.ensembles[ensemble]]
    members = [folder / MEMBERS / name for name in names]
    run = folder / f"{ensemble}{each_round.suffix}"
    voters = voters_folder(run)
    fit = ["ensemble"]
    for split in SPLITS:
        fit += [f"--{split}", *(str(m / "predictions" / f"{split}.parquet") for m in members)]
    fit += ["-o", str(voters), "--voter", config.voter]
    fit += ["--attribute", config.attribute] if config.attribute else []
    attended = list(map(str, config.attended_values))
    fit += ["--attended_values", *attended] if attended else []
    layers = layer_arguments((config.base, *config.ensemble))
    test = ["test", *layers, *each_round.arguments, "--run", str(run)]
    test += ["--model.init_args.voter", str(voters)]
    test += [f"--model.init_args.members=[{', '.join(map(str, members))}]"]
    return [
        Run(voters.name, voters, fit, tuple(names)),
        Run(run.name, run, test, (voters.name, *names)),
    ]


def _saliency_run(config: SaliencyConfig, folder: Path, target: Path) -> Run:
    """Evaluates the saliency maps of one run."""
    output = folder / SALIENCY / target.name
    arguments = ["explain", str(target), "--split", "test", "--measure", *config.methods]
    arguments += ["--limit", str(config.limit)] if config.limit else []
    arguments += ["--device", "auto", "-o", str(output)]
    name = f"{SALIENCY}-{target.name}"
    return Run(name, output, arguments, (target.name,), result=saliency.FILE)
