"""Tables as they lie in files: CSV with commas, semicolons or tabs, and Parquet."""

import csv
from pathlib import Path

import pandas as pd

DELIMITERS = (",", ";", "\t")  # the first wins where the header has none


def read_table(path: Path) -> pd.DataFrame:
    """A CSV as text, in which NA and an empty cell are what they say; or a Parquet file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, sep=delimiter(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no table in UTF-8: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: no table: {str(error).strip()}") from None


def delimiter(path: Path) -> str:
    """What parts the header into most columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline(100_000)
    return max(DELIMITERS, key=lambda one: len(next(csv.reader([header], delimiter=one), [])))
