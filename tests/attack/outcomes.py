"""How attacks end, counted: in a result, in an error of one line, or in a failure."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from consilium.cli.main import main


class Outcomes:
    """Counts of results and one-line errors, and a description of every other end."""

    def __init__(self, kind: str) -> None:
        self.kind, self.counts, self.failures = kind, Counter[str](), list[str]()

    def call(self, name: str, function: Callable[[], object]) -> None:
        """Counts a call; a ValueError or OSError of one line is what a user may see."""
        try:
            function()
        except (ValueError, OSError) as error:
            self.count_error(name, str(error))
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            self.counts["result"] += 1

    def count_error(self, name: str, message: str) -> None:
        """Counts a message, which must be a line of readable length."""
        if message.strip() and "\n" not in message.strip() and len(message) < 1000:
            self.counts["one-line error"] += 1
        else:
            self.failures.append(f"{name}: message {message[:200]!r}")

    def command(self, name: str, capsys, *arguments: object) -> None:
        """Counts a command by its exit code and what it prints to stderr."""
        try:
            code = main([str(argument) for argument in arguments])
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            return
        finally:
            errors = capsys.readouterr().err
        if code == 2:
            self.count_error(name, errors)
        else:
            self.counts["result"] += 1

    def require(self, number: int) -> None:
        """Prints the counts and fails unless all `number` attacks ended well."""
        print(f"{self.kind}: {number} attacks, {dict(self.counts)}, failures {len(self.failures)}")
        assert not self.failures, "\n".join(self.failures)
        assert self.counts.total() == number


def tree_hash(folder: Path) -> str:
    """SHA-256 of the names, modes and contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)} {path.lstat().st_mode}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()
