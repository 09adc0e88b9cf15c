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
from consilium.cli.audit import counts_table, sections
from consilium.inference.data_config import from_configs
from consilium.inference.samples import examples, sheet
from datamodules.audit.audit import audit
from evaluation.reports.html import Picture
from evaluation.reports.inline import look
from evaluation.run_folder import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
data = from_configs([study.config(study.members[0])])
data.prepare_data()
manifest = data.listed()

# %% [markdown]
# ## How many pictures and patients does each split have?

# %%
look(counts_table(manifest))

# %% [markdown]
# ## What does each class look like?

# %%
look(examples(manifest, "train", each=4))

# %% [markdown]
# ## What does the network see in training?
# Left the picture as the network gets it in a test, then seven augmented ones.

# %%
look(Picture(sheet(manifest, data)))

# %% [markdown]
# ## Does training see what is measured, and does anything but the pictures give the class away?

# %%
found = audit(manifest)
look(*sections(found))
