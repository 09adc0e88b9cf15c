"""The typed configuration of an experiment, read from its YAML file."""

from argparse import ArgumentError
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from consilium.config_files import explain_parser_error
from consilium.experiments.members import layer_arguments, read_experiment
from evaluation.metrics.calibration import CalibrationMethod
from evaluation.metrics.registry import METRICS, MetricSpec, matching_specs
from evaluation.predictions import Level
from evaluation.saliency import SALIENCY_METHODS
from evaluation.voters.registry import AUTO, VOTERS, VoterOptions

ENSEMBLE, MEMBERS = "ensemble", "members"
RESERVED = (ENSEMBLE, MEMBERS, "voters", "saliency")  # names of runs and of groups of runs
# density of the last callback, which is the sparse training
CONTROL_ARGUMENTS = ["--trainer.callbacks.init_args.density", "1.0"]
KEYS = {
    "title": "heading of the report (name of the file)",
    "base": "config that every run starts from (../base.yaml)",
    "members": "NAME: a config file, settings by dotted name, or a list of both; later ones win",
    "matrix": "AXIS: values; a member for each combination, from the template `member`",
    "member": "like one of `members`; {AXIS} is replaced by the value",
    "overrides": "settings for all members; ensembles get those that are not about the model",
    "extends": "experiment that this one starts from; `members: {NAME: null}` removes a member",
    "controls": "NAME: [MEMBER, ...]; trained like the first MEMBER at density 1; `true`: for each",
    "ensemble": "config of the ensembles; without it members are only compared",
    "ensembles": "NAME: [MEMBER, ...] or `all`; several ensembles in place of one of all members",
    "voter": "rule that combines members; auto: learned weights if val favors them (auto)",
    "calibration": "auto: vector scaling if val favors it; may change decisions (temperature)",
    "attribute": "column of the data for voters with weights by group, such as body_part",
    "attended_values": "values of `attribute` that get an attention layer (voter group_attention)",
    "level": "study or patient: metrics by imaging exam or by patient as well (image)",
    "seeds": "[0, 1, 2]: train each member once with each seed",
    "folds": "5: cross-validation by patient; 0 uses the splits of the data (0)",
    "gates": "WHO.METRIC: least value (nll and such: greatest; calibration_slope: distance from 1)",
    "claims": "WHO.METRIC: {claimed: VALUE or [LOW, HIGH], believable: [LOW, HIGH], why: TEXT}",
    "saliency": "{methods: [GradCAM], limit: 100}: evaluate saliency maps on test images",
}


@dataclass(frozen=True)
class Measure:
    """Range of a quantity that gates and claims can name, beside the metrics of a run."""

    higher_is_better: bool
    minimum: float = 0.0
    maximum: float = 1.0
    ideal: float | None = None  # as of a metric


MEASURES = {
    "agreement": Measure(True),  # fraction of the images on which all members predict the same
    "weights_zero_fraction": Measure(True),  # of all weights
    "density": Measure(False),  # fraction of the prunable weights that remain
    "training_minutes": Measure(False, maximum=inf),  # of an ensemble: the sum of its members'
}


@dataclass(frozen=True)
class Claim:
    """A published value or range of a metric (None: none), and the range of believable values."""

    believable: tuple[float, float]
    why: str
    claimed: float | tuple[float, float] | None = None

    @property
    def claimed_values(self) -> tuple[float, ...]:
        """The published value, both ends of a range, or nothing."""
        if self.claimed is None:
            return ()
        return self.claimed if isinstance(self.claimed, tuple) else (self.claimed,)

    @property
    def claimed_text(self) -> str:
        """`0.97`, `0.93 to 0.97` or "", without rounding."""
        return " to ".join(map(str, self.claimed_values))


@dataclass(frozen=True)
class SaliencyConfig:
    """Saliency maps to evaluate: CAM methods, and the number of test images (None for all)."""

    methods: list[str]
    limit: int | None = None


