"""When a batch does not fit into memory: what to do about it, said or done."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

AUTO = "--auto_batch"
SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemory(ValueError):
    """A batch that did not fit; the message says the flags that halve it."""

    def __init__(self, batch_size: int, accumulate: int, run: str) -> None:
        self.flags = [
            *("--data.init_args.batch_size", str(max(1, batch_size // 2))),
            *("--trainer.accumulate_grad_batches", str(accumulate * 2)),
        ]
        self.batch_size, self.run = batch_size, Path(run)
        super().__init__(
            f"out of memory with a batch_size of {batch_size}: half of it, twice accumulated, "
            f"trains alike: {' '.join(self.flags)} ({AUTO} does that by itself); "
            "backbone_args {grad_checkpointing: true} saves memory as well"
        )


@contextmanager
def watched(sizes: Callable[[], tuple[int, int, str]]) -> Iterator[None]:
    """Turns an allocator's error into OutOfMemory; `sizes`: batch size, accumulation, run."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise OutOfMemory(*sizes()) from error


def fitting(carry_out: Callable[[list[str]], None], args: list[str]) -> None:
    """Carries a training verb out; with --auto_batch again and again with half the batch.

    A run that had finished an epoch goes on from there.
    """
    asked = [argument for argument in args if argument != AUTO]
    smaller: list[str] = []
    while True:
        try:
            return carry_out([*asked, *smaller])
        except OutOfMemory as error:
            if AUTO not in args or error.batch_size == 1:
                raise
            smaller = [*error.flags, *_resumed(error.run, asked)]
            print(f"out of memory with a batch_size of {error.batch_size}; now {error.flags[1]}")
        gc.collect()
        torch.cuda.empty_cache()


def _resumed(run: Path, args: list[str]) -> list[str]:
    last = run / "last.ckpt"
    given = any(argument.startswith("--ckpt_path") for argument in args)
    return [] if given or not last.exists() else ["--ckpt_path", str(last)]
