"""Training: LiFT for a frozen backbone, and the repair of singular defects."""

import pipeline.core.torchvision_ops  # noqa: F401  (before any module here imports torchvision)
