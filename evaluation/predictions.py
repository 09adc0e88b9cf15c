"""The prediction table: one row a sample, with its logits; read, written, aligned, refused."""

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
_KEY = b"consilium.table"


@dataclass(frozen=True)
class PredictionTable:
    """What one model (or ensemble) said about the samples of a split.

    `rows` holds id, label (-1 unknown), split, patient, study and any attribute; `logits` is
    (n, K). `pairs` are the optional one-versus-one logits in the order (0,1), (0,2), …
    Numbers are rounded to float32 here, so a table is the same before and after its file.
    """

    rows: pd.DataFrame
    logits: np.ndarray
    class_names: list[str]
    meta: dict[str, Any] = field(default_factory=dict)
    pairs: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows.reset_index(drop=True))
        object.__setattr__(self, "logits", _rounded(self.logits))
        if self.pairs is not None:
            object.__setattr__(self, "pairs", _rounded(self.pairs))
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
        """Log-softmax of the logits, (n, K): finite where a probability would round to 0."""
        return np.asarray(log_softmax(self.logits, axis=1))

    @property
    def labels(self) -> np.ndarray:
        """Labels (n,), -1 where unknown."""
        return self.rows["label"].to_numpy(np.int64)

    @property
    def patients(self) -> np.ndarray:
        """Patient of each row (n,); a row without one is its own patient."""
        named = self.rows["patient"].fillna("").astype(str).to_numpy(dtype=object)
        return np.where(named == "", "id:" + self.rows["id"].to_numpy(dtype=object), named)

    @property
    def splits(self) -> list[str]:
        """The splits that occur, sorted."""
        return sorted(self.rows["split"].astype(str).unique())

    @property
    def attributes(self) -> list[str]:
        """Columns beyond the five that every table has."""
        return [str(c) for c in self.rows.columns if c not in COLUMNS]

    @property
    def labeled(self) -> "PredictionTable":
        """The rows whose label is known."""
        return self if (self.labels >= 0).all() else self.take(np.flatnonzero(self.labels >= 0))

    def take(self, positions: np.ndarray) -> "PredictionTable":
        """The rows at `positions`, in that order."""
        pairs = None if self.pairs is None else self.pairs[positions]
        rows = self.rows.iloc[positions]
        return replace(self, rows=rows, logits=self.logits[positions], pairs=pairs)

    def with_probabilities(self, probabilities: np.ndarray) -> "PredictionTable":
        """The same samples with other probabilities (n, K); 0 becomes 1e-30, to stay finite."""
        return replace(self, logits=np.log(np.maximum(probabilities, 1e-30)), pairs=None)

    def write(self, path: Path | str) -> None:
        """Writes Parquet, class names and `meta` in the file's own metadata."""
        write_bytes(path, _to_parquet(self))

    @classmethod
    def read(cls, path: Path | str) -> "PredictionTable":
        """Reads what `write` wrote; anything else is refused by the file's name."""
        try:
            return _from_arrow(pq.read_table(io.BytesIO(Path(path).read_bytes())))
        except pa.ArrowInvalid:
            raise ValueError(f"{path} is not a Parquet file, or it is cut short") from None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from None

    def _check_shape(self) -> None:
        lacking = [c for c in COLUMNS if c not in self.rows.columns]
        if lacking:
            raise ValueError(f"prediction table lacks column {lacking[0]!r}; it needs {COLUMNS}")
        k = len(self.class_names)
        if k < 2 or len(set(self.class_names)) != k:
            raise ValueError(f"class_names {self.class_names} must be two or more distinct names")
        if len(self.rows) == 0 or self.logits.shape != (len(self.rows), k):
            shape = (max(len(self.rows), 1), k)
            raise ValueError(f"logits have shape {self.logits.shape}, the table needs {shape}")
        if self.pairs is not None and self.pairs.shape != (len(self.rows), k * (k - 1) // 2):
            raise ValueError(f"pairs have shape {self.pairs.shape}, not (n, {k * (k - 1) // 2})")

    def _check_rows(self) -> None:
        ids, labels = self.rows["id"], self.rows["label"]
        doubled = ids[ids.duplicated()]
        if len(doubled):
            raise ValueError(f"id {doubled.iloc[0]!r} occurs twice ({len(doubled)} doubled ids)")
        wrong = labels[~labels.between(-1, len(self.class_names) - 1)]
        if len(wrong):
            allowed = f"-1 (unknown) to {len(self.class_names) - 1}"
            raise ValueError(f"label {wrong.iloc[0]} of id {ids[wrong.index[0]]!r}: not {allowed}")

    def _check_finite(self) -> None:
        bad = ~np.isfinite(self.logits).all(axis=1)
        if self.pairs is not None:
            bad |= ~np.isfinite(self.pairs).all(axis=1)
        if bad.any():
            first = self.rows["id"].iloc[int(bad.argmax())]
            raise ValueError(f"logits of id {first!r} are not finite ({bad.sum()} such rows)")


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float32).astype(np.float64)


