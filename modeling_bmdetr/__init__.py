"""BM-DETR for video moment retrieval, in the Hugging Face ecosystem.

The public names are imported when they are first used. transformers' auto classes and pipelines know BM-DETR from the
moment that they and this package are imported, in whatever order.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_names
from .registration import register_with_transformers

if TYPE_CHECKING:
    from .configuration_bmdetr import BMDetrConfig as BMDetrConfig
    from .configuration_bmdetr import FeatureContract as FeatureContract
    from .modeling_bmdetr import BMDetrForMomentRetrieval as BMDetrForMomentRetrieval
    from .modeling_bmdetr import BMDetrModel as BMDetrModel
    from .pipeline_bmdetr import MomentRetrievalPipeline as MomentRetrievalPipeline
    from .processing_bmdetr import BMDetrProcessor as BMDetrProcessor
    from .training import BMDetrTrainer as BMDetrTrainer
    from .training import BMDetrTrainingArguments as BMDetrTrainingArguments

__getattr__, __dir__, __all__ = lazy_names(
    __name__, __file__, moved={"checks_bmdetr": ".input_checks_bmdetr", "sharing_bmdetr": ".saving_bmdetr"}
)
register_with_transformers()
