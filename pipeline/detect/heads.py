"""Region proposals and the Mask R-CNN heads: torchvision's, without its compiled operators.

He et al., Mask R-CNN, 2017; with the heads of ViTDet: two convolutions for proposals, convolutions with layer norm
for boxes and masks (Li et al. 2022, appendix A.2).

Differs from torchvision: suppression and pooling are this package's, which also work beside a torch build that
torchvision's operators do not fit; anchors are not rounded and box coordinates are aligned, as in Detectron2, so
that its weights give its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops.boxes import clip_boxes_to_image, remove_small_boxes

from pipeline.detect.nms import batched_nms
from pipeline.detect.pyramid import ChannelNorm
from pipeline.detect.roi_pooling import LevelPooling, roi_align
from pipeline.detect.settings import DetectorSettings

Target = dict[str, Tensor]
"""Of one image: ``boxes`` float ``(N, 4)`` in input pixels, ``labels`` int64 ``(N,)`` from 1, ``masks``
uint8 ``(N, H, W)`` at the input's size."""

ASPECT_RATIOS: Final = (0.5, 1.0, 2.0)
BOX_BINS: Final = 7
MASK_BINS: Final = 14


class Anchors(nn.Module):
    """Anchors of every level: one size, three ratios of height to width, centered on the upper left of the cells.

    Args:
        strides: Of the levels in input pixels.
        anchor_cells: Side of the square anchor in cells.
    """

    def __init__(self, strides: Sequence[float], anchor_cells: float) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.sizes = tuple(anchor_cells * stride for stride in strides)

    def forward(self, images: InputSizes, features: Sequence[Tensor]) -> list[Tensor]:
        """``(A, 4)`` for every image, ordered by level, row, column and ratio."""
        levels = [
            self._of_level(values, stride, size)
            for values, stride, size in zip(features, self.strides, self.sizes, strict=True)
        ]
        return [torch.cat(levels)] * len(images.image_sizes)

    def _of_level(self, values: Tensor, stride: float, size: float) -> Tensor:
        ratios = torch.tensor(ASPECT_RATIOS, dtype=torch.float32, device=values.device).sqrt()
        sides = torch.stack([size / ratios, size * ratios], dim=1)
        corners = torch.cat([-sides / 2, sides / 2], dim=1)
        rows, columns = (torch.arange(n, device=values.device) * float(stride) for n in values.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
        return (centers + corners).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class InputSizes:
    """What torchvision's heads want to know of a batch: height and width of each image inside the input."""

    image_sizes: list[tuple[int, int]]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]  # torchvision has no types
    """torchvision's region proposal network with :func:`batched_nms`."""

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best proposals of every image after suppression within each level; best score first.

        Args:
            proposals: ``(B, A, 4)``.
            objectness: Logits, ``B * A`` of them.
            image_shapes: Height and width of each image inside the input.
            num_anchors_per_level: They sum to A.

        Returns:
            ``(N_i, 4)`` and ``(N_i,)`` in [0, 1] per image.
        """
        logits = objectness.detach().reshape(len(proposals), -1)
        counts = torch.tensor(num_anchors_per_level, device=logits.device)
        level_of = torch.repeat_interleave(torch.arange(len(counts), device=logits.device), counts)
        best = self._get_top_n_idx(logits, num_anchors_per_level)
        boxes_found, scores_found = [], []
        for boxes, values, chosen, shape in zip(proposals, logits, best, image_shapes, strict=True):
            boxes = clip_boxes_to_image(boxes[chosen], shape)
            scores, levels = values[chosen].sigmoid(), level_of[chosen]
            large = remove_small_boxes(boxes, self.min_size)
            boxes, scores, levels = boxes[large], scores[large], levels[large]
            kept = batched_nms(boxes, scores, levels, self.nms_thresh)[: self.post_nms_top_n()]
            boxes_found.append(boxes[kept])
            scores_found.append(scores[kept])
        return boxes_found, scores_found


class BoxMaskHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's box and mask heads with :func:`batched_nms` and the project's ROIAlign for mask targets."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses while training, detections else.

        Args:
            features: Levels of the pyramid by name.
            proposals: ``(N_i, 4)`` per image in input pixels.
            image_shapes: Height and width of each image inside the input.
            targets: While training.

        Returns:
            Detections per image (``boxes``, ``labels`` from 1, ``scores``, ``masks`` ``(N, 1, 28, 28)`` in [0, 1]
            over the box), and losses by name; one of them is empty.
        """
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        masks = self._mask_logits(features, boxes, image_shapes)
        found = [
            {"boxes": b, "scores": s, "labels": n, "masks": m}
            for b, s, n, m in zip(boxes, scores, labels, maskrcnn_inference(masks, labels), strict=True)
        ]
        return found, {}

    def _mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        logits: Tensor = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        return logits

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[Target] | None,
    ) -> dict[str, Tensor]:
        chosen, matches, labels, regression = self.select_training_samples(list(proposals), targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, chosen, image_shapes)))
        loss_class, loss_box = fastrcnn_loss(logits, deltas, labels, regression)
        positive = [torch.where(own > 0)[0] for own in labels]
        boxes = [own[rows] for own, rows in zip(chosen, positive, strict=True)]
        masks = self._mask_logits(features, boxes, image_shapes)
        wanted = torch.cat([own[rows] for own, rows in zip(labels, positive, strict=True)])
        assert targets is not None
        truths = [
            mask_targets(target["masks"], own, match[rows], masks.shape[-1])
            for target, own, match, rows in zip(targets, boxes, matches, positive, strict=True)
        ]
        return {
            "loss_classifier": loss_class,
            "loss_box_reg": loss_box,
            "loss_mask": mask_loss(masks, wanted, torch.cat(truths)),
        }

    def postprocess_detections(
        self,
        class_logits: Tensor,
        box_regression: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels (from 1) of every image after suppression within each class, best first."""
        counts = [len(boxes) for boxes in proposals]
        decoded = torch.split(self.box_coder.decode(box_regression, proposals), counts)
        probabilities = torch.split(F.softmax(class_logits, dim=-1), counts)
        result: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for boxes, scores, shape in zip(decoded, probabilities, image_shapes, strict=True):
            boxes, scores = clip_boxes_to_image(boxes, shape)[:, 1:], scores[:, 1:]
            rows, classes = torch.where(scores > self.score_thresh)
            boxes, scores, labels = boxes[rows, classes], scores[rows, classes], classes + 1
            large = remove_small_boxes(boxes, min_size=1e-2)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
            kept = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            for values, found in zip(result, (boxes, scores, labels), strict=True):
                values.append(found[kept])
        return result


def mask_targets(masks: Tensor, boxes: Tensor, matches: Tensor, size: int) -> Tensor:
    """The true masks cut to boxes, ``(N, size, size)`` in [0, 1].

    Args:
        masks: uint8 ``(M, H, W)``.
        boxes: ``(N, 4)`` in input pixels.
        matches: int64 ``(N,)``: the mask of each box.
        size: Bins per axis.
    """
    cut = [
        roi_align(masks[match : match + 1].to(boxes.dtype), boxes[place : place + 1], size)[0]
        for place, match in enumerate(matches.tolist())
    ]
    return torch.cat(cut) if cut else boxes.new_zeros(0, size, size)


def mask_loss(logits: Tensor, labels: Tensor, truths: Tensor) -> Tensor:
    """Binary cross entropy of the masks of the true classes; 0 without any box.

    Args:
        logits: ``(N, classes + 1, size, size)``.
        labels: int64 ``(N,)`` from 1.
        truths: ``(N, size, size)`` in [0, 1].
    """
    if not len(labels):
        return logits.sum() * 0
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(own, truths)


def build_proposals(settings: DetectorSettings, strides: Sequence[float]) -> ProposalNetwork:
    """The proposal network for levels with these strides in input pixels; the last one is the pooled level."""
    return ProposalNetwork(
        Anchors(strides, settings.anchor_cells),
        RPNHead(settings.channels, len(ASPECT_RATIOS), conv_depth=settings.rpn_convs),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 1000, "testing": 1000},
        post_nms_top_n={"training": 500, "testing": 1000},
        nms_thresh=0.7,
    )


def build_heads(settings: DetectorSettings, strides: Sequence[float]) -> BoxMaskHeads:
    """The box and mask heads over levels with these strides in input pixels, without the pooled one."""
    channels, classes = settings.channels, len(settings.categories) + 1
    shape = (channels, BOX_BINS, BOX_BINS)
    heads: Any = BoxMaskHeads(
        LevelPooling(strides, BOX_BINS),
        FastRCNNConvFCHead(shape, [channels] * settings.box_convs, [settings.box_hidden], norm_layer=ChannelNorm),
        FastRCNNPredictor(settings.box_hidden, classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=128,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        mask_roi_pool=LevelPooling(strides, MASK_BINS),
        mask_head=MaskRCNNHeads(channels, [channels] * settings.mask_convs, 1, norm_layer=ChannelNorm),
        mask_predictor=MaskRCNNPredictor(channels, channels, classes),
    )
    return heads  # type: ignore[no-any-return]
