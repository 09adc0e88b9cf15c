"""How a verb ends: its exit code, and one line about whatever stopped it."""

import sys
import traceback
from collections.abc import Callable

import yaml

from consilium.cli.words import in_one_line, in_yaml

INTERRUPTED, TERMINATED = 130, 143  # 128 and the number of SIGINT, of SIGTERM


class Stopped(Exception):
    """A verb that was told to end before it was done."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code


def ended(run: Callable[[list[str]], int], args: list[str], debug: bool = False) -> int:
    """Carries out the verb `args[0]`; what is wrong is one line, with `debug` a traceback too."""
    try:
        return run(args)
    except Stopped as stopped:
        said, code = str(stopped), stopped.code
    except KeyboardInterrupt:
        said, code = "stopped before its end", INTERRUPTED
    except yaml.YAMLError as error:
        said, code = in_yaml(error), 2
    except (ValueError, OSError, ImportError) as error:
        said, code = in_one_line(error), 2
    if debug:
        traceback.print_exc()
    print(f"consilium {args[0]}: {said}", file=sys.stderr)
    return code
