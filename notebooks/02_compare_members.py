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
from evaluation.reports.html import Plot, Text, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
tables = study.tables("test")
found = comparison.compare_models(tables)

# %% [markdown]
# ## Which member reaches most?

# %%
show(Text(comparison.summary_sentence(found)), comparison.member_table(found))

# %% [markdown]
# ## Is one beyond doubt better than another?

# %%
show(*comparison.pair_sections(found, tables))

# %% [markdown]
# ## Who leads on which class?

# %%
names = tables[study.members[0]].class_names
show(ensemble.recall_plot(found.members, names), comparison.recall_table(found.members, names))

# %% [markdown]
# ## How well does each separate the classes at every threshold?

# %%
show(curves.roc_comparison(tables), curves.precision_recall_plot(tables))

# %% [markdown]
# ## What does each take for what?

# %%
show(*[Plot(curves.confusion_plot(table), heading=name) for name, table in tables.items()])

# %% [markdown]
# ## Had they learned all they could?

# %%
histories = study.histories()
show(*[Plot(curves.learning_curves(each), heading=name) for name, each in histories.items()])
