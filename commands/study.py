"""consilium study: fits every member in a process of its own, convenes the council, reports."""

import argparse
import time
from pathlib import Path

from rich.console import Console

from commands import study_report
from commands.processes import Run, wait_for_lock
from commands.progress import Progress
from commands.study_file import Study, command_line, read_study

LOG = "study.log"
POLL = 0.5


def run(args: list[str]) -> int:
    """Carries out `study run FILE` or `study status FILE`."""
    asked = parser().parse_args(args)
    study = read_study(asked.file)
    folder = Path(asked.output or Path("runs") / study.name)
    if asked.verb == "status":
        return status(study, folder)
    names = chosen(study, asked.only)
    if asked.dry_run:
        for arguments in commands(study, names, folder):
            print(command_line(arguments))
        return 0
    if asked.jobs < 1:
        raise ValueError(f"--jobs {asked.jobs}: at least 1")
    return Runner(study, folder, asked.jobs).run(names)


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = argparse.ArgumentParser("consilium study", description=__doc__)
    verbs = main.add_subparsers(dest="verb", required=True, metavar="run|status")
    for verb, what in (("run", "fit what is not yet fitted, then test, compare, report"),
                       ("status", "say what is done, running, waiting or failed")):  # fmt: skip
        sub = verbs.add_parser(verb, help=what, description=what)
        sub.add_argument("file", help="the study, a YAML file such as configs/studies/demo.yaml")
        sub.add_argument("--output", metavar="DIR", help="folder of the study (runs/STUDY)")
    add = verbs.choices["run"].add_argument
    add("--dry-run", action="store_true", help="print the command of each member and stop")
    add("--only", action="append", metavar="NAME", help="this member alone; may be repeated")
    add("--jobs", type=int, default=1, metavar="N", help="members at a time (1)")
    add("--engine", choices=["local"], default="local", help="where members run (local)")
    return main


def chosen(study: Study, only: list[str] | None) -> list[str]:
    """The members to run."""
    for name in only or []:
        if name not in study.members:
            raise ValueError(f"--only {name}: not a member; members are {', '.join(study.members)}")
    return [name for name in study.members if not only or name in only]


def commands(study: Study, names: list[str], folder: Path) -> list[list[str]]:
    """What a person could type instead."""
    fits = [study.fit(name, folder) for name in names]
    whole = len(names) == len(study.members)
    council = [study.elect(folder), study.convene(folder)] if study.council and whole else []
    return [*fits, *council]


def runs_of(study: Study, folder: Path) -> list[Run]:
    """Every run of the study, the council last."""
    runs = [Run(n, folder / "members" / n, study.fit(n, folder)) for n in study.members]
    if study.council:
        runs.append(Run("voters", folder / "voters", study.elect(folder)))
        runs.append(Run("council", folder / "council", study.convene(folder)))
    return runs


def status(study: Study, folder: Path) -> int:
    """Prints where every run stands."""
    with Progress(runs_of(study, folder)) as progress:
        progress.update()
    return 0


class Runner:
    """Carries a study out; whatever is done already is left as it is."""

    def __init__(self, study: Study, folder: Path, jobs: int) -> None:
        self.study, self.folder, self.jobs = study, folder, jobs
        self.log = folder / LOG
        self.failed: list[str] = []

    def run(self, names: list[str]) -> int:
        """Members, council, report; 0 when nothing failed and every gate passed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = {run.name: run for run in runs_of(self.study, self.folder)}
        self._fill([runs[name] for name in names])
        for name in ("voters", "council") if self.study.council else ():
            before = [run for run in runs.values() if run.name not in ("voters", "council")]
            if all(run.done() for run in before) and not self.failed:
                self._fill([runs[name]])
        return self._close(list(runs.values()))

    def _fill(self, runs: list[Run]) -> None:
        """Runs what is not done, `jobs` at a time; a failure does not stop the others."""
        waiting, active = [run for run in runs if not run.done()], list[Run]()
        with Progress(runs) as progress:
            try:
                while waiting or active:
                    while waiting and len(active) < self.jobs:
                        active.append(self._start(waiting.pop(0)))
                    time.sleep(POLL)
                    progress.update()
                    active = [run for run in active if not self._ended(run)]
            finally:
                for run in active:
                    run.stop()

    def _start(self, run: Run) -> Run:
        wait_for_lock(run)
        if not run.done():
            self._note(f"{run.name}: {command_line(run.start())}")
        return run

    def _ended(self, run: Run) -> bool:
        if not run.poll():
            return False
        if run.done():
            self._note(f"{run.name}: done")
        else:
            self._note(f"{run.name}: failed: {run.complaint()}")
            self.failed.append(run.name)
        return True

    def _note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _close(self, runs: list[Run]) -> int:
        """Reports what there is and says the last words."""
        console = Console(soft_wrap=True)
        for run in runs:
            if run.name in self.failed:
                console.print(f"{run.name} failed: {run.complaint()} ({run.folder}/log.txt)")
        if not all(run.done() for run in runs):
            console.print(f"consilium study status shows what is left in {self.folder}")
            return 1 if self.failed else 0
        passed = study_report.write(self.study, self.folder)
        for line in study_report.last_words(self.study, self.folder):
            console.print(line)
        return 0 if passed else 1
