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
# # Comparison of members
# Which backbone is best, on which class, and is the difference statistically significant?

# %% tags=["parameters"]
EXPERIMENT = "runs/demo"  # folder of an experiment, relative to the repository root

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation.plots import curves, ensemble
from evaluation.reports import comparison
from evaluation.reports.html import Plot, Text, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
experiment = ExperimentFolder(Path(EXPERIMENT))
tables = experiment.tables("test")
comparison_result = comparison.compare_models(tables)

# %% [markdown]
# ## Which member is best?

# %%
show(
    Text(comparison.summary_sentence(comparison_result)), comparison.member_table(comparison_result)
)

# %% [markdown]
# ## Which differences are significant?

# %%
show(*comparison.pair_sections(comparison_result, tables))

# %% [markdown]
# ## Which member is best on which class?

# %%
names = tables[experiment.members[0]].class_names
show(
    ensemble.recall_plot(comparison_result.metrics, names),
    comparison.recall_table(comparison_result.metrics, names),
)

# %% [markdown]
# ## How well does each member separate the classes at every threshold?

# %%
show(curves.roc_comparison(tables), curves.precision_recall_plot(tables))

# %% [markdown]
# ## Which classes are confused?

# %%
show(*[Plot(curves.confusion_plot(table), heading=name) for name, table in tables.items()])

# %% [markdown]
# ## Did training converge?

# %%
histories = experiment.histories()
show(*[Plot(curves.learning_curves(table), heading=name) for name, table in histories.items()])
