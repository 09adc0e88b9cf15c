"""A study: a list of members and what to do with them, read from YAML."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import yaml

DEFAULT_BASE = "../base.yaml"


@dataclass(frozen=True)
class Study:
    """Members by name, their council and the gates; paths lead to config files.

    Args:
        name: the file's stem; names the output folder.
        title: what stands above the report.
        base: config that every member starts from.
        members: config of each member.
        council: config of the council, or none.
        voter: the voter that the council goes by; all that can be fitted on val are judged.
        attribute: attribute with weights of its own, such as body_part.
        gates: least values, `council.METRIC` or `members.METRIC` (of every member).
    """

    name: str
    title: str
    base: Path
    members: dict[str, Path]
    council: Path | None = None
    voter: str = "soft"
    attribute: str = ""
    gates: dict[str, float] = field(default_factory=dict)

    def fit(self, member: str, folder: Path) -> list[str]:
        """Arguments that fit a member into its run folder."""
        configs = ["--config", str(self.base), "--config", str(self.members[member])]
        return ["fit", *configs, "--run", str(folder / "members" / member)]

    def elect(self, folder: Path) -> list[str]:
        """Arguments that fit every voter on val and judge them, from the members' tables."""
        tables = {split: self.tables(folder, split) for split in ("val", "test")}
        attribute = ["--attribute", self.attribute] if self.attribute else []
        output = ["-o", str(folder / "voters"), "--voter", self.voter, *attribute]
        return ["council", "--val", *tables["val"], "--test", *tables["test"], *output]

    def convene(self, folder: Path) -> list[str]:
        """Arguments that test the council of all members, by its fitted voter."""
        members = ", ".join(str(folder / "members" / name) for name in self.members)
        configs = ["--config", str(self.base), "--config", str(self.council)]
        run = ["--run", str(folder / "council"), "--model.init_args.voter", str(folder / "voters")]
        return ["test", *configs, *run, f"--model.init_args.members=[{members}]"]

    def tables(self, folder: Path, split: str) -> list[str]:
        """The members' prediction tables of a split."""
        members = (folder / "members" / name for name in self.members)
        return [str(member / "predictions" / f"{split}.parquet") for member in members]


def command_line(arguments: list[str]) -> str:
    """The arguments as a person would type them."""
    return shlex.join(["consilium", *arguments])


def read_study(path: str | Path) -> Study:
    """The study of a YAML file; unknown keys and missing files are refused."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"study {file}: no such file")
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    allowed = {"title", "base", "members", "council", "voter", "attribute", "gates"}
    if not isinstance(said, dict) or set(said) - allowed or not said.get("members"):
        found = sorted(said) if isinstance(said, dict) else type(said).__name__
        raise ValueError(f"study {file}: keys {found}; allowed {sorted(allowed)}, members needed")
    return Study(
        name=file.stem,
        title=said.get("title", file.stem),
        base=_config(file, said.get("base", DEFAULT_BASE)),
        members={str(name): _config(file, value) for name, value in said["members"].items()},
        council=_config(file, said["council"]) if said.get("council") else None,
        voter=str(said.get("voter", "soft")),
        attribute=str(said.get("attribute", "")),
        gates=_gates(file, said.get("gates") or {}),
    )


def _config(file: Path, value: object) -> Path:
    path = Path(*_collapsed(file.parent / str(value)))
    if not path.is_file():
        raise ValueError(f"study {file}: config {value!r} is not a file ({path})")
    return path


def _collapsed(path: Path) -> list[str]:
    """The path's parts without `folder/..`, so that commands stay readable."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return parts


def _gates(file: Path, gates: dict[str, float]) -> dict[str, float]:
    for name, least in gates.items():
        if name.split(".")[0] not in ("council", "members") or not isinstance(least, int | float):
            raise ValueError(
                f"study {file}: gate {name}: {least!r}; a gate is council.METRIC or "
                "members.METRIC and the least value allowed"
            )
    return gates