@dataclass(frozen=True)
class ExperimentConfig:
    """Members, their ensembles, and how both are evaluated; the fields are keys of the file.

    `name` is the stem of the file, `files` are the file and those that it extends. `members`
    include the controls; they and `ensemble` are command-line arguments of configs and settings.
    `ensembles` map an ensemble to its members, `controls` a dense member to its sparse ones.
    """

    name: str
    title: str
    members: dict[str, list[str]]
    ensemble: list[str] = field(default_factory=list)
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)
    voter: str = AUTO
    calibration: CalibrationMethod = "temperature"
    attribute: str = ""
    attended_values: list[str | int] = field(default_factory=list)
    level: Level = "image"
    seeds: list[int] = field(default_factory=list)
    folds: int = 0
    gates: dict[str, float] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    saliency: SaliencyConfig | None = None
    files: tuple[Path, ...] = ()

    @property
    def voter_options(self) -> VoterOptions:
        """The options of voters that need more than predictions."""
        return VoterOptions(self.attribute, list(map(str, self.attended_values)))


# keys that are not parsed by type: names and layers of members
UNTYPED = {"base", "members", "matrix", "member", "overrides", "extends", "ensemble"}


def load_experiment(path: str | Path) -> ExperimentConfig:
    """The experiment of a YAML file; unknown keys, wrong values and missing files are refused."""
    file = Path(path)
    content = read_experiment(file, KEYS)
    try:
        config = _build(file.stem, content)
        _check(config)
    except (ArgumentError, ValueError) as error:
        message = str(error)
        if isinstance(error, ArgumentError):
            message = explain_parser_error(message, [file], KEYS)
            message = message.removeprefix(f"{file}: ").removeprefix("command line: ")
        raise ValueError(f"experiment {file}: {message}") from error
    return config


def _build(name: str, content: dict[str, Any]) -> ExperimentConfig:
    """The typed config of what `read_experiment` returns, with controls among the members."""
    base, members = content["base"], content["members"]
    if not isinstance(base, str) or not Path(base).is_file():
        raise ValueError(f"base {base!r} is not a file")
    arguments = {m: layer_arguments(f"member {m}", [base, *v]) for m, v in members.items()}
    controls = content.get("controls") or {}
    if controls is True:
        controls = {f"{member}_control": [member] for member in arguments}
    names = [*arguments, *(controls if isinstance(controls, dict) else [])]
    ensembles = _expand_ensembles(content, names)
    parsed = _parse({"title": name, **content, "controls": controls, "ensembles": ensembles})
    for control, sparse in parsed["controls"].items():
        if control in arguments:
            raise ValueError(f"controls: {control!r} is already a member")
        _require_members(f"controls: {control}", sparse, arguments)
        arguments[control] = [*arguments[sparse[0]], *CONTROL_ARGUMENTS]
    ensemble = layer_arguments(ENSEMBLE, [base, *content["ensemble"]]) if ensembles else []
    parsed |= {"members": arguments, "ensemble": ensemble, "files": content["files"]}
    return ExperimentConfig(name, **parsed)


def _expand_ensembles(content: dict[str, Any], members: list[str]) -> dict[str, Any]:
    """Members of each ensemble by its run name; `all` becomes the list of all members."""
    given: dict[str, Any] = content.get("ensembles") or {}
    if given and not content.get("ensemble"):
        raise ValueError("`ensembles` requires `ensemble`, the config of all ensembles")
    if not content.get("ensemble"):
        return {}
    _require_names("ensembles", given or members)
    whole = {f"{ENSEMBLE}-{n}": members if of == "all" else of for n, of in given.items()}
    return whole or {ENSEMBLE: members}


def _parse(content: dict[str, Any]) -> dict[str, Any]:
    """The typed values of a file; an ArgumentError names the key of a wrong one."""
    typed = KEYS.keys() - UNTYPED
    parser = ArgumentParser(exit_on_error=False)
    names = {f.name for f in fields(ExperimentConfig)}
    parser.add_class_arguments(ExperimentConfig, skip=names - typed)
    values = {key: value for key, value in content.items() if key in typed and value is not None}
    parsed = parser.instantiate(parser.parse_object(values))
    return {key: parsed[key] for key in typed}


def _check(config: ExperimentConfig) -> None:
    """Raises ValueError for values that have the right type but no meaning."""
    _require_names("members", config.members)
    for ensemble, members in config.ensembles.items():
        _require_members(f"ensembles: {ensemble}", members, config.members)
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds, default=0) < 0:
        raise ValueError(f"seeds: {config.seeds}; whole numbers from 0, each once")
    if config.folds in (1, 2) or config.folds < 0:
        raise ValueError(f"folds: {config.folds}; at least 3 (train, val, test), or 0 for none")
    if config.saliency is not None:
        _check_saliency(config.saliency)
    _check_voter(config)
    for name, limit in config.gates.items():
        _check_metric("gates", name, config, [limit])
    for name, claim in config.claims.items():
        low, high = claim.believable
        if low > high:
            raise ValueError(f"claims: {name}: believable: {[low, high]}; lower end first")
        _check_metric("claims", name, config, [low, high, *claim.claimed_values])


