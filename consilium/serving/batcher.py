"""The desk before the models: one thread, one copy of the models, waiting pictures together."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from consilium.inference.predictor import Model
from consilium.serving.schemas import Answer, Asked, answered, mapped

Item = tuple[Asked, "Future[Answer]"]
Result = TypeVar("Result")
TOGETHER = 8  # pictures at most; on a processor more of them are no faster, but wait longer


class Desk:
    """Answers pictures in the order in which they come; all that wait go together.

    Args:
        model: the ensemble; only this desk's thread asks it.
        refer_below: confidence below which a picture is referred; None for no referral.
        together: pictures that go through the models at once, at most.
        seen: is told the size of each batch.
    """

    def __init__(
        self,
        model: Model,
        refer_below: float | None = None,
        together: int = TOGETHER,
        seen: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.model, self.refer_below, self.together, self.seen = model, refer_below, together, seen
        self.pace = 0.0  # seconds a picture, the latest counting most
        self.busy = 0.0  # seconds that the models have worked
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def submit(self, asked: Asked) -> "Future[Answer]":
        """A picture's answer, once there is one; canceled in time, it costs nothing."""
        future: Future[Answer] = Future()
        self._waiting.put((asked, future))
        return future

    def close(self) -> None:
        """Answers what was submitted, then rests."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        open_ = True
        while open_:
            items = self._taken()
            open_ = None not in items
            asked = [one for one in items if one and one[1].set_running_or_notify_cancel()]
            if asked:
                self.seen(len(asked))
                before = self.busy
                self._answer(asked)
                self._keep_pace((self.busy - before) / len(asked))

    def _taken(self) -> list[Item | None]:
        """The next picture, once there is one, and those that wait behind it."""
        found = [self._waiting.get()]
        while len(found) < self.together and found[-1] is not None:
            try:
                found.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return found

    def _answer(self, items: Sequence[Item]) -> None:
        """Answers first those that want no map: a map takes longer than an answer."""
        try:
            answers = self._timed(lambda: self._answered(items))
        except Exception as error:
            self._alone(items, error)
            return
        found = sorted(zip(items, answers, strict=True), key=lambda each: each[0][0].maps)
        for (asked, future), answer in found:
            try:
                future.set_result(self._mapped(asked, answer) if asked.maps else answer)
            except Exception as error:
                future.set_exception(error)

    def _alone(self, items: Sequence[Item], error: Exception) -> None:
        """Whatever it is, it belongs to one of those who asked: the others get their answers."""
        if len(items) == 1:
            items[0][1].set_exception(error)
            return
        for item in items:
            self._answer([item])

    def _answered(self, items: Sequence[Item]) -> list[Answer]:
        return answered(self.model, [asked for asked, _ in items], self.refer_below)

    def _mapped(self, asked: Asked, answer: Answer) -> Answer:
        return self._timed(lambda: mapped(self.model, asked, answer))

    def _timed(self, work: Callable[[], Result]) -> Result:
        """Counted before anybody is told, so that who was answered finds it in the metrics."""
        start = time.perf_counter()
        try:
            return work()
        finally:
            self.busy += time.perf_counter() - start

    def _keep_pace(self, each: float) -> None:
        self.pace = each if not self.pace else 0.8 * self.pace + 0.2 * each
