"""best.ckpt and last.ckpt in the run folder."""

import shutil
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class BestAndLastCheckpoint(ModelCheckpoint):
    """Keeps the best epoch by `monitor` as best.ckpt and the newest as last.ckpt.

    Args:
        monitor: the figure that decides.
        mode: whether the smaller or the larger figure is better.
    """

    def __init__(self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_last=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self.has_best = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Puts the files into the run folder itself."""
        self.dirpath = str(Path(trainer.default_root_dir))
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Finds the best of before, on one process for all, before its state is taken up."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        self.has_best = False
        if state and trainer.state.fn == "fit" and trainer.ckpt_path:
            there = Path(str(trainer.ckpt_path)).parent
            found = trainer.is_global_zero and self._brings_best(state, there)
            self.has_best = trainer.strategy.broadcast(found)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The best so far, in whatever way the run folder is called now.

        Lightning forgets it where the folder's name is written otherwise than then, and the next
        epoch would be the best. A fit that goes on in another folder takes the best along.
        """
        if self.has_best:
            here = Path(str(self.dirpath))
            paths = {name: _in(here, state_dict[name]) for name in PATHS}
            models = {_in(here, path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, **paths, "best_k_models": models, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)

    def _brings_best(self, state: dict[str, Any], there: Path) -> bool:
        """Whether the best of before is in the folder, or is none; from another it is copied."""
        here = Path(str(self.dirpath))
        if not state["best_model_path"] or here.resolve() == there.resolve():
            return True
        best = there / Path(state["best_model_path"]).name
        if not best.is_file() or (here / best.name).is_file():
            return False  # another training's best is not written over, and not taken for ours
        here.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, here / best.name)
        return True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes last.ckpt after epochs that are not the best as well; Lightning would not."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def _in(folder: Path, path: str) -> str:
    """A file of the run folder, as the folder is called now; none stays none."""
    return str(folder / Path(path).name) if path else path
