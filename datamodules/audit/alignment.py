"""Aligns an image to another by rotation, mirroring, zoom and shift, and compares details."""

from functools import cache
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from scipy import fft

SIDE = 64  # of the images that are aligned, in pixels
ZOOMS = (1.0, 1.07, 1.14)  # of an original, to find what was cropped from it
RINGS, FREQUENCIES = 28, 9  # of the descriptors
_ANGLES, _NUM_ANGLES = 128, 256  # of a ring, and of the alignment
_RADII = slice(6, 24)  # of the Fourier transform; the first ones are the same in all images
_SHIFTS = np.arange(-12, 13)  # in pixels
_NUM_POSES = 3  # that are refined
_MIN_OVERLAP = 0.4  # of the disc in which images are compared
_HANN = np.outer(np.hanning(SIDE), np.hanning(SIDE)).astype(np.float32)
_RING_WEIGHTS = np.sqrt(np.arange(1, RINGS // 2 + 1), dtype=np.float32)[:, None]
_WITHOUT_MEAN = (np.arange(33) > 0).astype(np.float32)


Number: TypeAlias = float | np.ndarray


FEATURES = np.dtype([  # what the alignment needs to know of an image
    ("structure", np.float16, (SIDE, SIDE)),  # the image without local brightness and contrast
    ("rings", np.float16, (RINGS // 2, 66)),  # spectra of the rings around the center
    ("fourier", np.float16, (len(ZOOMS), _RADII.stop - _RADII.start, 66)),  # ignores shifts
])  # fmt: skip


class Pose(NamedTuple):
    """How the second image of a pair is moved onto the first, in pixels of images of ``SIDE``."""

    score: float  # correlation of ``local_structure``; negative if one image is inverted
    matrix: np.ndarray  # (2, 3)

    @property
    def is_mirrored(self) -> bool:
        """Whether the motion mirrors the image; it does so upside down, before the rotation."""
        return bool(np.linalg.det(self.matrix[:, :2]) < 0)

    @property
    def degrees(self) -> float:
        """The rotation in degrees, from -180 to 180."""
        return float(np.rad2deg(np.arctan2(self.matrix[1, 0], self.matrix[0, 0])))

    @property
    def is_cropped(self) -> bool:
        """Whether one image shows a part of the other, or is shifted."""
        center = np.array([SIDE / 2, SIDE / 2])
        shift = self.matrix @ [*center, 1.0] - center
        zoom = np.sqrt(abs(np.linalg.det(self.matrix[:, :2])))
        return bool(abs(np.log(zoom)) > 0.025 or np.abs(shift).max() > 0.03 * SIDE)


def resize(gray: np.ndarray, side: int) -> np.ndarray:
    """The gray image resized to (side, side), whatever its aspect ratio."""
    method = cv2.INTER_AREA if min(gray.shape) > side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray, (side, side), interpolation=method))


def local_structure(image: np.ndarray, scale: float = 4.0) -> np.ndarray:
    """float32 image minus its local mean, divided by its local standard deviation."""
    values = image.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), scale)
    variance = cv2.GaussianBlur(values * values, (0, 0), 2 * scale)
    return np.asarray(values / np.sqrt(variance + 1.0))


def pose_matrix(
    degrees: Number, mirrored: bool | np.ndarray, zoom: Number, side: int = SIDE
) -> np.ndarray:
    """(..., 2, 3) matrices that mirror upside down, rotate and zoom around the center."""
    angle, flip = np.deg2rad(degrees), np.where(mirrored, -1.0, 1.0)
    x, y, center = np.asarray(zoom * np.cos(angle)), zoom * np.sin(angle), (side - 1) / 2
    linear = np.stack([x, -y * flip, y, x * flip], axis=-1).reshape(*x.shape, 2, 2)
    return np.concatenate([linear, center * (1 - linear.sum(axis=-1, keepdims=True))], axis=-1)


