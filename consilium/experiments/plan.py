"""The runs of a study: what is trained, elected and convened, with the commands that do it."""

import shlex
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from consilium.experiments.config import MEMBERS, ExperimentConfig, MapsAsked
from consilium.experiments.layers import arguments
from consilium.experiments.run import Run
from evaluation import saliency
from evaluation.run_folder import voters_of

MAPS = "maps"


@dataclass(frozen=True)
class Round:
    """One repetition of all members and ensembles.

    Args:
        seed: seed of everything in it, None for the members' own.
        fold: the part of the patients that it tests, None for the data's splits.
        folds: how many parts there are.
    """

    seed: int | None = None
    fold: int | None = None
    folds: int = 0

    @property
    def suffix(self) -> str:
        """`-seed1-fold0`: what tells its runs apart."""
        parts = {"seed": self.seed, "fold": self.fold}
        return "".join(f"-{name}{at}" for name, at in parts.items() if at is not None)

    @property
    def flags(self) -> list[str]:
        """What is added to a command."""
        seed = [] if self.seed is None else ["--seed_everything", str(self.seed)]
        at = {"part": self.fold, "of": self.folds} if self.fold is not None else {}
        return seed + [w for k, v in at.items() for w in (f"--data.init_args.fold.{k}", str(v))]


def rounds(study: ExperimentConfig) -> list[Round]:
    """Every seed with every fold; one round of neither where the study names none."""
    seeds: list[int] | list[None] = study.seeds or [None]
    folds: list[int] | list[None] = list(range(study.folds)) or [None]
    return [Round(seed, fold, study.folds) for seed, fold in product(seeds, folds)]


def plan(study: ExperimentConfig, folder: Path) -> list[Run]:
    """Every run in the order in which they would be typed, each with those that it needs."""
    runs: dict[str, Run] = {}
    for run, bare in zip(_runs(study, folder), _runs(study, Path()), strict=True):
        of = tuple(runs[name] for name in run.needs)
        runs[run.name] = replace(run, command=bare.arguments, of=of)
    return list(runs.values())


def _runs(study: ExperimentConfig, folder: Path) -> list[Run]:
    runs = []
    for each in rounds(study):
        runs += [_member(study, folder, name, each) for name in study.members]
        for name in study.ensembles:
            runs += [_voters(study, folder, name, each), _ensemble(study, folder, name, each)]
        if study.maps is not None:
            runs += [_maps(study.maps, folder, of) for of in with_maps(study, folder, each)]
    return runs


def chosen(study: ExperimentConfig, runs: list[Run], only: list[str] | None) -> list[Run]:
    """The runs of these members and of what needs no others; all when none are named."""
    allowed = {name + each.suffix: name for each in rounds(study) for name in study.members}
    for name in only or []:
        if name not in allowed and name not in study.members:
            raise ValueError(f"--only {name}: not a member; members are {', '.join(study.members)}")
    members = {run for run, name in allowed.items() if not only or {run, name} & set(only)}
    found: dict[str, Run] = {}
    for run in runs:
        if run.name in members or (run.name not in allowed and found.keys() >= set(run.needs)):
            found[run.name] = run
    return list(found.values())


def command_line(words: list[str]) -> str:
    """The arguments as a person would type them."""
    return shlex.join(["consilium", *words])


def _member(study: ExperimentConfig, folder: Path, name: str, each: Round) -> Run:
    run = folder / MEMBERS / f"{name}{each.suffix}"
    layers = arguments((study.base, *study.members[name]))
    return Run(run.name, run, ["fit", *layers, *each.flags, "--run", str(run)])


def _voters(study: ExperimentConfig, folder: Path, ensemble: str, each: Round) -> Run:
    """Fits every voter on val and judges them, from the members' tables alone."""
    members = member_folders(study, folder, ensemble, each)
    words = ["ensemble"]
    for split in ("val", "test"):
        tables = [str(member / "predictions" / f"{split}.parquet") for member in members]
        words += [f"--{split}", *tables]
    run = voters_of(folder / f"{ensemble}{each.suffix}")
    words += ["-o", str(run), "--voter", study.voter]
    words += ["--attribute", study.attribute] if study.attribute else []
    words += ["--attend", *study.attend] if study.attend else []
    return Run(run.name, run, words, tuple(member.name for member in members))


def _ensemble(study: ExperimentConfig, folder: Path, ensemble: str, each: Round) -> Run:
    """Tests the ensemble by its fitted voter."""
    members = member_folders(study, folder, ensemble, each)
    run = folder / f"{ensemble}{each.suffix}"
    voters = voters_of(run)
    words = ["test", *arguments((study.base, *study.ensemble)), *each.flags, "--run", str(run)]
    words += ["--model.init_args.voter", str(voters)]
    words += [f"--model.init_args.members=[{', '.join(map(str, members))}]"]
    return Run(run.name, run, words, (voters.name, *(member.name for member in members)))


def _maps(maps: MapsAsked, folder: Path, of: Path) -> Run:
    """Measures the heat maps of one run."""
    into = folder / MAPS / of.name
    words = ["explain", str(of), "--split", "test", "--measure", *maps.methods]
    words += ["--limit", str(maps.limit)] if maps.limit else []
    words += ["--device", "auto", "-o", str(into)]
    return Run(f"maps-{of.name}", into, words, (of.name,), result=saliency.FILE)


def with_maps(study: ExperimentConfig, folder: Path, each: Round) -> list[Path]:
    """Run folders whose maps are measured: the ensembles', or the members' where there are none."""
    above = folder if study.ensembles else folder / MEMBERS
    return [above / f"{name}{each.suffix}" for name in study.ensembles or study.members]


def member_folders(study: ExperimentConfig, folder: Path, ensemble: str, each: Round) -> list[Path]:
    """Run folders of an ensemble's members in a round."""
    return [folder / MEMBERS / f"{name}{each.suffix}" for name in study.ensembles[ensemble]]
