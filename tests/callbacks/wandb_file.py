"""Reads the file that an offline W&B run leaves: records in the blocks of a LevelDB log."""

import json
import struct
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK, HEAD = 32768, 7
LAST = (1, 4)  # a whole record, or the last part of one


def records(folder: Path) -> list[Any]:
    """Every record of the only offline run below `folder`/wandb."""
    wandb.teardown()  # its writer is a process of its own: wait until it has ended
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, whole, found = file.read_bytes(), HEAD, b"", []
    assert data[:4] == b":W&B"
    while at < len(data):
        if BLOCK - at % BLOCK < HEAD:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEAD])
        whole, at = whole + data[at + HEAD : at + HEAD + length], at + HEAD + length
        if kind in LAST:
            found.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return found


def run(said: list[Any]) -> Any:
    """Project, group, job type and name of the run."""
    return next(r.run for r in said if r.WhichOneof("record_type") == "run")


def config(said: list[Any]) -> dict[str, Any]:
    """The settings as they were sent."""
    found = {}
    for record in said:
        updates = [*record.config.update, *record.run.config.update]
        found |= {item.key: json.loads(item.value_json) for item in updates}
    return found


def rows(said: list[Any]) -> list[dict[str, Any]]:
    """The rows of the history."""
    kept = [r.history for r in said if r.WhichOneof("record_type") == "history"]
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
        for row in kept
    ]


def summary(said: list[Any]) -> dict[str, Any]:
    """What stands in the summary at the end."""
    found: dict[str, Any] = {}
    for record in said:
        for item in record.summary.update:
            found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found


def artifacts(said: list[Any]) -> list[Any]:
    """The artifacts that were handed over."""
    kept = [r for r in said if r.WhichOneof("record_type") == "request"]
    logged = [r.request.log_artifact.artifact for r in kept if r.request.HasField("log_artifact")]
    return [*logged, *(r.artifact for r in said if r.WhichOneof("record_type") == "artifact")]
