"""PredictionTable: one row a sample with its logits; reading, writing and alignment."""

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax, softmax

from evaluation.files import write_bytes

COLUMNS = ("id", "label", "split", "patient", "study")
VERSION = 1
MIN_PROBABILITY = 1e-30  # below any probability that float32 logits can distinguish from 0
_KEY = b"consilium.table"


def safe_log(probabilities: np.ndarray) -> np.ndarray:
    """Logarithm of probabilities, finite at 0."""
    return np.asarray(np.log(np.maximum(probabilities, MIN_PROBABILITY)))


@dataclass(frozen=True)
class PredictionTable:
    """Logits (n, K) of one model or ensemble for the samples of a split.

    `rows` has the columns id, label (-1 if unknown), split, patient, study and any attributes.
    `pair_logits` are optional one-versus-one logits (n, K(K-1)/2) in the order (0, 1), (0, 2), ...
    Numbers are rounded to float32, so that a table is the same before and after it was written.
    """

    rows: pd.DataFrame
    logits: np.ndarray
    class_names: list[str]
    meta: dict[str, Any] = field(default_factory=dict)
    pair_logits: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows.reset_index(drop=True))
        object.__setattr__(self, "logits", _round_to_float32(self.logits))
        if self.pair_logits is not None:
            object.__setattr__(self, "pair_logits", _round_to_float32(self.pair_logits))
        self._check_shape()
        self._check_rows()
        self._check_finite()

    def __len__(self) -> int:
        return len(self.rows)

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
    def labels(self) -> np.ndarray:
        """Labels (n,), -1 if unknown."""
        return self.rows["label"].to_numpy(np.int64)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each row (n,); a row without a patient counts as a patient of its own."""
        names = self.rows["patient"].fillna("").astype(str).to_numpy(dtype=object)
        return np.where(names == "", "id:" + self.rows["id"].to_numpy(dtype=object), names)

    @property
    def splits(self) -> list[str]:
        """Names of the splits in the table, sorted."""
        return sorted(self.rows["split"].astype(str).unique())

    @property
    def attributes(self) -> list[str]:
        """Columns other than the five that every table has."""
        return [str(c) for c in self.rows.columns if c not in COLUMNS]

    @property
    def labeled(self) -> "PredictionTable":
        """The rows with a known label."""
        return self if (self.labels >= 0).all() else self.take(np.flatnonzero(self.labels >= 0))

    def take(self, positions: np.ndarray) -> "PredictionTable":
        """The rows at `positions`, in that order."""
        pair_logits = None if self.pair_logits is None else self.pair_logits[positions]
        rows = self.rows.iloc[positions]
        return replace(self, rows=rows, logits=self.logits[positions], pair_logits=pair_logits)

    def with_probabilities(self, probabilities: np.ndarray) -> "PredictionTable":
        """The same samples with other probabilities (n, K); 0 becomes 1e-30, for finite logits."""
        logits = safe_log(probabilities)
        return replace(self, logits=logits, pair_logits=None)

    def write(self, path: Path | str) -> None:
        """Writes Parquet, with class names and `meta` in the metadata of the file."""
        write_bytes(path, _to_parquet(self))

    @classmethod
    def read(cls, path: Path | str) -> "PredictionTable":
        """Reads a file of `write`; anything else is a ValueError with the name of the file."""
        try:
            return _from_arrow(pq.read_table(io.BytesIO(Path(path).read_bytes())))
        except pa.ArrowInvalid:
            raise ValueError(f"{path} is not a Parquet file, or it is cut short") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from None

    def _check_shape(self) -> None:
        missing = [c for c in COLUMNS if c not in self.rows.columns]
        if missing:
            raise ValueError(f"prediction table has no column {missing[0]!r}; it needs {COLUMNS}")
        k = len(self.class_names)
        if k < 2 or len(set(self.class_names)) != k:
            raise ValueError(f"class_names {self.class_names} must be two or more distinct names")
        if len(self.rows) == 0 or self.logits.shape != (len(self.rows), k):
            shape = (max(len(self.rows), 1), k)
            raise ValueError(f"logits have shape {self.logits.shape}, the table needs {shape}")
        shape = (len(self.rows), k * (k - 1) // 2)
        if self.pair_logits is not None and self.pair_logits.shape != shape:
            raise ValueError(f"pair_logits have shape {self.pair_logits.shape}, not {shape}")

    def _check_rows(self) -> None:
        ids, labels = self.rows["id"], self.rows["label"]
        duplicates = ids[ids.duplicated()]
        if len(duplicates):
            count = f"{len(duplicates)} duplicate ids"
            raise ValueError(f"id {duplicates.iloc[0]!r} occurs twice ({count})")
        invalid = labels[~labels.between(-1, len(self.class_names) - 1)]
        if len(invalid):
            first, allowed = ids[invalid.index[0]], f"-1 (unknown) to {len(self.class_names) - 1}"
            raise ValueError(f"label {invalid.iloc[0]} of id {first!r} is not in {allowed}")

    def _check_finite(self) -> None:
        is_bad = ~np.isfinite(self.logits).all(axis=1)
        if self.pair_logits is not None:
            is_bad |= ~np.isfinite(self.pair_logits).all(axis=1)
        if is_bad.any():
            first = self.rows["id"].iloc[int(is_bad.argmax())]
            raise ValueError(f"logits of id {first!r} are not finite ({is_bad.sum()} such rows)")


def _round_to_float32(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).astype(np.float64)


def _to_list_column(values: np.ndarray) -> pa.Array:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.astype(np.float32).ravel())


def _to_parquet(table: PredictionTable) -> bytes:
    arrow = pa.Table.from_pandas(table.rows, preserve_index=False)
    arrow = arrow.append_column("logits", _to_list_column(table.logits))
    if table.pair_logits is not None:
        arrow = arrow.append_column("pair_logits", _to_list_column(table.pair_logits))
    header = {"version": VERSION, "class_names": table.class_names, "meta": table.meta}
    metadata = {**(arrow.schema.metadata or {}), _KEY: json.dumps(header).encode()}
    stream = io.BytesIO()
    pq.write_table(arrow.replace_schema_metadata(metadata), stream)
    return stream.getvalue()


def _from_arrow(arrow: pa.Table) -> PredictionTable:
    header = json.loads((arrow.schema.metadata or {}).get(_KEY, b"{}"))
    if header.get("version") != VERSION:
        raise ValueError(f"prediction table of version {header.get('version')}, not {VERSION}")
    names = [name for name in ("logits", "pair_logits") if name in arrow.column_names]
    logits = {name: _to_matrix(arrow, name) for name in names}
    rows = arrow.drop_columns(names).to_pandas()
    return PredictionTable(rows, class_names=header["class_names"], meta=header["meta"], **logits)


def _to_matrix(arrow: pa.Table, name: str) -> np.ndarray:
    column = arrow[name].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1))


def require_ids(table: PredictionTable, ids: Iterable[str]) -> None:
    """ValueError if the ids of the table are not exactly `ids`."""
    expected, actual = set(ids), set(table.rows["id"])
    for kind, wrong in (
        ("does not have", expected - actual),
        ("has unexpected", actual - expected),
    ):
        if wrong:
            raise ValueError(f"prediction table {kind} id {min(wrong)!r} ({len(wrong)} such ids)")


def refuse_test(table: PredictionTable, what: str) -> None:
    """ValueError if the table has rows of the test split, on which `what` may not be fitted."""
    if "test" in table.splits:
        raise ValueError(f"{what} may not be fitted on split 'test'; use split 'val'")


def align(tables: Sequence[PredictionTable]) -> list[PredictionTable]:
    """The tables in the row order and class order of the first.

    ValueError if a table has other classes or ids, or another label, patient, split or manifest
    digest than the first.
    """
    if not tables:
        raise ValueError("no prediction table was given")
    first = tables[0]
    return [first, *(_align(table, first, at) for at, table in enumerate(tables[1:], start=2))]


def _align(table: PredictionTable, first: PredictionTable, at: int) -> PredictionTable:
    if sorted(table.class_names) != sorted(first.class_names):
        raise ValueError(
            f"table {at} has classes {table.class_names}, the first {first.class_names}"
        )
    table = in_class_order(table, first.class_names)
    digests = [t.meta.get("manifest_digest") for t in (first, table)]
    if all(digests) and digests[0] != digests[1]:
        raise ValueError(f"table {at} has manifest digest {digests[1]}, the first {digests[0]}")
    if not table.rows["id"].equals(first.rows["id"]):
        require_ids(table, first.rows["id"])
        order = pd.Index(table.rows["id"]).get_indexer(pd.Index(first.rows["id"]))
        table = table.take(order)
    for column in ("label", "split", "patient"):
        differs = _comparable(table, column) != _comparable(first, column)
        if differs.any():
            row = first.rows["id"].iloc[int(differs.argmax())]
            raise ValueError(f"table {at} has another {column} than the first for id {row!r}")
    return table


def _comparable(table: PredictionTable, column: str) -> np.ndarray:
    """Values of a column for comparison; a missing patient is equal to a missing patient."""
    return table.patients if column == "patient" else table.rows[column].to_numpy()


def in_class_order(table: PredictionTable, names: list[str]) -> PredictionTable:
    """The table with its classes in the order of `names`; ValueError for other classes."""
    if table.class_names == names:
        return table
    if sorted(table.class_names) != sorted(names):
        raise ValueError(f"the table has classes {table.class_names}, not {names}")
    order = [table.class_names.index(name) for name in names]
    labels = np.append(np.argsort(order), -1)[table.labels]  # -1 remains -1
    pairs = None if table.pair_logits is None else _permute_pairs(table.pair_logits, order)
    rows = table.rows.assign(label=labels)
    return replace(
        table, rows=rows, logits=table.logits[:, order], class_names=list(names), pair_logits=pairs
    )


def _permute_pairs(pair_logits: np.ndarray, order: list[int]) -> np.ndarray:
    """Pair logits for classes in a new order; those of a reversed pair change their sign."""
    column = {pair: at for at, pair in enumerate(combinations(range(len(order)), 2))}
    pairs = list(combinations(order, 2))
    signs = np.array([1.0 if i < j else -1.0 for i, j in pairs])
    return np.asarray(pair_logits[:, [column[min(p), max(p)] for p in pairs]] * signs)


def member_name(path: Path) -> str:
    """Name of the member that a run folder or a prediction table belongs to.

    `resnet` for `members/resnet`, `resnet/predictions/val.parquet` and `val/resnet.parquet`.
    """
    if path.suffix != ".parquet":
        return path.name
    return path.parent.parent.name if path.parent.name == "predictions" else path.stem


def read_tables(
    paths: Sequence[Path], argument: str, split: str = "test"
) -> dict[str, PredictionTable]:
    """Prediction tables by member; a run folder stands for its table of `split`.

    `argument` is the name of the argument in error messages.
    """
    names = [member_name(path) for path in paths]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"{argument}: two paths belong to the member {duplicates[0]!r}")
    files = [_table_file(path, argument, split) for path in paths]
    return {name: PredictionTable.read(file) for name, file in zip(names, files, strict=True)}


def _table_file(path: Path, argument: str, split: str) -> Path:
    file = path if path.suffix == ".parquet" else path / "predictions" / f"{split}.parquet"
    if not file.is_file():
        raise ValueError(f"{argument} {path}: no prediction table {file}; run consilium test first")
    return file