def _check_saliency(saliency: SaliencyConfig) -> None:
    """Raises ValueError without a method, for an unknown one, and for a limit below 1."""
    if not saliency.methods or set(saliency.methods) - set(SALIENCY_METHODS):
        allowed = ", ".join(SALIENCY_METHODS)
        raise ValueError(f"saliency: methods: {saliency.methods}; allowed: {allowed}")
    if saliency.limit is not None and saliency.limit < 1:
        raise ValueError(f"saliency: limit: {saliency.limit}; at least 1")


def _require_members(where: str, names: list[str], members: Collection[str]) -> None:
    """Raises ValueError, which begins with `where`, unless `names` are one or more members."""
    if not names or set(names) - set(members) or len(set(names)) < len(names):
        raise ValueError(f"{where}: {names}; needs members, each once, of {', '.join(members)}")


def _require_names(key: str, names: Collection[str]) -> None:
    """Raises ValueError without names, and for names that are reserved or no folder names."""
    if not names:
        raise ValueError(f"{key}: at least one is required")
    for name in map(str, names):
        if "/" in name or name.startswith(".") or not name.isprintable() or not 0 < len(name) < 100:
            raise ValueError(f"{key}: {name!r} is not the name of a folder")
        if name in RESERVED or name.startswith(tuple(f"{word}-" for word in RESERVED)):
            reserved = f"{', '.join(RESERVED)}, alone or before a hyphen"
            raise ValueError(f"{key}: {name!r} is reserved, as are {reserved}")


def _check_voter(config: ExperimentConfig) -> None:
    """Raises ValueError for an unknown voter, and if the voter needs a value that is not given."""
    allowed = [name for name, spec in VOTERS.items() if "weights" not in spec.requirements]
    options = config.voter_options
    if config.voter == AUTO:
        return
    if config.voter not in allowed:
        raise ValueError(f"voter: {config.voter!r}; allowed: {', '.join([AUTO, *allowed])}")
    for missing in VOTERS[config.voter].missing_options(options):
        raise ValueError(f"voter: {config.voter} requires `{missing}`")


def _check_metric(key: str, name: str, config: ExperimentConfig, values: list[float]) -> None:
    """Raises ValueError if there is no metric `name` (WHO.METRIC) or a value is out of range."""
    who, _, metric = name.partition(".")
    subjects = {MEMBERS, *config.members, *config.ensembles}
    subjects |= {ENSEMBLE} if config.ensembles else set()
    specs = find_specs(config, name)
    if who not in subjects or not specs:
        allowed = (
            f"WHO of {', '.join(sorted(subjects))} and METRIC of {', '.join([*METRICS, *MEASURES])}"
        )
        raise ValueError(f"{key}: {name}; allowed: WHO.METRIC with {allowed}")
    low, high = min(s.minimum for s in specs), max(s.maximum for s in specs)
    for value in values:
        if not low <= value <= high:
            raise ValueError(f"{key}: {name}: {value:g}; {metric} is between {low:g} and {high:g}")


def find_specs(config: ExperimentConfig, name: str) -> Sequence[MetricSpec | Measure]:
    """The metrics or measures that `name`, which is WHO.METRIC, matches; METRIC may contain `*`.

    WHO is `members`, `ensemble`, or the name of a member or an ensemble. Members also have metrics
    on val (`val/accuracy`), ensembles also have metrics of each voter (`learned/accuracy`).
    """
    who, _, metric = name.partition(".")
    source, _, rest = metric.partition("/")
    sources = ["val"]
    if who == ENSEMBLE or who in config.ensembles:
        options = config.voter_options
        sources = [voter for voter, spec in VOTERS.items() if not spec.missing_options(options)]
    if source in sources:
        return matching_specs(rest, "image")
    measures = [measure for n, measure in MEASURES.items() if fnmatchcase(n, metric)]
    return [*matching_specs(metric, config.level), *measures]
