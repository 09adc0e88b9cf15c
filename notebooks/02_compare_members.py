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
# # Members side by side
# Which backbone is best, on which class, and is the difference more than chance?

# %% tags=["parameters"]
STUDY = "runs/demo"  # a study's folder; paths are told from the project's own folder

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation.plots import curves, ensemble
from evaluation.reports import comparison
from evaluation.reports.html import Picture, Text
from evaluation.reports.inline import look
from evaluation.run_folder import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
tables = study.tables("test")
found = comparison.compare(tables)

# %% [markdown]
# ## Which member reaches most?

# %%
look(Text(comparison.sentence(found)), comparison.standings(found))

# %% [markdown]
# ## Is one beyond doubt better than another?

# %%
look(*comparison.pairwise(found, tables))

# %% [markdown]
# ## Who leads on which class?

# %%
names = tables[study.members[0]].class_names
look(ensemble.strengths(found.members, names), comparison.strengths(found, tables))

# %% [markdown]
# ## How well does each separate the classes at every threshold?

# %%
look(curves.roc_compared(tables), curves.precision_recall(tables))

# %% [markdown]
# ## What does each take for what?

# %%
look(*[Picture(curves.confusion(table), heading=name) for name, table in tables.items()])

# %% [markdown]
# ## Had they learned all they could?

# %%
histories = study.histories()
look(*[Picture(curves.learning_curves(each), heading=name) for name, each in histories.items()])
