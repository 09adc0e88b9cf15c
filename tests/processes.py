"""Scripts as processes that are forked from one that has imported torch and Lightning."""

import multiprocessing
import os
import runpy
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from consilium.experiments.processes import PRELOADED

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))


def run_script(script: Path, *arguments: object, world: int = 1) -> None:
    """Runs a script in `world` processes as torchrun does; an error of one of them is raised."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with ProcessPoolExecutor(world, CONTEXT) as pool:
        ranks = [pool.submit(_run, script, arguments, world, r, port) for r in range(world)]
        errors = [rank.exception(timeout=300) for rank in ranks]
    for error in filter(None, errors):
        raise error


def _run(script: Path, arguments: tuple[object, ...], world: int, rank: int, port: int) -> None:
    if world > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(address, LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    sys.argv = [str(script), *map(str, arguments)]
    runpy.run_path(str(script), run_name="__main__")
