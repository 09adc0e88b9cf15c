"""PredictionTable: one row a sample with its logits; files, alignment, studies and patients."""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax, softmax

from evaluation.files import write_bytes

FINDING = "finding/"  # begins the name of a column with the labels of one of several findings
SETS = "prediction_set"  # column of `predict --sets`
COLUMNS = ("id", "label", "split", "patient", "study")
VERSION = 1
MIN_PROBABILITY = 1e-30  # below any probability that float32 logits can distinguish from 0
_KEY = b"consilium.table"

Level = Literal["image", "study", "patient"]
ReadTable = TypeVar("ReadTable")
Rule = Literal["mean", "max", "noisy_or"]
LEVELS: tuple[Level, ...] = get_args(Level)
RULES: tuple[Rule, ...] = get_args(Rule)


def safe_log(probabilities: np.ndarray) -> np.ndarray:
    """Logarithm of probabilities, finite at 0."""
    return np.asarray(np.log(np.maximum(probabilities, MIN_PROBABILITY)))


def cell_text(column: pd.Series) -> np.ndarray:
    """The cells of a column as text (n,); missing ones are empty."""
    return column.astype(object).where(column.notna(), "").astype(str).to_numpy(dtype=object)


def finding_columns(rows: pd.DataFrame) -> list[str]:
    """Names of the columns with the labels of findings; none if images have one label."""
    return [str(name) for name in rows.columns if str(name).startswith(FINDING)]


def patient_names(rows: pd.DataFrame) -> np.ndarray:
    """Patient of each row (n,); a row without a patient counts as a patient of its own."""
    names = cell_text(rows["patient"])
    return np.where(names == "", "id:" + rows["id"].to_numpy(dtype=object), names)


