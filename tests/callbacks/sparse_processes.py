"""A sparse training on WORLD processes, and its resumes; a script.

Usage: sparse_processes.py WORLD FOLDER STEP...
"""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from callbacks import TwoStageSparseTraining
from callbacks.sparse_training.stages import DensitySchedule, Recovery

spec = importlib.util.spec_from_file_location("runs", Path(__file__).with_name("sparse_runs.py"))
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


def main(world: int, folder: Path, steps: list[int]) -> None:
    """Writes to result.json which resumes gave equal bits, and the number of distinct masks."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"devices": world, "strategy": "ddp"}
    equal, outcomes = {}, set()
    for step in [0, *steps]:
        callback = TwoStageSparseTraining(
            0.25, 1, 8, density_schedule=DensitySchedule(0.5, 6), recovery=Recovery(5e-3)
        )
        output, ckpt = folder / str(step), folder / "0" / f"{step}.ckpt" if step else None
        if 0 < step <= 5:
            output.mkdir(exist_ok=True)
            (output / "dense.ckpt").write_bytes((folder / "0/dense.ckpt").read_bytes())
        recorder = runs.Recorder(callback, set() if step else set(steps))
        runs.run(output, callback, recorder, ckpt=ckpt, **options)
        packed = [bits.tolist() for bits in callback.masked.packed_masks()]
        gathered = [None] * world
        dist.all_gather_object(gathered, (packed, recorder.unmasked))
        outcomes |= {json.dumps(outcome) for outcome in gathered}
        whole, resumed = (torch.load(folder / name / "last.ckpt", weights_only=True)
                          for name in ("0", str(step)))  # fmt: skip
        keys = ["state_dict", "optimizer_states", "lr_schedulers"]
        equal[step] = all(runs.is_equal(whole[key], resumed[key]) for key in keys)
        states = (content["callbacks"][callback.state_key] for content in (whole, resumed))
        equal[step] &= runs.is_equal(*states)
    if not dist.get_rank():
        result = {"equal": equal, "outcomes": len(outcomes), "unmasked": recorder.unmasked}
        (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [int(step) for step in sys.argv[3:]])
