"""Training data: the four points of XOR, scikit-learn's handwritten digits, MNIST's IDX files."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

from .settings import Settings, TrainingError, require

IMAGE_SIZE = 28
UNSIGNED_BYTES = 0x08
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Data:
    """Examples to train on, and examples to judge by.

    name: what the data are called in reports.
    """

    name: str
    inputs: torch.Tensor
    targets: torch.Tensor
    held_out_inputs: torch.Tensor
    held_out_targets: torch.Tensor

    def to(self, settings: Settings) -> "Data":
        """The same data on the device of a run, floating tensors in its dtype."""
        moved = [
            t.to(settings.device, settings.torch_dtype if t.is_floating_point() else t.dtype)
            for t in (self.inputs, self.targets, self.held_out_inputs, self.held_out_targets)
        ]
        return Data(self.name, *moved)


def xor_points() -> Data:
    """The four points of XOR.  There are no others, so they are also what a network is judged by."""
    inputs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    targets = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return Data("the truth table", inputs, targets, inputs, targets)


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits, resized from 8×8 to 28×28; a fifth is held out, always the same one.

    Raises TrainingError if scikit-learn is not installed.
    """
    require("sklearn", "scikit-learn")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images / 16.0).float().unsqueeze(1)  # the set's intensities are 0 … 16
    images = torch.nn.functional.interpolate(small, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bunch.target).long()
    # RandomState's stream is frozen by NumPy's policy: the split is the same for every version, on every machine.
    shuffled = torch.from_numpy(numpy.random.RandomState(0).permutation(len(labels)))
    count = math.ceil(len(labels) / 5)
    held_out, kept = shuffled[:count], shuffled[count:]
    return Data("scikit-learn's handwritten digits", images[kept], labels[kept], images[held_out], labels[held_out])


def mnist(directory: Path) -> Data:
    """MNIST, from its four IDX files, plain or compressed with gzip.

    Arguments:
        directory: where `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two `t10k-…` files lie, with or
            without `.gz`; some mirrors write a dot for the second dash, which is found too.

    Raises TrainingError if a file is missing, damaged, or does not fit the others; names it.
    """
    if not directory.is_dir():
        raise TrainingError(f"{directory} is not a directory; --data takes the one that holds MNIST's IDX files")
    return Data("MNIST", *_labelled_images(directory, "train"), *_labelled_images(directory, "t10k"))


def _labelled_images(directory: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    image_file = _find(directory, f"{part}-images", "idx3-ubyte")
    label_file = _find(directory, f"{part}-labels", "idx1-ubyte")
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
        raise TrainingError(f"{image_file} holds images of {images.shape[1]}×{images.shape[2]}; 28×28 is required")
    if len(images) != len(labels):
        raise TrainingError(f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels")
    if len(labels) == 0:
        raise TrainingError(f"{label_file} holds no labels at all")
    if labels.max() > 9:
        raise TrainingError(f"{label_file} holds the label {labels.max()}; labels are 0 to 9")
    return torch.from_numpy(images / numpy.float32(255)).unsqueeze(1), torch.from_numpy(labels.astype(numpy.int64))


def _find(directory: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{separator}{kind}{ending}" for separator in "-." for ending in ("", ".gz")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise TrainingError(f"{directory} holds no file {names[0]} or {names[1]}, which MNIST consists of")


def read_idx(path: Path, rank: int) -> numpy.ndarray:
    """Read an array of unsigned bytes from an IDX file, plain or compressed with gzip.

    Arguments:
        path: the file; whether it is compressed is read off its first bytes, not its name.
        rank: the number of axes that the array must have.

    Raises TrainingError if the file cannot be read, is no IDX file, or is shorter or longer than its header says.

    Source: the format is described at the end of Y. LeCun's MNIST page: two zero bytes, a type, the number of axes,
        their lengths as big-endian 32-bit integers, then the entries.
    """
    content = _read(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise TrainingError(f"{path} is not an IDX file: it starts with {content[:4].hex(' ') or 'nothing'}, not 00 00")
    kind, axes = content[2], content[3]
    if kind != UNSIGNED_BYTES or axes != rank:
        raise TrainingError(
            f"{path} holds type 0x{kind:02x} with {axes} axes; unsigned bytes (0x08) with {rank} axes are required"
        )
    header = 4 + 4 * rank
    if len(content) < header:
        raise TrainingError(f"{path} ends inside its header: {len(content)} bytes of {header}")
    shape = tuple(int(n) for n in numpy.frombuffer(content, ">u4", rank, 4))
    if len(content) - header != math.prod(shape):
        raise TrainingError(
            f"{path} should hold {'×'.join(map(str, shape))} = {math.prod(shape)} bytes after its header; "
            f"it holds {len(content) - header}"
        )
    return numpy.frombuffer(content, numpy.uint8, offset=header).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TrainingError(f"{path} is a damaged gzip file: {error}") from error
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror or error}") from error
