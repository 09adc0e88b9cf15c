"""Several findings per image in commands: what they show, or that they cannot be used."""

import pandas as pd

from consilium.inference.audit_report import SEVERAL_FINDINGS, audit_notes, counts_table
from datamodules.audit.audit import Audit
from datamodules.manifest import Manifest


def test_an_audit_counts_findings_and_says_what_it_does_not_measure() -> None:
    table = pd.DataFrame({
        "id": list("abc"), "path": "x", "label": -1, "split": ["train", "train", "test"],
        "patient": list("abc"), "study": "",
        "finding/Effusion": [1, 1, 0], "finding/Mass": [1, -1, 1],
    })  # fmt: skip
    manifest = Manifest(table, ["Effusion", "Mass"])
    assert counts_table(manifest).rows == [("train", 2, 1, 2), ("test", 0, 1, 1)]
    assert audit_notes(Audit(manifest, [], [])) == [SEVERAL_FINDINGS]
