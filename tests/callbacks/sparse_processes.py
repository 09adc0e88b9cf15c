"""A sparse training on WORLD processes, and its resumes; a script, since ddp starts itself.

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
from callbacks.sparse_training.density_schedule import DensitySchedule
from callbacks.sparse_training.stages import Recovery

spec = importlib.util.spec_from_file_location("runs", Path(__file__).with_name("sparse_runs.py"))
runs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runs)


def main(world: int, folder: Path, steps: list[int]) -> None:
    """Writes to result.json which resumes gave other bits, and whether the processes agree."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"devices": world, "strategy": "ddp"}
    found, digests = {}, set()
    for step in [0, *steps]:
        callback = TwoStageSparseTraining(
            0.25, 1, 8, ramp=DensitySchedule(0.5, 6), recovery=Recovery(5e-3)
        )
        at, ckpt = folder / str(step), folder / "0" / f"{step}.ckpt" if step else None
        if 0 < step <= 5:
            at.mkdir(exist_ok=True)
            (at / "dense.ckpt").write_bytes((folder / "0/dense.ckpt").read_bytes())
        watch = runs.Watch(callback, set() if step else set(steps))
        runs.run(at, callback, watch, ckpt=ckpt, **options)
        packed = [bits.tolist() for bits in callback.held.packed()]
        everyone = [None] * world
        dist.all_gather_object(everyone, (packed, watch.strays))
        digests |= {json.dumps(one) for one in everyone}
        one, other = (torch.load(folder / n / "last.ckpt", weights_only=True)
                      for n in ("0", str(step)))  # fmt: skip
        keys = ["state_dict", "optimizer_states", "lr_schedulers"]
        found[step] = all(runs.same(one[key], other[key]) for key in keys)
        found[step] &= runs.same(one["callbacks"][callback.state_key],
                                 other["callbacks"][callback.state_key])  # fmt: skip
    if not dist.get_rank():
        said = {"same": found, "masks": len(digests), "strays": watch.strays}
        (folder / "result.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [int(step) for step in sys.argv[3:]])