@dataclass(frozen=True)
class PredictionTable:
    """Logits (n, K) of one model or ensemble for the samples of a split.

    `rows` has the columns id, label (-1 if unknown), split, patient, study and any attributes.
    `pair_logits` are optional one-versus-one logits (n, K(K-1)/2) in the order of `class_pairs`.
    Numbers are rounded to float32, so that a table is the same before and after it was written.
    """

    rows: pd.DataFrame
    logits: np.ndarray
    class_names: list[str]
    meta: dict[str, Any] = field(default_factory=dict)
    pair_logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows.reset_index(drop=True))
        for name in ("logits", "pair_logits"):
            if (values := getattr(self, name)) is not None:
                rounded = np.asarray(values, np.float32).astype(np.float64)
                object.__setattr__(self, name, rounded)
        self._check()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def stored_values(self) -> np.ndarray:
        """What the table has of the network's outputs: pair logits, or else logits."""
        return self.logits if self.pair_logits is None else self.pair_logits

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (n, K)."""
        return np.asarray(softmax(self.logits, axis=1))

    @property
    def log_probabilities(self) -> np.ndarray:
        """Log-softmax of the logits, (n, K), finite also where a probability rounds to 0."""
        return np.asarray(log_softmax(self.logits, axis=1))

    @property
    def predictions(self) -> np.ndarray:
        """Class with the largest logit of each row, (n,)."""
        return np.asarray(self.logits.argmax(axis=1))

    @property
    def median_predictions(self) -> np.ndarray:
        """First class of each row (n,) up to which the probabilities sum to 0.5 or more."""
        return np.asarray((self.probabilities.cumsum(axis=1) < 0.5).sum(axis=1))

    @property
    def labels(self) -> np.ndarray:
        """Labels (n,), -1 if unknown."""
        return self.rows["label"].to_numpy(np.int64)

    @property
    def label_names(self) -> np.ndarray:
        """Class name of each label (n,), "unknown" without a label."""
        names = np.array([*self.class_names, "unknown"])  # -1 is the last
        return np.asarray(names[self.labels])

    @property
    def one_hot_labels(self) -> np.ndarray:
        """Whether each class is the label of each row, (n, K)."""
        return np.asarray(self.labels[:, None] == np.arange(len(self.class_names)))

    @property
    def patients(self) -> np.ndarray:
        """Patient of each row (n,); a row without a patient counts as a patient of its own."""
        return patient_names(self.rows)

    def patient_folds(self, num_folds: int) -> np.ndarray:
        """Fold (n,) of each row, drawn by patient, with about as many patients in each."""
        patients, patient = np.unique(self.patients.astype(str), return_inverse=True)
        return np.asarray(np.random.default_rng(0).permutation(len(patients))[patient] % num_folds)

    @property
    def splits(self) -> list[str]:
        """Names of the splits in the table, sorted."""
        return sorted(self.rows["split"].astype(str).unique())

    @property
    def attributes(self) -> list[str]:
        """Columns other than the five that every table has, and prediction sets."""
        return [str(c) for c in self.rows.columns if c not in (*COLUMNS, SETS)]

    @property
    def labeled(self) -> "PredictionTable":
        """The table of the rows with a known label."""
        return self if (self.labels >= 0).all() else self.take(np.flatnonzero(self.labels >= 0))

    def take(self, positions: np.ndarray) -> "PredictionTable":
        """The table of the rows at `positions`, in that order."""
        pairs = None if self.pair_logits is None else self.pair_logits[positions]
        rows, logits = self.rows.iloc[positions], self.logits[positions]
        return replace(self, rows=rows, logits=logits, pair_logits=pairs)

    def with_probabilities(self, probabilities: np.ndarray) -> "PredictionTable":
        """The same samples with other probabilities (n, K); 0 becomes 1e-30, for finite logits."""
        return replace(self, logits=safe_log(probabilities), pair_logits=None)

    def at_threshold(self, threshold: float) -> "PredictionTable":
        """A copy with shifted logits: the second of two classes is predicted if p >= threshold."""
        t = min(max(threshold, MIN_PROBABILITY), 1 - 1e-16)
        return replace(self, logits=self.logits + np.array([0.0, np.log1p(-t) - np.log(t)]))

    def write(self, path: Path | str) -> None:
        """Writes Parquet, with class names and `meta` in the metadata of the file."""
        logits = {"logits": self.logits, "pair_logits": self.pair_logits}
        write_table(path, self.rows, logits, self.class_names, self.meta)

    @classmethod
    def read(cls, path: Path | str) -> "PredictionTable":
        """Reads a file of `write`; anything else is a ValueError with the name of the file."""
        return read_table(path, cls)

    def _check(self) -> None:
        """Raises ValueError unless columns, class names, shapes, ids, labels, logits are valid."""
        if missing := [c for c in COLUMNS if c not in self.rows.columns]:
            raise ValueError(f"prediction table has no column {missing[0]!r}; it needs {COLUMNS}")
        if finding_columns(self.rows):
            raise ValueError("several findings per image cannot be used here: one label is needed")
        n, k, pairs = len(self.rows), len(self.class_names), self.pair_logits
        if k < 2 or len(set(self.class_names)) != k:
            raise ValueError(f"class_names {self.class_names} must be two or more distinct names")
        if n == 0 or self.logits.shape != (n, k):
            shape = (max(n, 1), k)
            raise ValueError(f"logits have shape {self.logits.shape}, the table needs {shape}")
        if pairs is not None and pairs.shape != (shape := (n, k * (k - 1) // 2)):
            raise ValueError(f"pair_logits have shape {pairs.shape}, not {shape}")
        ids, labels, last = self.rows["id"], self.rows["label"], k - 1
        if len(repeated := ids[ids.duplicated()]):
            count = f"{len(repeated)} duplicate ids"
            raise ValueError(f"id {repeated.iloc[0]!r} occurs twice ({count})")
        if len(invalid := labels[~labels.between(-1, last)]):
            row = f"label {invalid.iloc[0]} of id {ids[invalid.index[0]]!r}"
            raise ValueError(f"{row} is not in -1 (unknown) to {last}")
        values = [self.logits] if pairs is None else [self.logits, pairs]
        is_finite = np.isfinite(np.hstack(values)).all(axis=1)
        if count := (~is_finite).sum():
            first = ids.iloc[int(is_finite.argmin())]
            raise ValueError(f"logits of id {first!r} are not finite ({count} such rows)")


def write_table(
    path: Path | str, rows: pd.DataFrame, logits: Mapping[str, np.ndarray | None],
    class_names: list[str], meta: dict[str, Any],
) -> None:  # fmt: skip
    """Writes Parquet with the rows, logits by column, and class names and `meta` as metadata."""
    arrow = pa.Table.from_pandas(rows, preserve_index=False)
    for name, values in logits.items():
        if values is not None:
            offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
            flat = values.astype(np.float32).ravel()
            arrow = arrow.append_column(name, pa.ListArray.from_arrays(offsets, flat))
    header = {"version": VERSION, "class_names": class_names, "meta": meta}
    metadata = {**(arrow.schema.metadata or {}), _KEY: json.dumps(header).encode()}
    stream = io.BytesIO()
    pq.write_table(arrow.replace_schema_metadata(metadata), stream)
    write_bytes(path, stream.getvalue())


def read_table(path: Path | str, table_class: Callable[..., ReadTable]) -> ReadTable:
    """The table in a file of `write_table`; anything else is a ValueError with the file's name."""
    try:
        arrow = pq.read_table(io.BytesIO(Path(path).read_bytes()))
        header = json.loads((arrow.schema.metadata or {}).get(_KEY, b"{}"))
        if (version := header.get("version")) != VERSION:
            raise ValueError(f"prediction table of version {version}, not {VERSION}")
        logits = {}
        for name in {"logits", "pair_logits"} & set(arrow.column_names):
            column = arrow[name].combine_chunks()
            flat = column.flatten().to_numpy(zero_copy_only=False)
            logits[name] = flat.reshape((len(column), -1) if len(column) else (0, 1))
        rows = arrow.drop_columns(list(logits)).to_pandas()
        return table_class(rows, class_names=header["class_names"], meta=header["meta"], **logits)
    except pa.ArrowInvalid:
        raise ValueError(f"{path} is not a Parquet file, or it is cut short") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from None


