"""The queue in front of the models: limits of admitted requests, and batches of waiting images."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from consilium.inference.predictor import Predictor
from consilium.serving.schemas import (
    ImagePrediction,
    PreparedImage,
    add_saliency_maps,
    predict_images,
)

Job = tuple[PreparedImage, "Future[ImagePrediction]"]
Result = TypeVar("Result")
MAX_BATCH = 8  # on a CPU larger batches are no faster, but each image waits longer


class ServerBusy(Exception):
    """The server cannot take the request now; `retry_after` is in seconds."""

    def __init__(self, retry_after: int, reason: str = "the server is full") -> None:
        self.retry_after = retry_after
        super().__init__(f"{reason}; try again in {retry_after} s")


class AdmissionControl:
    """Limits images in progress, and bytes of requests whose images are not yet decoded.

    To be used from one thread, that of the event loop.

    Args:
        max_images: images that may be in progress, waiting ones included.
        max_bytes: bytes of requests that may be in memory.
        seconds_per_image: returns the time that the models need for one image.
    """

    def __init__(
        self, max_images: int, max_bytes: int, seconds_per_image: Callable[[], float]
    ) -> None:
        self.max_images, self.max_bytes = max_images, max_bytes
        self.seconds_per_image = seconds_per_image
        self.num_images = self.num_bytes = 0

    def has_capacity(self, num_images: int, num_bytes: int) -> bool:
        """Whether so many more images and bytes are within the limits."""
        images_fit = self.num_images + num_images <= self.max_images
        return images_fit and self.num_bytes + num_bytes <= self.max_bytes

    @contextmanager
    def admit(self, num_images: int, num_bytes: int = 0) -> Iterator[None]:
        """Counts images and bytes as in progress within the context, or raises ServerBusy."""
        if not self.has_capacity(num_images, num_bytes):
            raise ServerBusy(self.retry_after)
        self.num_images, self.num_bytes = self.num_images + num_images, self.num_bytes + num_bytes
        try:
            yield
        finally:
            self.num_images -= num_images
            self.num_bytes -= num_bytes

    @property
    def retry_after(self) -> int:
        """Estimated seconds until all images in progress are done, from 1 to 60."""
        return min(60, max(1, math.ceil(self.seconds_per_image() * self.num_images)))


class Batcher:
    """Predicts images in the order of their arrival; waiting images form one batch.

    Args:
        predictor: the models; only the thread of the batcher calls them.
        refer_below: probability below which an image is referred; None for no referral.
        max_batch: images per batch at most.
        on_batch: called with the size of each batch before it is predicted.
        on_work: called with the seconds of each computation, before its result is returned.
    """

    def __init__(
        self,
        predictor: Predictor,
        refer_below: float | None = None,
        max_batch: int = MAX_BATCH,
        on_batch: Callable[[int], None] = lambda size: None,
        on_work: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.predictor, self.refer_below, self.max_batch = predictor, refer_below, max_batch
        self.on_batch, self.on_work = on_batch, on_work
        self.seconds_per_image = 0.0  # moving average
        self.work_seconds = 0.0
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def submit(self, image: PreparedImage) -> "Future[ImagePrediction]":
        """The future prediction of an image; canceled before its turn, it is not computed."""
        future: Future[ImagePrediction] = Future()
        self._queue.put((image, future))
        return future

    def close(self) -> None:
        """Predicts what was submitted, then ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            items = self._next_items()
            is_open = None not in items
            jobs = [item for item in items if item and item[1].set_running_or_notify_cancel()]
            if jobs:
                self.on_batch(len(jobs))
                start = self.work_seconds
                self._complete(jobs)
                self._update_average((self.work_seconds - start) / len(jobs))

    def _next_items(self) -> list[Job | None]:
        """Waits for the next item, and adds those that are queued behind it."""
        items = [self._queue.get()]
        while len(items) < self.max_batch and items[-1] is not None:
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return items

    def _complete(self, jobs: Sequence[Job]) -> None:
        """Sets the results of a batch, those without saliency maps first: maps take longer."""
        images = [image for image, _ in jobs]
        try:
            predictions = self._timed(
                lambda: predict_images(self.predictor, images, self.refer_below)
            )
        except Exception as error:
            self._complete_one_by_one(jobs, error)
            return
        results = zip(jobs, predictions, strict=True)
        for (image, future), prediction in sorted(results, key=lambda row: row[0][0].saliency_maps):
            try:
                future.set_result(self._with_maps(image, prediction))
            except Exception as error:
                future.set_exception(error)

    def _complete_one_by_one(self, jobs: Sequence[Job], error: Exception) -> None:
        """Repeats a failed batch image by image, so that only the cause of the error fails."""
        if len(jobs) == 1:
            jobs[0][1].set_exception(error)
            return
        for job in jobs:
            self._complete([job])

    def _with_maps(self, image: PreparedImage, prediction: ImagePrediction) -> ImagePrediction:
        if not image.saliency_maps:
            return prediction
        return self._timed(lambda: add_saliency_maps(self.predictor, image, prediction))

    def _timed(self, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        try:
            return work()
        finally:
            seconds = time.perf_counter() - start
            self.work_seconds += seconds
            self.on_work(seconds)

    def _update_average(self, seconds: float) -> None:
        average = self.seconds_per_image
        self.seconds_per_image = 0.8 * average + 0.2 * seconds if average else seconds
