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

from commands import ROOT
from evaluation import comparing, council_figures, figures
from evaluation.inline import look
from evaluation.report import Picture, Text
from evaluation.study_folder import StudyFolder

os.chdir(ROOT)
study = StudyFolder(Path(STUDY))
tables = study.tables("test")
found = comparing.compare(tables)

# %% [markdown]
# ## Which member reaches most?

# %%
look(Text(comparing.sentence(found)), comparing.standings(found))

# %% [markdown]
# ## Is one beyond doubt better than another?

# %%
look(*comparing.pairwise(found, tables))

# %% [markdown]
# ## Who leads on which class?

# %%
names = tables[study.members[0]].class_names
look(council_figures.strengths(found.members, names), comparing.strengths(found, tables))

# %% [markdown]
# ## How well does each separate the classes at every threshold?

# %%
look(figures.roc_compared(tables), figures.precision_recall(tables))

# %% [markdown]
# ## What does each take for what?

# %%
look(*[Picture(figures.confusion(table), heading=name) for name, table in tables.items()])

# %% [markdown]
# ## Had they learned all they could?

# %%
histories = study.histories()
look(*[Picture(figures.learning_curves(each), heading=name) for name, each in histories.items()])
