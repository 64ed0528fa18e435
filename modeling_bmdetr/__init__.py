"""BM-DETR for video moment retrieval, in the Hugging Face ecosystem."""

from .configuration_bmdetr import BMDetrConfig
from .modeling_bmdetr import BMDetrForMomentRetrieval, BMDetrModel

__all__ = ["BMDetrConfig", "BMDetrForMomentRetrieval", "BMDetrModel"]