def describe(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``FEATURES`` of a gray image, its descriptor by rings (d,) and by Fourier (zooms, e).

    Both descriptors ignore rotation, mirroring, brightness and inversion. Rings are the more
    specific ones, the Fourier transform is not changed by shifts and its zooms find crops.
    """
    structure = local_structure(resize(image, SIDE))
    smooth = cv2.GaussianBlur(image, (0, 0), 0.8)
    zoomed = [structure, *(local_structure(_magnify(smooth, zoom)) for zoom in ZOOMS[1:])]
    rings = _ring_spectra(structure)
    fourier = np.stack([_fourier_spectra(part) for part in zoomed])
    weights = np.sqrt(np.arange(1, RINGS + 1), dtype=np.float32)[:, None]
    by_rings = np.sqrt(np.abs(rings[:, :FREQUENCIES]) * weights).ravel()
    by_fourier = np.sqrt(np.abs(fourier[..., :FREQUENCIES])).reshape(len(ZOOMS), -1)
    features = np.empty((), FEATURES)
    features["structure"], features["rings"] = structure, _to_real(rings[::2, :33])
    features["fourier"] = _to_real(fourier)
    return features, by_rings, by_fourier


def coarse_poses(
    fixed: np.ndarray, moving: np.ndarray, zooms: np.ndarray, count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations (b, p) and matrices (b, p, 2, 3) of poses of b pairs, given as ``FEATURES``.

    Poses have the best angle without zoom and with ``ZOOMS[zooms]`` (b,), and the best shift.
    With a ``count`` of 2, they also have the opposite mirroring, and the second best shift.
    """
    first, second = (part["structure"].astype(np.float32) for part in (fixed, moving))
    by_rings = _best_angles(fixed["rings"], moving["rings"], 360)
    zoomed = moving["fourier"][np.arange(len(moving)), zooms]
    by_fourier = _best_angles(fixed["fourier"][:, 0], zoomed, 180)
    scale = np.take(ZOOMS, zooms)
    linear = [pose_matrix(*angles, 1.0) for angles in by_rings[:count]]
    linear += [
        pose_matrix(degrees + turn, mirrored, scale)
        for degrees, mirrored in by_fourier[:count]
        for turn in (0, 180)
    ]
    matrices = np.stack(linear, axis=1)
    pairs = zip(second, matrices, strict=True)
    moved = np.stack([[_move(image, matrix) for matrix in part] for image, part in pairs])
    matrices = matrices[:, :, None].repeat(count, axis=2)
    matrices[..., 2] += _best_shifts(first, moved, count)
    matrices = matrices.reshape(len(fixed), -1, 2, 3)
    parts = zip(first, second, matrices, strict=True)
    return np.stack([_correlations(*part) for part in parts]), matrices


def coarse_scores(
    fixed: np.ndarray, moving: np.ndarray, zooms: np.ndarray, lowest: float
) -> np.ndarray:
    """Absolute correlations (b,) in the best pose of each pair, refined from ``lowest`` on."""
    scores, matrices = coarse_poses(fixed, moving, zooms)
    best = np.abs(scores).argmax(axis=1)
    highest = np.abs(scores).max(axis=1)
    for k in np.flatnonzero(highest >= lowest):
        score, matrix = scores[k, best[k]], matrices[k, best[k]]
        pose = _improve_pose(fixed[k], moving[k], Pose(score, matrix), 6)
        highest[k] = abs(pose.score)
    return np.asarray(highest)


def refine_pose(fixed: np.ndarray, moving: np.ndarray, zooms: np.ndarray) -> Pose:
    """The best of a few poses of one pair after each was refined to a fraction of a pixel."""
    scores, matrices = (part[0] for part in coarse_poses(fixed, moving, zooms, 2))
    refined: list[Pose] = []
    for k in _distinct_poses(matrices, np.argsort(-np.abs(scores), kind="stable")):
        pose = Pose(float(scores[k]), matrices[k])
        refined.append(_improve_pose(fixed[0], moving[0], pose, 20))
    return max(refined, key=lambda pose: abs(pose.score))


def detail_similarity(first: np.ndarray, second: np.ndarray, pose: Pose) -> float:
    """Correlation of details after alignment, averaged over three scales as Fisher's z."""
    fixed, moving = first.astype(np.float32), second.astype(np.float32)
    moving = 255.0 - moving if pose.score < 0 else moving
    matrix = _scale_matrix(pose.matrix, len(fixed))
    sharp = [local_structure(cv2.GaussianBlur(v, (0, 0), 0.8), 3.0) for v in (fixed, moving)]
    matrix[:, 2] += _best_shifts(sharp[0], _move(sharp[1], matrix)[None], 1)[0, 0]
    matrix = _refine_matrix(sharp[0], sharp[1], matrix, 20)
    mask, moved, disc = _overlap(matrix, len(fixed)), _move(moving, matrix), _box(len(fixed))
    if mask.sum() < _MIN_OVERLAP * _disc(len(fixed)).sum():
        return 0.0
    scores = []
    for scale in (1.0, 2.0, 4.0):
        blurred = (cv2.GaussianBlur(image, (0, 0), scale / 3) for image in (fixed, moved))
        first, second = (local_structure(image, scale) for image in blurred)
        scores.append(_masked_correlations(first[disc], second[None, *disc], mask[None])[0])
    return float(np.tanh(np.arctanh(np.clip(scores, -0.99, 0.999)).mean()))


def _magnify(image: np.ndarray, zoom: float) -> np.ndarray:
    """The center of an image, resized to (SIDE, SIDE) and magnified ``zoom`` times."""
    scale, center = zoom * SIDE / len(image), (len(image) - 1) / 2
    offset = (SIDE - 1) / 2 - scale * center
    matrix = np.array([[scale, 0, offset], [0, scale, offset]])
    return np.asarray(cv2.warpAffine(image, matrix, (SIDE, SIDE)))


def _ring_spectra(structure: np.ndarray) -> np.ndarray:
    """(rings, frequencies) complex: the spectrum of each ring around the center."""
    center = ((SIDE - 1) / 2, (SIDE - 1) / 2)
    flags = cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = cv2.warpPolar(structure, (RINGS, _ANGLES), center, SIDE / 2 - 1, flags)
    return np.asarray(fft.rfft(polar.T, axis=1))


def _fourier_spectra(structure: np.ndarray) -> np.ndarray:
    """(radii, 33) complex: spectra over the angle of the amplitudes of the Fourier transform."""
    amplitude = np.log1p(np.abs(fft.fftshift(fft.fft2(structure * _HANN)))).astype(np.float32)
    flags = cv2.WARP_POLAR_LOG | cv2.INTER_LINEAR
    polar = cv2.warpPolar(amplitude, (_RADII.stop, _ANGLES), (SIDE / 2, SIDE / 2), 30, flags)
    return np.asarray(fft.rfft(polar[: _ANGLES // 2, _RADII].T, axis=1))


def _to_real(spectra: np.ndarray) -> np.ndarray:
    """Complex (..., n) as float32 (..., 2n), with real and imaginary parts alternating."""
    return np.ascontiguousarray(spectra, np.complex64).view(np.float32)


def _best_angles(
    first: np.ndarray, second: np.ndarray, period: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rotations (b,) in degrees and whether to mirror (b,), from spectra (b, rings, 66).

    First the best of each pair, then the best with the opposite mirroring, as many bones are
    symmetric.
    """
    first, second = (part.astype(np.float32).view(np.complex64) for part in (first, second))
    first = first * (_RING_WEIGHTS if period == 360 else _WITHOUT_MEAN)
    products = np.stack([first * np.conj(second), first * second], axis=1).sum(axis=2)
    match = fft.irfft(products, _NUM_ANGLES)
    match = np.abs(match) if period == 360 else match  # negative if one image is inverted
    rows, mirrored = np.arange(len(first)), match.max(axis=2).argmax(axis=1)
    degrees = match.argmax(axis=2) * period / _NUM_ANGLES
    return [(degrees[rows, k], k > 0) for k in (mirrored, 1 - mirrored)]


def _best_shifts(first: np.ndarray, moved: np.ndarray, count: int) -> np.ndarray:
    """Shifts (..., p, count, 2) as x and y, of images (..., p, s, s) onto the first (..., s, s)."""
    side = first.shape[-1]
    product = fft.rfft2(first * _disc(side))[..., None, :, :] * np.conj(fft.rfft2(moved))
    maps = fft.irfft2(product, s=(side, side))[..., _SHIFTS[:, None], _SHIFTS]
    return _highest_peaks(np.abs(maps), count)


def _highest_peaks(maps: np.ndarray, count: int) -> np.ndarray:
    """Shifts (..., count, 2) as x and y at the highest peaks of maps (..., shifts, shifts)."""
    flat, peaks = maps.reshape(*maps.shape[:-2], -1).copy(), []
    y, x = np.divmod(np.arange(flat.shape[-1]), len(_SHIFTS))
    for _ in range(count):
        peak = flat.argmax(axis=-1)
        peaks.append(np.stack([_SHIFTS[x[peak]], _SHIFTS[y[peak]]], axis=-1))
        is_near = np.maximum(abs(y - y[peak][..., None]), abs(x - x[peak][..., None])) <= 3
        flat[is_near] = -1.0
    return np.stack(peaks, axis=-2)


def _distinct_poses(matrices: np.ndarray, order: np.ndarray) -> list[int]:
    """Positions of the first few poses in ``order`` that are not close to an earlier one."""
    chosen: list[int] = []
    for k in order.tolist():
        changes = np.abs(matrices[k] - matrices[chosen])
        is_close = (changes[..., :2] <= 0.04).all(axis=(1, 2)) & (changes[..., 2] <= 2).all(axis=1)
        if not is_close.any():
            chosen.append(k)
        if len(chosen) == _NUM_POSES:
            break
    return chosen


def _move(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The image, moved by a matrix (2, 3), in its own size."""
    return np.asarray(cv2.warpAffine(image, matrix, image.shape[1::-1]))


def _move_to_box(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The image, moved by a matrix (2, 3) and cut to ``_box``."""
    start, stop = _box(len(image))[0].start, _box(len(image))[0].stop
    offset = np.array([[0, 0, start], [0, 0, start]])
    return np.asarray(cv2.warpAffine(image, matrix - offset, (stop - start, stop - start)))


def _overlap(matrix: np.ndarray, side: int) -> np.ndarray:
    """Mask of the part of ``_disc`` that both images show after the motion, cut to ``_box``."""
    moved = _move_to_box(np.ones((side, side), np.float32), matrix)
    return np.asarray(_disc(side)[_box(side)] & (moved > 0.99))


def _scale_matrix(matrix: np.ndarray, side: int) -> np.ndarray:
    """The motion ``matrix`` of images of ``SIDE`` as one of images of ``side``."""
    scale = np.diag([side / SIDE] * 2 + [1.0])
    scale[:2, 2] = (side / SIDE - 1) / 2  # pixel centers, as cv2.resize
    full = np.vstack([matrix, [0, 0, 1]])
    return np.asarray((scale @ full @ np.linalg.inv(scale))[:2])


def _improve_pose(fixed: np.ndarray, moving: np.ndarray, pose: Pose, iterations: int) -> Pose:
    """The pose after ``_refine_matrix``, or as it is if that does not raise its correlation."""
    first, second = (image["structure"].astype(np.float32) for image in (fixed, moving))
    matrix = _refine_matrix(first, np.sign(pose.score) * second, pose.matrix, iterations)
    refined = Pose(float(_correlations(first, second, matrix[None])[0]), matrix)
    return max(pose, refined, key=lambda pose: abs(pose.score))


def _refine_matrix(
    fixed: np.ndarray, moving: np.ndarray, matrix: np.ndarray, iterations: int
) -> np.ndarray:
    """The matrix (2, 3) after a small affine correction; unchanged if none is found.

    Fits the moved image by the fixed one and its derivatives, which need not be computed again in
    each iteration; ``cv2.findTransformECC`` does so, is no more accurate and takes 3 times as long.
    """
    side = len(fixed)
    x, y, to_grid = _grid(side)
    mask, disc = _overlap(matrix, side).astype(np.float32), _box(side)
    slopes = (cv2.Sobel(fixed, cv2.CV_32F, k, 1 - k, ksize=1, scale=0.5) for k in (1, 0))
    dx, dy = (slope[disc] * mask for slope in slopes)
    inside = fixed[disc] * mask
    basis = np.stack([inside, mask, dx * x, dx * y, dx, dy * x, dy * y, dy]).reshape(8, -1)
    inverse = np.linalg.inv(basis @ basis.T + 1e-3 * np.eye(8))
    refined = matrix
    for _ in range(iterations):
        gain, _, *motion = inverse @ (basis @ _move_to_box(moving, refined).ravel())
        if gain < 0.05:
            return matrix
        motion = np.reshape(motion, (2, 3)) / gain  # in pixels at the border
        refined = refined + motion @ to_grid @ np.vstack([refined, [0, 0, 1]])
        if np.abs(motion).sum(axis=1).max() < 0.1:
            break
    change = refined - matrix
    shift = np.abs(change @ [side / 2, side / 2, 1.0]).max()
    is_small = np.abs(change[:, :2]).max() < 0.12 and shift < side / 10
    return refined if is_small else matrix


@cache
def _grid(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates x and y from -1 to 1 in ``_box``, and the matrix (3, 3) from pixels to them."""
    y, x = ((np.mgrid[:side, :side] + 0.5) * 2 / side - 1).astype(np.float32)
    to_grid = np.array([[2 / side, 0, 1 / side - 1], [0, 2 / side, 1 / side - 1], [0, 0, 1]])
    return x[_box(side)], y[_box(side)], to_grid


def _correlations(first: np.ndarray, second: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """(p,) correlations of two images where they overlap after p motions; 0 if they hardly do."""
    masks = np.stack([_overlap(matrix, len(first)) for matrix in matrices])
    moved = np.stack([_move_to_box(second, matrix) for matrix in matrices])
    is_enough = masks.sum(axis=(1, 2)) >= _MIN_OVERLAP * _disc(len(first)).sum()
    return np.where(is_enough, _masked_correlations(first[_box(len(first))], moved, masks), 0.0)


def _masked_correlations(first: np.ndarray, second: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(p,) correlations of an image (s, s) with others (p, s, s) within masks (p, s, s)."""
    weights = masks.reshape(len(masks), -1).astype(np.float32)
    a, b = first.ravel(), second.reshape(weights.shape) * weights
    count, sum_a, sum_b = np.maximum(weights.sum(axis=1), 1), weights @ a, b.sum(axis=1)
    variance_a = weights @ np.square(a) - sum_a * sum_a / count
    variance_b = np.square(b).sum(axis=1) - sum_b * sum_b / count
    return np.asarray((b @ a - sum_a * sum_b / count) / np.sqrt(variance_a * variance_b + 1e-9))


@cache
def _disc(side: int) -> np.ndarray:
    """Mask (side, side) of the central disc in which images are compared."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.asarray(np.hypot(x, y) < side * 0.43)


@cache
def _box(side: int) -> tuple[slice, slice]:
    """Slices of the rows and columns of the bounding box of ``_disc``."""
    inside = np.flatnonzero(_disc(side).any(axis=0))
    return (slice(int(inside[0]), int(inside[-1]) + 1),) * 2
