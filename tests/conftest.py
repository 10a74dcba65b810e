from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import faiss
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from stages.extract.backbone.backbone import Backbone

REPOSITORY = Path(__file__).resolve().parent.parent

collect_ignore = ["rtsp_server.py"]  # a program for the system's Python, which has GStreamer

_LONGEST_FILES = ("test_kill_and_resume.py", "test_run_pipeline.py", "test_ray_engine.py", "test_local_engine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that processes that share the tests end at about the same time."""
    items.sort(key=lambda item: item.path.name not in _LONGEST_FILES)


# Small inputs gain nothing from a second thread, and threads that wait for each other are slow on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"  # of programs that tests start
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for cards run in Triton's interpreter
torch.set_num_threads(1)
faiss.omp_set_num_threads(1)
cv2.setNumThreads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of measuring data beside the checkout; tests that need it skip where it is absent."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the measuring data in {path}")
    return path


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Children heed Ctrl-C, even if these tests run in the background of a shell, where they would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def clip() -> Path:
    """The bundled clip: 132 frames of 1280 x 720 at 25 a second."""
    return REPOSITORY / "tests" / "data" / "bigbuckbunny.mp4"


@dataclass(frozen=True)
class PlantedDefects:
    """A small random ViT in which marked patches turn into singular defects, and images that hold the mark.

    Attributes:
        backbone: Four blocks of ViT-Ti/16; block 1's MLP adds a multiple of ``direction`` to marked tokens.
        images: Float32 ``(B, 3, 224, 224)``, normalized; five marked cells each.
        cells: Their rows and columns on the 14 x 14 grid.
        direction: Unit vector ``(192,)``.
    """

    backbone: Backbone
    images: Tensor
    cells: tuple[tuple[int, int], ...]
    direction: Tensor


@pytest.fixture
def planted() -> PlantedDefects:
    """A model with known defects, new for every test.

    One hidden unit of block 1's MLP is tuned to the mark: it fires for marked tokens (and now and then for random
    ones, as the linear fit sees it), and its output weights are a strong single direction.
    """
    from stages.extract.backbone.backbone import load_backbone
    from stages.extract.backbone.facets import parse_facet

    block, cells = 1, ((3, 4), (5, 9), (8, 2), (10, 10), (7, 6))
    backbone = load_backbone("vit_tiny_patch16_224", weights="random", overrides={"depth": 4})
    generator = torch.Generator().manual_seed(0)
    mark = torch.randn(3, 16, 16, generator=generator)
    images = 0.3 * torch.randn(4, 3, 224, 224, generator=generator)
    for row, column in cells:
        images[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 2 * mark
    seen: list[Tensor] = []
    layers = backbone.vit.blocks[block]
    handle = layers.norm2.register_forward_hook(lambda _, __, output: seen.append(output[:, 1:]))
    with torch.no_grad():
        backbone(images, [parse_facet(f"token@{block}")])
    handle.remove()
    marked = torch.zeros(14 * 14, dtype=torch.bool)
    marked[[14 * row + column for row, column in cells]] = True
    rest, marks = seen[0][:, ~marked].flatten(0, 1), seen[0][:, marked].flatten(0, 1)
    spread = rest.T @ rest / len(rest) + 0.05 * torch.eye(192)
    detector = F.normalize(torch.linalg.solve(spread, marks.mean(0)), dim=0)
    direction = F.normalize(torch.randn(192, generator=generator), dim=0)
    with torch.no_grad():
        layers.mlp.fc1.weight[0] = 4 * detector
        layers.mlp.fc1.bias[0] = -8.0
        layers.mlp.fc2.weight[:, 0] = 30 * direction
    return PlantedDefects(backbone, images, cells, direction)


@pytest.fixture(scope="module")
def coarse_prompts() -> Iterator[None]:
    """Clicks are answered from 112 px instead of 476 and 392: for tests of what is around the answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.prompts.features.SHORT_SIDE_PX", 112)
        patch.setattr("pipeline.prompts.features.WINDOW_SIDE_PX", 112)
        yield
