"""The runs of an experiment: their folders, their commands, and what each needs."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from consilium.experiments.config import ENSEMBLE, MEMBERS, ExperimentConfig, SaliencyConfig
from consilium.experiments.run import Run
from evaluation import saliency
from evaluation.results import voters_folder

#: names of `Trainer.precision` by their short forms
PRECISIONS = {"None": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true",
              "64": "64-true"}  # fmt: skip
SALIENCY = "saliency"  # folder, and prefix of run names


@dataclass(frozen=True)
class Round:
    """One repetition of all members and ensembles."""

    seed: int | None = None  # of every run, None for the seeds of the configs
    fold: int | None = None  # that is tested, None for the splits of the data
    num_folds: int = 0

    @property
    def suffix(self) -> str:
        """End of the run names of this round, such as `-seed1-fold0`."""
        parts = {"seed": self.seed, "fold": self.fold}
        return "".join(f"-{name}{value}" for name, value in parts.items() if value is not None)

    @property
    def arguments(self) -> list[str]:
        """Command-line arguments that set seed and fold."""
        arguments = [] if self.seed is None else ["--seed_everything", str(self.seed)]
        if self.fold is not None:
            arguments += ["--data.init_args.fold.index", str(self.fold)]
            arguments += ["--data.init_args.fold.num_folds", str(self.num_folds)]
        return arguments


def rounds(config: ExperimentConfig) -> list[Round]:
    """Every seed with every fold; a single round without seed and fold if there are none."""
    seeds: list[int] | list[None] = list(config.seeds) or [None]
    folds: list[int] | list[None] = list(range(config.folds)) or [None]
    return [Round(seed, fold, config.folds) for seed, fold in product(seeds, folds)]


def run_names(config: ExperimentConfig, who: str) -> list[str]:
    """Names of runs in all rounds; `who` is `members`, `ensemble`, or a member or ensemble."""
    groups = {ENSEMBLE: list(config.ensembles), MEMBERS: list(config.members)}
    names = [who] if who in config.ensembles else groups.get(who, [who])
    return [name + r.suffix for r in rounds(config) for name in names]


def plan(config: ExperimentConfig, folder: Path) -> list[Run]:
    """Every run of an experiment in its folder, each after the runs that it needs."""
    runs: dict[str, Run] = {}
    for run, portable in zip(_runs(config, folder), _runs(config, Path()), strict=True):
        inputs = tuple(runs[name] for name in run.needs)
        runs[run.name] = replace(run, portable_arguments=portable.arguments, inputs=inputs)
    return list(runs.values())


def select_runs(config: ExperimentConfig, runs: list[Run], only: list[str] | None) -> list[Run]:
    """The runs of the members in `only`, and the runs that need no other members; all if None."""
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
    """Raises ValueError for an invalid config of a member or ensemble; parses one of its rounds."""
    names = (*config.members, *config.ensembles)
    name_of = {name + r.suffix: name for r in rounds(config) for name in names}
    commands = {name_of[r.name]: r.arguments for r in runs if r.name in name_of and not r.is_done()}
    if commands:
        from consilium.training.lightning_cli import validate_config  # imports torch
        from lightning_modules.heads import HEADS

        precisions: dict[str, str] = {}
        for name, arguments in commands.items():
            settings = validate_config(arguments, config.files)[arguments[0]]
            head = HEADS.get(settings.model.get("init_args.head"))
            if head is not None and head.is_multi_label:
                reason = "an experiment needs one label per image, not several findings"
                raise ValueError(f"{name}: {reason}; use consilium fit")
            precision = settings.trainer.precision
            precisions[name] = PRECISIONS.get(str(precision), str(precision))
        _require_one_precision(config, precisions)


def _require_one_precision(config: ExperimentConfig, precisions: Mapping[str, str]) -> None:
    """Raises ValueError if an ensemble has another precision than a member; both are by name."""
    for ensemble, members in config.ensembles.items():
        for member in members:
            theirs, own = precisions.get(member), precisions.get(ensemble)
            if theirs and own and theirs != own:
                reason = f"{own}, but the member {member} has {theirs}; use one precision"
                raise ValueError(f"{ensemble}: trainer.precision: {reason}")


def command_line(arguments: list[str]) -> str:
    """The command as a person would type it."""
    return shlex.join(["consilium", *arguments])


def _runs(config: ExperimentConfig, folder: Path) -> list[Run]:
    """Every run of an experiment, with `inputs` and `portable_arguments` still empty."""
    runs = []
    for r in rounds(config):
        runs += [_member_run(config, folder, name, r) for name in config.members]
        for name in config.ensembles:
            runs += _ensemble_runs(config, folder, name, r)
        if config.saliency is not None:
            parent = folder if config.ensembles else folder / MEMBERS
            targets = [parent / (name + r.suffix) for name in config.ensembles or config.members]
            runs += [_saliency_run(config.saliency, folder, target) for target in targets]
    return runs


def _member_run(config: ExperimentConfig, folder: Path, name: str, r: Round) -> Run:
    """The run that trains and tests a member in one round."""
    run = folder / MEMBERS / (name + r.suffix)
    options = [*r.arguments, "--run", str(run), "--test", "true"]
    return Run(run.name, run, ["fit", *config.members[name], *options])


def _ensemble_runs(config: ExperimentConfig, folder: Path, name: str, r: Round) -> list[Run]:
    """The run that fits and evaluates every voter, and the run that then tests the ensemble."""
    names = [member + r.suffix for member in config.ensembles[name]]
    members = [folder / MEMBERS / name for name in names]
    run = folder / (name + r.suffix)
    voters = voters_folder(run)
    fit = ["ensemble"]
    for split in ("val", "test"):
        fit += [f"--{split}", *(str(m / "predictions" / f"{split}.parquet") for m in members)]
    fit += ["-o", str(voters), "--voter", config.voter]
    fit += ["--calibration", config.calibration] if config.calibration != "temperature" else []
    fit += ["--attribute", config.attribute] if config.attribute else []
    attended = map(str, config.attended_values)
    fit += ["--attended-values", *attended] if config.attended_values else []
    test = ["test", *config.ensemble, *r.arguments, "--run", str(run)]
    test += ["--model.init_args.voter", str(voters)]
    test += [f"--model.init_args.members={json.dumps(list(map(str, members)))}"]
    return [
        Run(voters.name, voters, fit, tuple(names)),
        Run(run.name, run, test, (voters.name, *names)),
    ]


def _saliency_run(config: SaliencyConfig, folder: Path, target: Path) -> Run:
    """The run that evaluates the saliency maps of the model in the run folder `target`."""
    name, output = f"{SALIENCY}-{target.name}", folder / SALIENCY / target.name
    arguments = ["explain", str(target), "--split", "test", "--measure", *config.methods]
    arguments += ["--limit", str(config.limit)] if config.limit else []
    arguments += ["--device", "auto", "-o", str(output)]
    return Run(name, output, arguments, (target.name,), result=saliency.FILE)
