from __future__ import annotations

import cv2
import numpy as np
import torch

from stages.propagate import edges
from stages.propagate.edges import follow_edges


def scene() -> tuple[torch.Tensor, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Two colors that meet at column 13, and a soft map whose border lies at column 10."""
    guide = np.full((16, 24, 3), 0.2, np.float32)
    guide[:, :13] = (0.8, 0.3, 0.2)
    inside = torch.sigmoid((9.5 - torch.arange(24.0)) / 2).expand(16, 24)
    return torch.stack([1 - inside, inside]), guide


def test_a_soft_border_moves_to_the_edge_of_the_colors() -> None:
    probs, guide = scene()
    before, after = probs.argmax(0), follow_edges(probs, guide, weight=4.0).argmax(0)
    wanted = (torch.arange(24) < 13).long().expand(16, 24)
    assert int((before != wanted).sum()) == 16 * 3
    assert torch.equal(after, wanted)


def test_the_mean_field_equals_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    guide = rng.random((9, 11, 3), np.float32) * 0.1
    probs = torch.from_numpy(rng.dirichlet((1, 1, 1), (9, 11)).astype(np.float32)).permute(2, 0, 1)
    lab = cv2.cvtColor(guide, cv2.COLOR_RGB2LAB).astype(np.float64)
    q = probs.permute(1, 2, 0).double().numpy()
    unary = np.log(np.maximum(q, edges.LEAST))
    steps = [s for s in range(-edges.RADIUS_PX, edges.RADIUS_PX + 1, edges.STEP_PX)]
    for _ in range(edges.ITERATIONS):
        following = q.copy()
        for y, x in np.ndindex(9, 11):
            if probs[:, y, x].max() >= edges.CERTAIN:
                continue
            total, message = edges.SPREAD, np.zeros(3)
            for down in steps:
                for right in steps:
                    if down or right:
                        at = np.clip(y + down, 0, 8), np.clip(x + right, 0, 10)
                        apart = ((lab[at] - lab[y, x]) ** 2).sum() / (2 * edges.SIGMA_COLOR**2)
                        kernel = np.exp(-apart - (down**2 + right**2) / (2 * edges.SIGMA_PX**2))
                        total, message = total + kernel, message + kernel * q[at]
            values = np.exp(unary[y, x] + 3.0 * message / total)
            following[y, x] = values / values.sum()
        q = following
    got = follow_edges(probs, guide, weight=3.0)
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), q, atol=2e-3)


def test_certain_pixels_and_absent_objects_stay() -> None:
    probs, guide = scene()
    three = torch.cat([probs, torch.zeros(1, 16, 24)])
    followed = follow_edges(three, guide, weight=4.0)
    assert float(followed[2].max()) == 0
    certain = probs.amax(0) > edges.CERTAIN
    torch.testing.assert_close(followed[:2][:, certain], probs[:, certain])
    torch.testing.assert_close(follow_edges(2 * probs, guide, weight=0.0), probs, atol=0.03, rtol=0)
