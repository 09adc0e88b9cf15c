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
# # Sparse against dense
# What did training with a quarter of the weights cost, and what did it save?

# %% tags=["parameters"]
STUDY = "runs/sparse_phantom"  # a study's folder; paths are told from the project's own folder
SPARSE, CONTROL = "ast25-seed0", "all_weights-seed0"  # runs of it; the control has all weights

# %%
import os
from pathlib import Path

from consilium import ROOT
from evaluation import sparsity
from evaluation.plots import curves
from evaluation.reports import comparison
from evaluation.reports.html import Plot, Text, show
from evaluation.results import ExperimentFolder

os.chdir(ROOT)
study = ExperimentFolder(Path(STUDY))
tables, histories = study.tables("test"), study.histories()

# %% [markdown]
# ## What was saved?
# Said honestly: zeros in dense kernels are multiplied like any other number.

# %%
show(*sparsity.sparsity_sections(study.run(SPARSE), tables[SPARSE]))

# %% [markdown]
# ## What did it cost, on which class, and which decisions changed?

# %%
show(*sparsity.compare_tables(tables[SPARSE], tables[CONTROL]))

# %% [markdown]
# ## How did density, loss and accuracy go over the epochs?

# %%
each = {name: histories[name] for name in (SPARSE, CONTROL)}
show(*[Plot(curves.learning_curves(rows), heading=name) for name, rows in each.items()])

# %% [markdown]
# ## How do all arms of the study stand side by side?

# %%
found = comparison.compare_models(tables)
show(
    Text(comparison.summary_sentence(found)),
    comparison.member_table(found),
    curves.roc_comparison(tables),
)
