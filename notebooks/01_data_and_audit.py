# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Dataset and audit
# What is in the dataset, what do the images look like, and are there leaks or confounds?

# %% tags=["parameters"]
EXPERIMENT = "runs/demo"  # folder of an experiment, relative to the repository root

# %%
import os
from pathlib import Path

from consilium import ROOT
from consilium.inference.audit_report import (
    audit_sections,
    augmentation_sheet,
    counts_table,
    example_images,
)
from consilium.inference.data_config import load_datamodule
from datamodules.audit.audit import audit_manifest
from evaluation.reports.html import Plot, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
experiment = ExperimentFolder(Path(EXPERIMENT))
data = load_datamodule([experiment.config_file(experiment.members[0])])
data.prepare_data()
manifest = data.load_manifest()

# %% [markdown]
# ## How many images and patients are in each split?

# %%
show(counts_table(manifest))

# %% [markdown]
# ## What does each class look like?

# %%
show(example_images(manifest, "train", per_class=4))

# %% [markdown]
# ## What does the network see during training?
# Left: the image as in evaluation. Right: seven augmented versions.

# %%
show(Plot(augmentation_sheet(manifest, data)))

# %% [markdown]
# ## Are there leaks between splits or confounds that predict the class?

# %%
audit = audit_manifest(manifest)
show(*audit_sections(audit))