Tables = Mapping[str, PredictionTable]  # by name of the member


class HasRows(Protocol):
    """A table with one row per sample."""

    @property
    def rows(self) -> pd.DataFrame:
        """The rows, with the column id."""


def require_ids(table: HasRows, ids: Iterable[str]) -> None:
    """ValueError if the ids of the table are not exactly `ids`."""
    expected, actual = set(ids), set(table.rows["id"])
    if wrong := expected - actual or actual - expected:
        kind = "does not have" if expected - actual else "has unexpected"
        raise ValueError(f"prediction table {kind} id {min(wrong)!r} ({len(wrong)} such ids)")


def refuse_test(table: PredictionTable, what: str) -> None:
    """ValueError if the table has rows of the test split, on which `what` may not be fitted."""
    if "test" in table.splits:
        raise ValueError(f"{what} may not be fitted on split 'test'; use split 'val'")


def align_members(tables: Tables) -> dict[str, PredictionTable]:
    """The tables by name, aligned by `align`."""
    return dict(zip(tables, align(list(tables.values())), strict=True))


def align(tables: Sequence[PredictionTable]) -> list[PredictionTable]:
    """The tables in the row order and class order of the first, with its `clinical_use`.

    ValueError if classes, ids, labels, patients, splits or the manifest digest differ.
    """
    if not tables:
        raise ValueError("no prediction table was given")
    first, *others = tables
    return [first, *(_align(table, first, at) for at, table in enumerate(others, start=2))]


def _align(table: PredictionTable, first: PredictionTable, at: int) -> PredictionTable:
    """The table in the order of the first; `at` is its number in messages, see `align`."""
    if sorted(table.class_names) != sorted(first.class_names):
        others = f"the first {first.class_names}"
        raise ValueError(f"table {at} has classes {table.class_names}, {others}")
    table, ids = in_class_order(table, first.class_names), first.rows["id"]
    digest, of_first = (t.meta.get("manifest_digest") for t in (table, first))
    if digest and of_first and digest != of_first:
        raise ValueError(f"table {at} has manifest digest {digest}, the first {of_first}")
    if not table.rows["id"].equals(ids):
        require_ids(table, ids)
        table = table.take(pd.Index(table.rows["id"]).get_indexer(pd.Index(ids)))
    use = first.meta.get("clinical_use")
    if table.meta.get("clinical_use") != use:  # all are evaluated alike
        table = replace(table, meta={**table.meta, "clinical_use": use})
    own, expected = (t.rows.assign(patient=t.patients) for t in (table, first))
    for column in ("label", "split", "patient"):  # a missing patient is equal to a missing patient
        if (differs := own[column].to_numpy() != expected[column].to_numpy()).any():
            row = ids.iloc[int(differs.argmax())]
            raise ValueError(f"table {at} has another {column} than the first for id {row!r}")
    return table


def in_class_order(table: PredictionTable, names: list[str]) -> PredictionTable:
    """The table with its classes in the order of `names`; ValueError for other classes."""
    if table.class_names == names:
        return table
    if sorted(table.class_names) != sorted(names):
        raise ValueError(f"the table has classes {table.class_names}, not {names}")
    order, pair_logits = [table.class_names.index(name) for name in names], table.pair_logits
    labels = np.append(np.argsort(order), -1)[table.labels]  # -1 remains -1
    if pair_logits is not None:
        column, pairs = class_pairs(len(order)).index, list(combinations(order, 2))
        signs = [1.0 if i < j else -1.0 for i, j in pairs]  # a reversed pair changes its sign
        pair_logits = pair_logits[:, [column((min(p), max(p))) for p in pairs]] * signs
    rows, logits = table.rows.assign(label=labels), table.logits[:, order]
    return PredictionTable(rows, logits, list(names), table.meta, pair_logits)


