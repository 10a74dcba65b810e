"""Track: one ROIAlign descriptor per box, association by appearance and overlap."""

from stages.track.config import AssociationConfig, RoiConfig, TrackConfig
from stages.track.stage import Tracker

__all__ = ["AssociationConfig", "RoiConfig", "TrackConfig", "Tracker"]
