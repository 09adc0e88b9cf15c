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
# # The data and its audit
# What is in the data set, what do the pictures look like, and can its figures be believed?

# %% tags=["parameters"]
STUDY = "runs/demo"  # a study's folder; paths are told from the project's own folder

# %%
import os
from pathlib import Path

from consilium import ROOT
from consilium.inference.audit_report import audit_sections, counts_table
from consilium.inference.data_config import load_datamodule
from consilium.inference.samples import augmentation_sheet, example_images
from datamodules.audit.audit import audit_manifest
from evaluation.reports.html import Plot, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
data = load_datamodule([study.config_file(study.members[0])])
data.prepare_data()
manifest = data.load_manifest()

# %% [markdown]
# ## How many pictures and patients does each split have?

# %%
show(counts_table(manifest))

# %% [markdown]
# ## What does each class look like?

# %%
show(example_images(manifest, "train", per_class=4))

# %% [markdown]
# ## What does the network see in training?
# Left the picture as the network gets it in a test, then seven augmented ones.

# %%
show(Plot(augmentation_sheet(manifest, data)))

# %% [markdown]
# ## Does training see what is measured, and does anything but the pictures give the class away?

# %%
audit = audit_manifest(manifest)
show(*audit_sections(audit))