def has_grades(class_names: Sequence[str]) -> bool:
    """Whether there are more than two classes with rising numbers: `0`, `1`, `2` or `KL0`, ..."""
    parts = [re.fullmatch(r"(\D*)(\d+)", name) for name in class_names]
    prefixes, numbers = {p and p[1] for p in parts}, [int(p[2]) for p in parts if p]
    is_rising = numbers == sorted(set(numbers)) and len(numbers) == len(class_names)
    return len(class_names) > 2 and len(prefixes) == 1 and is_rising


def class_pairs(num_classes: int) -> list[tuple[int, int]]:
    """The pairs of classes in the order of their logits: (0, 1), (0, 2), ..., (1, 2), ..."""
    return list(combinations(range(num_classes), 2))


def row_unit(table: PredictionTable) -> str:
    """What a row of the table is: `images`, `studies` or `patients`."""
    units = {"image": "images", "study": "studies", "patient": "patients"}
    return units[table.meta.get("level", "image")]


def parse_level(text: str) -> tuple[Level, Rule]:
    """Level and rule of a text such as `study` or `study:max`; the default rule is mean."""
    name, _, rule = text.partition(":")
    if name not in LEVELS or (rule or "mean") not in RULES:
        raise ValueError(f"{text!r}: levels are {', '.join(LEVELS)}; rules {', '.join(RULES)}")
    return name, cast(Rule, rule or "mean")


def aggregate(table: PredictionTable, level: Level, rule: Rule = "mean") -> PredictionTable:
    """One row a study or patient, with its identifier as `id`; `image` returns the table itself.

    `mean` averages the probabilities. For `max` and `noisy_or`, the first class is "none" and the
    probability of another class is the largest of any image, or that of at least one image showing
    it, scaled to sum to 1. Images of a group must have the same label; where they differ in an
    attribute, it is empty.
    """
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is not among {RULES}")
    if level == "image":
        return table
    names, group = np.unique(_group_names(table, level), return_inverse=True)
    grouped = table.rows.drop(columns=["id", SETS], errors="ignore").groupby(group)
    if (differs := grouped["label"].nunique() > 1).any():
        name = names[int(np.argmax(differs))]
        raise ValueError(f"{level} '{name}' has images with different labels")
    rows = grouped.first()
    for name in table.attributes:
        rows[name] = rows[name].where(grouped[name].nunique(dropna=False) == 1)
    rows.insert(0, "id", names)
    logits = safe_log(_pool(table.probabilities, group, len(names), rule))
    return PredictionTable(rows, logits, table.class_names, {**table.meta, "level": level})


def _group_names(table: PredictionTable, level: Level) -> np.ndarray:
    """Patient, or `patient/study`, of each row (n,); ValueError if a study is missing."""
    if level == "patient":
        return table.patients.astype(str)
    names = cell_text(table.rows[level])
    if len(missing := table.rows["id"][names == ""]):
        raise ValueError(f"id {missing.iloc[0]!r} has no {level} ({len(missing)} such rows)")
    # two patients may both have a "study1"
    return np.asarray(table.patients + "/" + names, dtype=str)


def _pool(p: np.ndarray, group: np.ndarray, num_groups: int, rule: Rule) -> np.ndarray:
    """Probabilities (groups, K) from those of images (n, K), by a rule of `aggregate`."""
    pooled = np.zeros((num_groups, p.shape[1]))
    if rule == "mean":
        np.add.at(pooled, group, p)
        return np.asarray(pooled / np.bincount(group)[:, None])
    if rule == "max":
        np.maximum.at(pooled, group, p)
        pooled[:, 0] = 1.0
        np.minimum.at(pooled[:, 0], group, p[:, 0])
    else:
        np.add.at(pooled, group, np.log1p(-np.minimum(p, 1 - 1e-15)))
        pooled, log_none = 1 - np.exp(pooled), np.zeros(num_groups)
        np.add.at(log_none, group, safe_log(p[:, 0]))
        pooled[:, 0] = np.exp(log_none)
    return np.asarray(pooled / pooled.sum(axis=1, keepdims=True))
