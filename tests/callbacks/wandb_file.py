"""Reads the file of an offline W&B run: records in the blocks of a LevelDB log."""

import json
import struct
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK_SIZE, HEADER_SIZE = 32768, 7
FINAL_KINDS = (1, 4)  # a whole record, or the last part of one


def read_records(folder: Path) -> list[Any]:
    """Every record of the only offline run below `folder`/wandb."""
    wandb.teardown()  # waits for its writer process
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, position, parts, records = file.read_bytes(), HEADER_SIZE, b"", []
    assert data[:4] == b":W&B"
    while position < len(data):
        if BLOCK_SIZE - position % BLOCK_SIZE < HEADER_SIZE:
            position += BLOCK_SIZE - position % BLOCK_SIZE
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER_SIZE])
        position += HEADER_SIZE
        parts, position = parts + data[position : position + length], position + length
        if kind in FINAL_KINDS:
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def run(records: list[Any]) -> Any:
    """Project, group, job type and name of the run."""
    return next(r.run for r in records if r.WhichOneof("record_type") == "run")


def config(records: list[Any]) -> dict[str, Any]:
    """The logged config."""
    values = {}
    for record in records:
        updates = [*record.config.update, *record.run.config.update]
        values |= {item.key: json.loads(item.value_json) for item in updates}
    return values


def rows(records: list[Any]) -> list[dict[str, Any]]:
    """The rows of the history."""
    histories = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in histories
    ]


def summary(records: list[Any]) -> dict[str, Any]:
    """The final values of the summary."""
    values: dict[str, Any] = {}
    for record in records:
        for item in record.summary.update:
            values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values


def artifacts(records: list[Any]) -> list[Any]:
    """The logged artifacts."""
    requests = [r.request for r in records if r.WhichOneof("record_type") == "request"]
    logged = [r.log_artifact.artifact for r in requests if r.HasField("log_artifact")]
    return [*logged, *(r.artifact for r in records if r.WhichOneof("record_type") == "artifact")]