def _lists(values: np.ndarray) -> pa.Array:
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.astype(np.float32).ravel())


def _to_parquet(table: PredictionTable) -> bytes:
    arrow = pa.Table.from_pandas(table.rows, preserve_index=False)
    arrow = arrow.append_column("logits", _lists(table.logits))
    if table.pairs is not None:
        arrow = arrow.append_column("pairs", _lists(table.pairs))
    about = {"version": VERSION, "class_names": table.class_names, "meta": table.meta}
    metadata = {**(arrow.schema.metadata or {}), _KEY: json.dumps(about).encode()}
    stream = io.BytesIO()
    pq.write_table(arrow.replace_schema_metadata(metadata), stream)
    return stream.getvalue()


def _from_arrow(arrow: pa.Table) -> PredictionTable:
    about = json.loads((arrow.schema.metadata or {}).get(_KEY, b"{}"))
    if about.get("version") != VERSION:
        raise ValueError(f"prediction table of version {about.get('version')}, not {VERSION}")
    vectors = {n: _matrix(arrow, n) for n in ("logits", "pairs") if n in arrow.column_names}
    rows = arrow.drop_columns(list(vectors)).to_pandas()
    return PredictionTable(rows, class_names=about["class_names"], meta=about["meta"], **vectors)


def _matrix(arrow: pa.Table, name: str) -> np.ndarray:
    column = arrow[name].combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 1))


def require_ids(table: PredictionTable, ids: Iterable[str]) -> None:
    """Refuses a table whose ids are not exactly `ids`."""
    wanted, found = set(ids), set(table.rows["id"])
    for kind, some in (("lacks", wanted - found), ("has the unexpected", found - wanted)):
        if some:
            raise ValueError(f"prediction table {kind} id {min(some)!r} ({len(some)} such ids)")


def refuse_test(table: PredictionTable, what: str) -> None:
    """Refuses to fit `what` on rows of the test split."""
    if "test" in table.splits:
        raise ValueError(f"{what} may not be fitted on split 'test'; give a table of 'val'")


def align(tables: Sequence[PredictionTable]) -> list[PredictionTable]:
    """The tables in the row order and class order of the first.

    Refused: other classes, a missing or additional id, another label for an id, another
    manifest digest, another split.
    """
    if not tables:
        raise ValueError("no prediction table was given")
    first = tables[0]
    return [first, *(_aligned(table, first, at) for at, table in enumerate(tables[1:], start=2))]


def _aligned(table: PredictionTable, first: PredictionTable, at: int) -> PredictionTable:
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
        differs = _shown(table, column) != _shown(first, column)
        if differs.any():
            which = first.rows["id"].iloc[int(differs.argmax())]
            raise ValueError(f"table {at} has another {column} than the first for id {which!r}")
    return table


def _shown(table: PredictionTable, column: str) -> np.ndarray:
    """What is compared of a column: a row without a patient is the same in every table."""
    return table.patients if column == "patient" else table.rows[column].to_numpy()


def in_class_order(table: PredictionTable, names: list[str]) -> PredictionTable:
    """The table with its classes in the order of `names`, which must be the same classes."""
    if table.class_names == names:
        return table
    if sorted(table.class_names) != sorted(names):
        raise ValueError(f"the table has classes {table.class_names}, not {names}")
    order = [table.class_names.index(name) for name in names]
    labels = np.append(np.argsort(order), -1)[table.labels]  # -1 stays unknown
    pairs = None if table.pairs is None else _permuted_pairs(table.pairs, order)
    rows = table.rows.assign(label=labels)
    return replace(
        table, rows=rows, logits=table.logits[:, order], class_names=list(names), pairs=pairs
    )


def _permuted_pairs(pairs: np.ndarray, order: list[int]) -> np.ndarray:
    """Pair logits for classes in a new order; a pair turned round changes its sign."""
    column = {pair: at for at, pair in enumerate(combinations(range(len(order)), 2))}
    wanted = list(combinations(order, 2))
    signs = np.array([1.0 if i < j else -1.0 for i, j in wanted])
    turned = pairs[:, [column[min(p), max(p)] for p in wanted]]
    return np.asarray(turned * signs)
