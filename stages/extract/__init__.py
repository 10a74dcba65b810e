"""Extract: dense features of every frame from a frozen ViT (Amir et al. 2021), with LiFT (Suri et al. 2024)."""

from stages.extract.config import ExtractConfig
from stages.extract.stage import Extractor

__all__ = ["ExtractConfig", "Extractor"]
